"""From latents to log-weights, and to the channels that lead from coefficients to parameters.

Both log-densities are evaluated once. The coefficients need the log-weights, so what is returned is the log-weights and
a function that turns coefficients into channels for :func:`iwbounds.engine.autograd.attach`. How the densities see the
latents depends on which of the three coefficients differ; :func:`evaluate` picks the cheapest way that serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, check_log_joint, check_log_q, latent_leaves, map_latents
from iwbounds.engine.autograd import Channel, Tap, attach, compiling, gate, on_paths, split_gate, with_ratio
from iwbounds.engine.linearize import Linearized, cut_copies, linearize, refuse_unreached, slopes_at, times
from iwbounds.gradients.base import Coefficients
from iwbounds.gradients.lesson import Lesson
from iwbounds.proposals.base import LogProb, Proposal, cannot
from iwbounds.proposals.prior import PriorAndLikelihood, checked_like, retraced

if TYPE_CHECKING:
    from iwbounds.engine.request import Request  # for annotations alone, so that no chain of imports grows

__all__ = ["Channels", "Evaluated", "evaluate"]

Channels: TypeAlias = Sequence[Channel]


class Evaluated(NamedTuple):
    """What the engine knows of some samples."""

    log_w: Tensor
    """Detached log p − log q, ``(K, *batch)``, in at least float32."""
    channels: Callable[[Coefficients], Channels]
    """Pairs of a tensor in the graph and the multiplier that its gradient gets."""

    def attach_to(self, value: Tensor, coefficients: Coefficients) -> Tensor:
        """``value``, with the backward that the coefficients make."""
        notes = None if coefficients.lesson is None else coefficients.lesson.notes
        return attach(value, [*self.channels(coefficients), *coefficients.extra], notes)


def evaluate(request: Request, latents: Latents) -> Evaluated:
    """Both densities at ``latents``, by the cheapest way that serves the gradient asked for."""
    # From the cheapest requirement to the dearest: no path; one coefficient for all; one gate; two linearisations.
    if not request.gradient.pathwise:
        return _with_fixed_samples(request, latents)
    if request.gradient.needs_prior:
        return _with_prior_path(request, latents)
    if request.total:
        return _as_one_difference(request, latents)
    # Behind one gate the slopes of the two densities arrive as one, which no estimator learns from.
    if request.gate and request.proposal.fixed_log_prob is not None and not request.gradient.learns:
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
    gated, companions = _gated(request, latents)
    followed = companions or (request.gradient.path_is_model and on_paths(latents, proposal.reparameterized))
    # Detached parameters where there is a gate, as the score channel is apart; without one (a frozen proposal, no
    # gradients) the density as it is saves the copy.
    log_q = _log_q(request, gated, proposal.fixed_log_prob if followed else None)
    _refuse_unfit(request, latents, log_q)
    live = _log_ratio(check_log_joint(request.log_joint(gated), log_q), log_q)

    def channels(coefficients: Coefficients) -> Channels:
        a, b, s = _three(coefficients)
        found: list[Channel] = [(with_ratio(live, companions, a, b), a)]
        if s is not None:
            # Detached latents: the score is of explicit parameters at fixed z.
            found.append((_log_q(request, map_latents(Tensor.detach, latents)), s))
        return found

    return Evaluated(live.detach(), channels)


def _with_separate_paths(request: Request, latents: Latents) -> Evaluated:
    """Three channels: the log-proposal linearised, the log-joint behind a gate or, where b/a may be infinite, too."""
    proposal, total = request.proposal, request.gradient.total
    # log q gets the samples themselves, which it may recognise; the log-joint may not rely on that.
    q = linearize(lambda z: _log_q(request, z), latents, proposal.reparameterized, own_samples=True)
    _refuse_unfit(request, latents, q.value)
    if proposal.needs_own_samples:  # elsewhere the backward notices, and forwards are not made slower
        refuse_unreached(q.value, latents)
    tap = Tap()
    gated, companions = _gated(request, latents, tap) if request.gate else (latents, [])

    def log_joint(z: Latents) -> Tensor:
        return check_log_joint(request.log_joint(z), q.value)

    p = None if request.gate else linearize(log_joint, latents, proposal.reparameterized)
    log_p = log_joint(gated) if p is None else p.value

    def channels(coefficients: Coefficients) -> Channels:
        a, b, s = _three(coefficients)
        if coefficients.lesson is not None:
            if p is None and companions:
                tap.listener = coefficients.lesson.of_weighted_p(a, len(companions))
            _listen(coefficients.lesson, p, q)
        # Where the explicit parameters and the path share a graph, a score coefficient has sent s down the path too.
        correction = -b if s is None or not q.joined else -(b + s)
        # Joined, the total derivative (s = −b) is the density as it stands: its path needs no channel of its own.
        of_q = [(q.value, s), *q.path(None if total and q.joined else correction, s is not None)]
        if p is None:
            return [(with_ratio(log_p, companions, a, b), a), *of_q]
        return [(p.value, a), *p.path(b, True), *of_q]

    return Evaluated(_log_ratio(log_p.detach(), q.value.detach()), channels)


def _listen(lesson: Lesson, p: Linearized | None, q: Linearized) -> None:
    """Hear the slopes of the densities that are linearised."""
    if p is not None and p.tap is not None:
        p.tap.listener = lesson.of_p(p.parts)
    if q.tap is not None:
        q.tap.listener = lesson.of_q(q.parts)


def _with_prior_path(request: Request, latents: Latents) -> Evaluated:
    r"""DReG, and the parameters of each part's prior by the path from that prior's noise.

    With the path's slope :math:`b\,\partial_z \log w`, the prior's is that of all else in the log-joint times a, less
    the path's:

    .. math:: h\,\partial_z\log w + c\,\partial_z(\log q - \log p_\eta)
              = c\,\partial_z(\log p - \log p_\eta) - (c-h)\,\partial_z \log w

    So what a gate in front of the likelihood keeps back from the latents goes to the prior. The slopes of the log-prior
    and the log-proposal are taken at once, at copies.
    """
    joint, proposal = request.log_joint, request.proposal
    assert isinstance(joint, PriorAndLikelihood), "checked with the arguments"
    # Cut from the graph: the slopes of prior and proposal are partial, and must not run on through z1 → z2.
    copies = cut_copies(latents)
    log_q = _log_q(request, copies, proposal.fixed_log_prob)
    # At copies every density requires grad; whether the proposal is trained is seen at samples that do not.
    on_path = any(z.requires_grad for z in latent_leaves(latents))
    _refuse_unfit(request, latents, log_q if on_path else _log_q(request, latents))
    priors = joint.priors(copies)
    log_priors = [checked_like(p.log_prob(z), log_q) for p, z in zip(priors, latent_leaves(copies), strict=True)]
    others = _by_way_of(priors, latents) if torch.is_grad_enabled() else map_latents(lambda _: None, latents)
    gated, companions = split_gate(latents, others) if request.gate else (copies, [])
    likelihood = check_log_joint(joint.log_likelihood(gated), log_q)

    def channels(coefficients: Coefficients) -> Channels:
        a, b, _ = _three(coefficients)
        # Behind a gate the likelihood's slope need not be known: the gate divides it between latents and prior.
        rest = [] if request.gate else [slopes_at(likelihood, copies, keep_graph=True)]
        slopes = _PriorSlopes(slopes_at(log_q, copies), [slopes_at(p, copies, True) for p in log_priors], rest)
        found: list[Channel] = [(with_ratio(likelihood, companions, a, b), a)]
        for place, (z, other) in enumerate(zip(latent_leaves(latents), latent_leaves(others), strict=True)):
            path = slopes.path(place, b)
            # h ∂ log w + c ∂(log q − log p_η): what the log-joint but this prior would send times a, less what the path
            # got.
            found += [(z, path), (other, None if other is None else slopes.beside(place, a) - path)]
        return found

    log_p = sum((p.detach() for p in log_priors), likelihood.detach())
    return Evaluated(_log_ratio(log_p, log_q.detach()), channels)


def _by_way_of(priors: list[Distribution], latents: Latents) -> Latents:
    """Each part as a function of its prior's parameters; None where those are fixed."""
    left = iter(priors)
    return map_latents(lambda z: retraced(next(left), z), latents)


