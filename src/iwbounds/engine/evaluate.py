"""From latents to log-weights, and to the channels that lead from coefficients to parameters.

Both log-densities are evaluated once. The coefficients need the log-weights, so what is returned is the log-weights and
a function that turns coefficients into channels for :func:`iwbounds.engine.autograd.attach`. How the densities see the
latents depends on which of the three coefficients differ; :func:`evaluate` picks the cheapest way that serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from iwbounds.checks import Latents, check_log_joint, check_log_q, latent_leaves, map_latents
from iwbounds.engine.autograd import Channel, compiling, gate, linearize, refuse_unreached, with_ratio
from iwbounds.engine.request import Request, cannot
from iwbounds.gradients import Coefficients
from iwbounds.proposals import LogProb, Proposal

__all__ = ["Channels", "Evaluated", "evaluate"]

Channels: TypeAlias = Sequence[Channel]


class Evaluated(NamedTuple):
    """What the engine knows of some samples."""

    log_w: Tensor
    """Detached log p − log q, ``(K, *batch)``, in at least float32."""
    channels: Callable[[Coefficients], Channels]
    """Pairs of a tensor in the graph and the multiplier that its gradient gets."""


def evaluate(request: Request, latents: Latents) -> Evaluated:
    """Both densities at ``latents``, by the cheapest way that serves the gradient asked for."""
    if not request.gradient.pathwise:
        return _with_fixed_samples(request, latents)
    if request.total:
        return _as_one_difference(request, latents)
    if request.gate and request.proposal.fixed_log_prob is not None:
        return _behind_one_gate(request, latents)
    return _with_separate_paths(request, latents)


def _as_one_difference(request: Request, latents: Latents) -> Evaluated:
    """The total derivative: a = b = −s, so that log p − log q as it stands has the one coefficient a."""
    log_q = _log_q(request, latents)
    _refuse_unfit(request, latents, log_q)
    live = _log_ratio(check_log_joint(request.log_joint(latents), log_q), log_q)
    return Evaluated(live.detach(), lambda coefficients: [(live, coefficients.model)])


def _behind_one_gate(request: Request, latents: Latents) -> Evaluated:
    """Both densities behind one gate, the log-proposal with its parameters detached: it then needs no linearisation.

    A gradient with a score coefficient costs one more evaluation of the log-proposal.
    """
    proposal = request.proposal
    gated, companions = gate(latents, proposal.reparameterized)
    log_q = _log_q(request, gated, proposal.fixed_log_prob if companions else None)
    _refuse_unfit(request, latents, log_q)
    live = _log_ratio(check_log_joint(request.log_joint(gated), log_q), log_q)

    def channels(coefficients: Coefficients) -> Channels:
        a, b, s = _three(coefficients)
        found: list[Channel] = [(with_ratio(live, companions, a, b), a)]
        if s is not None:
            found.append((_log_q(request, map_latents(Tensor.detach, latents)), s))
        return found

    return Evaluated(live.detach(), channels)


def _with_separate_paths(request: Request, latents: Latents) -> Evaluated:
    """Three channels: the log-proposal linearised, the log-joint behind a gate or, where b/a may be infinite, too."""
    proposal, total = request.proposal, request.gradient.total
    q = linearize(lambda z: _log_q(request, z), latents, proposal.reparameterized, own_samples=True)
    _refuse_unfit(request, latents, q.value)
    if proposal.needs_own_samples:  # elsewhere the backward notices, and forwards are not made slower
        refuse_unreached(q.value, latents)
    gated, companions = gate(latents, proposal.reparameterized) if request.gate else (latents, [])

    def log_joint(z: Latents) -> Tensor:
        return check_log_joint(request.log_joint(z), q.value)

    p = None if request.gate else linearize(log_joint, latents, proposal.reparameterized)
    log_p = log_joint(gated) if p is None else p.value

    def channels(coefficients: Coefficients) -> Channels:
        a, b, s = _three(coefficients)
        # Where the explicit parameters and the path share a graph, a score coefficient has sent s down the path too.
        correction = -b if s is None or not q.joined else -(b + s)
        of_q = [(q.value, s), *q.path(None if total and q.joined else correction, s is not None)]
        if p is None:
            return [(with_ratio(log_p, companions, a, b), a), *of_q]
        return [(p.value, a), *p.path(b, True), *of_q]

    return Evaluated(_log_ratio(log_p.detach(), q.value.detach()), channels)


def _with_fixed_samples(request: Request, latents: Latents) -> Evaluated:
    """Samples held fixed: the explicit parameters of both densities.

    Of mixed latents, the reparameterised parts are live, and enter every density. Their own log-proposals are then
    part of the total derivative (coefficient −a), and those of the fixed parts get the score coefficient. A part that
    is given without its graph has no path, whatever the proposal says of its samples: it is one of the fixed.
    """
    proposal = request.proposal
    # Flags alone: what channels close over lives until the backward, and a chunk's latents must not.
    drawn = [z.requires_grad for z in proposal.latent_parts(latents)] if proposal.mixed else []
    try:
        parts = proposal.log_prob_parts(latents)
    except NotImplementedError as error:
        raise TypeError(cannot(proposal, "be evaluated", error)) from error
    log_q = check_log_q(_sum(parts), latents, proposal.batch_shape)
    _refuse_unfit(request, latents, log_q)
    log_p = check_log_joint(request.log_joint(latents), log_q)

    def channels(coefficients: Coefficients) -> Channels:
        a, s = coefficients.model, coefficients.score
        if not proposal.mixed:
            return [(log_p, a), (log_q, s)]
        minus_a = None if a is None else -a
        flags = [flag for flag in latent_leaves(proposal.reparameterized) if flag is not None]
        live = [flag and has_graph for flag, has_graph in zip(flags, drawn, strict=True)]
        return [(log_p, a), *((part, minus_a if on_path else s) for part, on_path in zip(parts, live, strict=True))]

    return Evaluated(_log_ratio(log_p.detach(), log_q.detach()), channels)


def _three(coefficients: Coefficients) -> tuple[Tensor, Tensor, Tensor | None]:
    """a, b and s; where only one of a and b is used, the other is zero."""
    a, b = coefficients.model, coefficients.path
    used = b if a is None else a
    if used is None:
        raise ValueError("a pathwise Gradient must give model or path coefficients; got None for both.")
    return (
        used if a is not None else torch.zeros_like(used),
        torch.zeros_like(used) if b is None else b,
        coefficients.score,
    )


def _log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p − log q in at least float32."""
    dtype = torch.promote_types(log_q.dtype, torch.float32)
    return log_p.to(dtype) - log_q.to(dtype)


