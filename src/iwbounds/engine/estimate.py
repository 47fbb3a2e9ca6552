"""The one entry: from a log-joint and a proposal to a bound whose backward is the chosen gradient estimator."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds import IWAE, Bound
from iwbounds.checks import Latents, map_latents
from iwbounds.engine.autograd import attach, first_pass
from iwbounds.engine.chunks import evaluate_in_chunks
from iwbounds.engine.evaluate import Evaluated, evaluate
from iwbounds.engine.request import Request, complete
from iwbounds.engine.resampling import resampled
from iwbounds.engine.result import Estimate
from iwbounds.gradients import Coefficients, Gradient
from iwbounds.proposals import ExtendedProposal, LogJoint, Proposal

__all__ = ["estimate"]


def estimate(
    log_joint: LogJoint,
    proposal: Distribution | Proposal | ExtendedProposal,
    bound: Bound = IWAE(),
    gradient: Gradient | None = None,
    *,
    proposal_bound: Bound | None = None,
    num_samples: int | None = None,
    chunk_size: int | None = None,
    backward_samples: int | None = None,
    samples: Latents | None = None,
    keep_samples: bool = False,
    scaled_likelihood: bool = False,
) -> Estimate:
    r"""Estimate a bound of log p(x) for each datum, with the gradient that the chosen estimator gives.

    Draws :math:`z_{1..K}` from the proposal, evaluates :math:`\log w_k = \log p(x, z_k) - \log q(z_k)` once, and
    returns the bound of these weights. ``(-estimate.value.mean()).backward()`` then runs the estimator's backward.

    Args:
        log_joint: latents to ``(K, *batch)`` nats of log p(x, z); closes over the data and the model. Datum i may
            depend on the latents of datum i alone.
        proposal: a torch ``Distribution`` with batch shape ``batch``, :class:`iwbounds.Proposal`, or a proposal of more
            than one draw (:class:`iwbounds.HierarchicalProposal`).
        bound: what to estimate.
        gradient: how its backward is made. None: one that fits. :class:`iwbounds.DReG` where the proposal is
            reparameterised (:class:`iwbounds.Reparameterized` where the bound is not smooth, the support moves with the
            parameters, or the samples depend on each other), else :class:`iwbounds.VIMCO`
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
        keep_samples: keep the latents, detached, as ``estimate.samples``.
        scaled_likelihood: say so where ``log_joint`` is an unbiased estimate of the log-joint, such as a mini-batch's
            likelihood times its share of the data. The ELBO, linear in the log-weights, is still a lower bound; nothing
            else is (direction none).

    Returns:
        An :class:`iwbounds.Estimate`: ``value`` ``(*batch)`` nats in at least float32, ``log_weights``, ``direction``
        and diagnostics. Under ``torch.no_grad()``, the value alone.

    Raises:
        TypeError: an argument of another kind; a callable returns no floating tensor, or mixes float32 with float64.
        ValueError: a wrong shape, device or number of samples; a gradient that is wrong for the bound, or for what the
            proposal is. Each says what was expected and found, and what to do.

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
    request = complete(
        log_joint,
        proposal,
        bound,
        gradient,
        proposal_bound=proposal_bound,
        num_samples=num_samples,
        samples=samples,
        chunk_size=chunk_size,
        backward_samples=backward_samples,
        scaled_likelihood=scaled_likelihood,
    )
    found = run(request, keep_samples)
    # A default gradient is new in every call, and has no state that could learn.
    if gradient is not None and request.differentiate:
        gradient.update(found.value.detach())
    if found.coefficients is not None and found.coefficients.lesson is not None:
        found.coefficients.lesson.notes.commit_at_end = True  # one part of an accumulate is no step of its own
    return found


def run(request: Request, keep_samples: bool = False) -> Estimate:
    """The estimate that a completed request asks for."""
    # None: chunks draw block by block, and nobody ever holds all samples.
    latents = request.all_samples() if request.chunk_size is None or keep_samples else None
    if request.backward_samples is not None:
        return _run_on_few(request, request.all_samples() if latents is None else latents, keep_samples)
    evaluated = _evaluated(request, latents)
    with torch.no_grad():
        value, coefficients = request.evaluate(evaluated.log_w)
    if coefficients is not None:
        value = _attached(value, evaluated, coefficients)
    return _estimate(request, value, evaluated.log_w, coefficients, latents if keep_samples else None)


def _attached(value: Tensor, evaluated: Evaluated, coefficients: Coefficients) -> Tensor:
    notes = None if coefficients.lesson is None else coefficients.lesson.notes
    return attach(value, [*evaluated.channels(coefficients), *coefficients.extra], notes)


def _run_on_few(request: Request, latents: Latents, keep_samples: bool) -> Estimate:
    """All samples without a graph of the densities; those that are chosen by their coefficients, with one."""
    assert request.backward_samples is not None, "the caller knows"
    with first_pass("backward_samples"):
        log_w = _evaluated(request, latents).log_w
        value, coefficients = request.evaluate(log_w)
    assert coefficients is not None, "gradients are on"
    # Gathered from the latents in the graph: the rows that are left out get no gradient, which is the point.
    chosen, kept = resampled(latents, coefficients, request.backward_samples)
    value = _attached(value, _evaluated(replace(request, count=request.backward_samples), chosen), kept)
    return _estimate(request, value, log_w, coefficients, latents if keep_samples else None)


def _evaluated(request: Request, latents: Latents | None) -> Evaluated:
    """Of the latents, or of those that the request draws: all at once, or in chunks."""
    if request.chunk_size is None or request.chunk_size >= request.count:
        return evaluate(request, request.all_samples() if latents is None else latents)
    given = request if latents is None else replace(request, samples=latents)
    return evaluate_in_chunks(given, request.chunk_size)


def _estimate(
    request: Request, value: Tensor, log_w: Tensor, coefficients: Coefficients | None, latents: Latents | None
) -> Estimate:
    visible = request.proposal.visible
    if latents is not None:
        latents = map_latents(Tensor.detach, latents if visible is None else visible(latents))
    return Estimate(value, log_w, request.direction, coefficients, latents, request.proposal.independent)