class _PriorSlopes(NamedTuple):
    """The slopes of the densities at every part; None for zero."""

    of_q: list[Tensor | None]
    of_priors: list[list[Tensor | None]]
    """Of each part's prior, at every part."""
    of_likelihood: list[list[Tensor | None]]
    """Empty where it stands behind a gate."""

    def path(self, place: int, b: Tensor) -> Tensor:
        """b ∂ log w/∂z, for what is not behind a gate."""
        up = [slopes[place] for slopes in [*self.of_priors, *self.of_likelihood]]
        return _weighed(b, up) - _weighed(b, [self.of_q[place]])

    def beside(self, place: int, a: Tensor) -> Tensor:
        """a times the slope of all in the log-joint but this part's own prior."""
        priors = [slopes[place] for m, slopes in enumerate(self.of_priors) if m != place]
        return _weighed(a, [*priors, *(slopes[place] for slopes in self.of_likelihood)])


def _weighed(coefficient: Tensor, slopes: list[Tensor | None]) -> Tensor:
    """The coefficient times the sum of the slopes; a scalar zero where there is none."""
    found = [times(coefficient, slope) for slope in slopes if slope is not None]
    return torch.stack(found).sum(0) if found else coefficient.new_zeros(())


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
        # A reparameterised part's log q is under the bound: log w = log p − log q, whose coefficient is c = a.
        minus_a = None if a is None else -a
        flags = [flag for flag in latent_leaves(proposal.reparameterized) if flag is not None]
        live = [flag and has_graph for flag, has_graph in zip(flags, drawn, strict=True)]
        return [(log_p, a), *((part, minus_a if on_path else s) for part, on_path in zip(parts, live, strict=True))]

    return Evaluated(_log_ratio(log_p.detach(), log_q.detach()), channels)


