"""The one entry: from a log-joint and a proposal to a bound whose backward is the chosen gradient estimator."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds.base import Bound
from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import Latents, check_latents, latent_leaves, map_latents
from iwbounds.engine.autograd import first_pass
from iwbounds.engine.chunks import evaluate_in_chunks
from iwbounds.engine.evaluate import Evaluated, evaluate
from iwbounds.engine.ranks import Ranks
from iwbounds.engine.request import Request, complete
from iwbounds.engine.resampling import resampled
from iwbounds.engine.result import Estimate
from iwbounds.gradients.base import Gradient
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal

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
    process_group: Any = None,
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
        process_group: a ``torch.distributed`` group whose ranks share the K samples: each draws and evaluates its part
            (as equal as may be), and the log-weights are gathered. ``num_samples``, ``value``, ``log_weights`` and
            ``coefficients`` are those of all samples, on every rank; the backward is this rank's *part* of the
            gradient, and the **sum** over the ranks is the gradient. Where gradients are averaged instead, as
            ``DistributedDataParallel`` and FSDP do, multiply the loss by the size of this group. All ranks are to have
            the same data, and make the same calls. See ``docs/distributed.md``.
        samples: latents already drawn, ``(K, *batch, *event)``; then nothing is drawn. With a ``process_group``, each
            rank gives its own part.
        keep_samples: keep the latents, detached, as ``estimate.samples``; those of all ranks, which are then gathered.
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
        RuntimeError: another rank of the ``process_group`` has failed, naming it.

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
    ranks = None
    if process_group is not None:
        shared = {"bound": bound, "gradient": gradient, "proposal_bound": proposal_bound, "num_samples": num_samples}
        more = {"backward_samples": backward_samples, "keep_samples": keep_samples}
        ranks = _ranks(process_group, samples, **shared, **more)
    with nullcontext() if ranks is None else ranks.together():
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
            ranks=ranks,
        )
        found = run(request, keep_samples)
    # A default gradient is new in every call, and has no state that could learn.
    if gradient is not None and request.differentiate:
        # After the coefficients were made: a baseline must not have seen the samples that it is subtracted from.
        gradient.update(found.value.detach())
    if found.coefficients is not None and found.coefficients.lesson is not None:
        found.coefficients.lesson.notes.commit_at_end = True  # one part of an accumulate is no step of its own
    return found


def _ranks(process_group: Any, samples: Latents | None, **arguments: object) -> Ranks:
    """The ranks that share the samples, agreed on what to do."""

    def given() -> int:
        return -1 if samples is None else check_latents(samples, None)

    # Whether there is a graph decides the default gradient, and whether anybody waits for this rank in a backward.
    leaves = [] if samples is None else latent_leaves(samples)
    live = any(isinstance(z, Tensor) and z.requires_grad for z in leaves)
    return Ranks(process_group, given, **arguments, samples_require_grad=live, grad_enabled=torch.is_grad_enabled())


def run(request: Request, keep_samples: bool = False) -> Estimate:
    """The estimate that a completed request asks for."""
    # None: chunks draw block by block, and nobody ever holds all samples.
    latents = request.all_samples() if request.chunk_size is None or keep_samples else None
    if request.backward_samples is not None:
        return _run_on_few(request, request.all_samples() if latents is None else latents, keep_samples)
    if request.chunk_size is None:
        assert latents is not None, "drawn above"
        evaluated = evaluate(request, latents)
    else:
        evaluated = _in_chunks(request, latents)
    kept = latents if keep_samples else None
    log_w, kept = (evaluated.log_w, kept) if request.ranks is None else _of_all_ranks(request, evaluated.log_w, kept)
    # Without a graph: the coefficients are constants of the backward, whatever the bound is made of.
    with torch.no_grad(), request.shared_stream():
        value, coefficients = request.evaluate(log_w)
    if coefficients is not None:
        value = evaluated.attach_to(value, coefficients if request.ranks is None else request.own(coefficients))
    kept = None if kept is None else _visible(request, kept)
    return Estimate(value, log_w, request.direction, coefficients, kept, request.proposal.independent)


def _run_on_few(request: Request, latents: Latents, keep_samples: bool) -> Estimate:
    """All samples without a graph of the densities; those that are chosen by their coefficients, with one."""
    assert request.backward_samples is not None, "the caller knows"
    kept = latents if keep_samples else None
    with first_pass("backward_samples"):
        evaluated = evaluate(request, latents) if request.chunk_size is None else _in_chunks(request, latents)
        log_w = evaluated.log_w
        if request.ranks is not None:
            log_w, kept = _of_all_ranks(request, log_w, kept)
    # One stream for the bound and the choice: all ranks make the same one, and each evaluates its part of it.
    with request.shared_stream():
        with torch.no_grad():
            value, coefficients = request.evaluate(log_w)
        assert coefficients is not None, "gradients are on"
        # Gathered from the latents in the graph: the rows that are left out get no gradient, which is the point.
        chosen, share = resampled(latents, coefficients, request.backward_samples, request.rows)
    few = replace(request, count=len(latent_leaves(chosen)[0]))
    # The chosen may fit into one chunk, or need several.
    chunked = request.chunk_size is not None and request.chunk_size < few.count
    evaluated = _in_chunks(few, chosen) if chunked else evaluate(few, chosen)
    value = evaluated.attach_to(value, request.own(share, slice(None)))
    kept = None if kept is None else _visible(request, kept)
    return Estimate(value, log_w, request.direction, coefficients, kept, request.proposal.independent)


def _in_chunks(request: Request, latents: Latents | None) -> Evaluated:
    """Of the latents, or of those that the request draws block by block."""
    assert request.chunk_size is not None, "the caller has looked"
    given = request if latents is None else replace(request, samples=latents)
    return evaluate_in_chunks(given, request.chunk_size)


def _of_all_ranks(request: Request, log_w: Tensor, latents: Latents | None) -> tuple[Tensor, Latents | None]:
    """The log-weights of all K samples, and the latents where they are to be kept."""
    assert request.ranks is not None, "the caller has looked"
    log_w, *leaves = request.ranks.gather(log_w, *([] if latents is None else latent_leaves(latents)))
    found = iter(leaves)
    return log_w, None if latents is None else map_latents(lambda _: next(found), latents)


def _visible(request: Request, latents: Latents) -> Latents:
    """The latents as the log-joint received them, detached: an extended proposal carries more than it shows."""
    visible = request.proposal.visible
    return map_latents(Tensor.detach, latents if visible is None else visible(latents))