def _log_q(request: Request, latents: Latents, log_prob: LogProb | None = None) -> Tensor:
    """The proposal's log-density (or ``log_prob`` in its stead), of a known shape ``(K, *batch)``."""
    proposal = request.proposal
    try:
        found = _sum(proposal.log_prob_parts(latents, log_prob))
    except NotImplementedError as error:
        raise TypeError(cannot(proposal, "be evaluated", error)) from error
    return check_log_q(found, latents, proposal.batch_shape)


def _sum(parts: list[Tensor]) -> Tensor:
    """The log-density of all parts."""
    total = parts[0]
    for part in parts[1:]:
        if part.shape != total.shape:
            raise ValueError(
                "expected log_prob to give log-densities of one shape (num_samples, *batch) for all parts; got "
                f"{tuple(total.shape)} and {tuple(part.shape)}. Nothing is broadcast: expand the smaller one, or sum "
                "over event dimensions (Independent)."
            )
        total = total + part
    return total


def _refuse_unfit(request: Request, latents: Latents, log_q: Tensor) -> None:
    """Raise where a gradient is wrong for a proposal that has something to train; a frozen one fits every gradient."""
    needs_own = request.proposal.needs_own_samples
    if not request.differentiate or not (request.unfit or request.gradient.pathwise or needs_own):
        return
    parts = [latents] if isinstance(latents, Tensor) else request.proposal.latent_parts(latents)
    trained, on_path = log_q.requires_grad, any(z.requires_grad for z in parts)
    if request.unfit is not None and (trained or on_path):
        raise ValueError(request.unfit)
    if request.gradient.pathwise and trained and not on_path:
        raise ValueError(_no_path_message(request.proposal))
    if not (needs_own and on_path) or request.gradient.total or not request.gradient.pathwise:
        return
    if compiling() or len(latent_leaves(latents)) > 1:
        raise ValueError(
            f"{request.gradient!r} takes the derivative of log q at copies of the samples "
            f"({'under torch.compile' if compiling() else 'as there are several parts'}), but {request.proposal.name} "
            "needs its own samples (needs_own_samples=True). Use Reparameterized()."
        )


def _no_path_message(proposal: Proposal) -> str:
    return (
        f"expected samples that carry the gradient of the parameters of {proposal.name}, as a pathwise gradient "
        "differentiates through them; got samples without a graph (drawn by sample, detached, or under no_grad). "
        "Draw them by rsample, or use a gradient that needs none: VIMCO(), ScoreFunction()."
    )