def _gated(request: Request, latents: Latents, tap: Tap | None = None) -> tuple[Latents, list[Tensor]]:
    """The latents that the log-joint is called on, and what their gate will be told the ratio b/a by."""
    if request.gradient.path_is_model:
        return latents, []  # nothing to scale, and the gate's two nodes would cost a tenth of a small step
    return gate(latents, request.proposal.reparameterized, tap)


def _three(coefficients: Coefficients) -> tuple[Tensor, Tensor, Tensor | None]:
    """a, b and s; where only one of a and b is used, the other is zero."""
    a, b = coefficients.model, coefficients.path
    used = b if a is None else a
    if used is None:
        raise ValueError("a pathwise Gradient must give model or path coefficients; got None for both.")
    return (
        # Zeros rather than None: b/a and −b below are tensors, and a user's Gradient may give one channel alone.
        used if a is not None else torch.zeros_like(used),
        torch.zeros_like(used) if b is None else b,
        coefficients.score,
    )


def _log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p − log q in at least float32."""
    # Promoted before the subtraction: in float16 two log-densities of −1000 leave a difference of whole nats.
    dtype = torch.promote_types(log_q.dtype, torch.float32)
    return log_p.to(dtype) - log_q.to(dtype)


def _log_q(request: Request, latents: Latents, log_prob: LogProb | None = None) -> Tensor:
    """The proposal's log-density (or ``log_prob`` in its stead), of a known shape ``(K, *batch)``."""
    proposal = request.proposal
    try:
        if isinstance(proposal.reparameterized, bool):
            found = (log_prob or proposal.log_prob)(latents)  # one density: no structure to match, and the usual case
        else:
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
    # Seen at the densities, not asked of the proposal: who has nothing to train may use any estimator.
    parts = [latents] if isinstance(latents, Tensor) else request.proposal.latent_parts(latents)
    trained, on_path = log_q.requires_grad, any(z.requires_grad for z in parts)
    if request.unfit is not None and (trained or on_path):
        raise ValueError(request.unfit)
    if request.gradient.pathwise and trained and not on_path:
        raise ValueError(_no_path_message(request.proposal))
    if not (needs_own and on_path) or request.gradient.total or not request.gradient.pathwise:
        return
    several = len(latent_leaves(latents)) > 1
    if compiling() or several or request.gradient.needs_prior:
        why = "under torch.compile" if compiling() else "as there are several parts" if several else "and of the prior"
        raise ValueError(
            f"{request.gradient!r} takes the derivative of log q at copies of the samples ({why}), but "
            f"{request.proposal.name} needs its own samples (needs_own_samples=True). Use Reparameterized()."
        )


def _no_path_message(proposal: Proposal) -> str:
    return (
        f"expected samples that carry the gradient of the parameters of {proposal.name}, as a pathwise gradient "
        "differentiates through them; got samples without a graph (drawn by sample, detached, or under no_grad). "
        "Draw them by rsample, or use a gradient that needs none: VIMCO(), ScoreFunction()."
    )
