"""The one entry: from a log-joint and a proposal to a bound whose backward is the chosen gradient estimator."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.distributions import Distribution

from iwbounds.bounds import IWAE, Bound
from iwbounds.engine.chunks import make_route
from iwbounds.engine.draws import prepare
from iwbounds.engine.redraws import Draws
from iwbounds.engine.resampling import resampled
from iwbounds.engine.result import Estimate
from iwbounds.engine.routing import attach
from iwbounds.gradients import Gradient
from iwbounds.latents import Latents
from iwbounds.proposals import LogJoint, Proposal

__all__ = ["estimate"]


def estimate(
    log_joint: LogJoint,
    proposal: Distribution | Proposal,
    bound: Bound = IWAE(),
    gradient: Gradient | None = None,
    *,
    proposal_bound: Bound | None = None,
    num_samples: int | None = None,
    chunk_size: int | None = None,
    backward_samples: int | None = None,
    samples: Latents | None = None,
) -> Estimate:
    r"""Estimate a bound of log p(x) for each datum, with the gradient that the chosen estimator gives.

    Draws :math:`z_{1..K}` from the proposal, evaluates :math:`\log w_k = \log p(x, z_k) - \log q(z_k)` once, and
    returns the bound of these weights. ``(-estimate.value.mean()).backward()`` then runs the estimator's backward.

    Args:
        log_joint: latents to ``(K, *batch)`` nats of log p(x, z); closes over the data and the model. Datum i may
            depend on the latents of datum i alone.
        proposal: a torch ``Distribution`` with batch shape ``batch``, or :class:`iwbounds.Proposal`.
        bound: what to estimate.
        gradient: how its backward is made. None: :class:`iwbounds.DReG` where the proposal is reparameterised
            (:class:`iwbounds.Reparameterized` if the bound is not smooth), else :class:`iwbounds.VIMCO`
            (:class:`iwbounds.ScoreFunction` for one sample).
        proposal_bound: another bound for the proposal's gradient, the model keeping ``bound``. With
            ``bound=IWAE(), proposal_bound=MIWAE(groups)`` this is PIWAE.
        num_samples: K, 64 unless ``samples`` are given.
        chunk_size: how many samples to hold in memory at once, the gradient staying exact; each density is then
            evaluated once more in the backward, under the same random state, and the latents of a ``Distribution`` are
            drawn once more. None: all.
        backward_samples: how many samples, of those K, to run the backward on: an unbiased choice that favours large
            coefficients (see :mod:`iwbounds.engine.resampling`). None: all.
        samples: latents already drawn, ``(K, *batch, *event)``; then nothing is drawn.

    Returns:
        An :class:`iwbounds.Estimate`: ``value`` ``(*batch)`` nats in at least float32, ``log_weights``, ``direction``
        and diagnostics. Under ``torch.no_grad()``, the value alone.

    Raises:
        TypeError: a callable returns no floating tensor, or mixes float32 with float64.
        ValueError: a wrong shape, device or number of samples; a pathwise gradient without a reparameterised sample; a
            gradient that is wrong for the bound. Each says what was expected and found, and what to do.

    Values are not inspected: NaN stays in its own datum, a datum whose log-joints are all −inf gives −inf with
    gradient 0.

    >>> import torch, iwbounds as iw
    >>> x, loc = torch.tensor([0.0, 1.0]), torch.zeros(2, requires_grad=True)
    >>> prior, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(loc, 0.8)
    >>> log_joint = lambda z: prior.log_prob(z) + torch.distributions.Normal(z, 1.0).log_prob(x)
    >>> estimate = iw.estimate(log_joint, q, num_samples=100)
    >>> (-estimate.value.mean()).backward()
    >>> loc.grad.shape
    torch.Size([2])
    """
    log_joint, proposal, rule, draws = prepare(
        log_joint,
        proposal,
        bound,
        gradient,
        proposal_bound=proposal_bound,
        num_samples=num_samples,
        samples=samples,
    )
    differentiate = torch.is_grad_enabled()
    few = _if_fewer(backward_samples, draws.count) if differentiate else None
    latents = None if few is None else draws.latents
    with nullcontext() if few is None else torch.no_grad():
        route = make_route(log_joint, proposal, rule, draws, chunk_size)
    with torch.no_grad():
        value, coefficients = rule.evaluate(route.log_w, differentiate)
    log_w = route.log_w
    if coefficients is None:
        return Estimate(value, log_w, bound.direction)
    sent = coefficients
    if few is not None:
        latents, sent = resampled(latents, coefficients, few)
        route = make_route(log_joint, proposal, rule, Draws(few, lambda _: latents), chunk_size)
    value = attach(value, [*route.channels(sent), *sent.extra])
    return Estimate(value, log_w, bound.direction, coefficients)


def _if_fewer(backward_samples: int | None, count: int) -> int | None:
    if backward_samples is not None and backward_samples < 1:
        raise ValueError(f"expected backward_samples of at least 1; got {backward_samples}. None takes all.")
    return None if backward_samples is None or backward_samples >= count else backward_samples
