"""Which densities see which latents, for each kind of gradient, and which coefficient goes where.

A route evaluates both log-densities once, when it is made, and later turns coefficients into channels for
:func:`iwbounds.engine.routing.attach`. The coefficients need the log-weights, hence the two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from iwbounds.checks import check_latents, check_log_density, check_log_joint, full_precision
from iwbounds.engine.gates import gate
from iwbounds.engine.routing import Channel, Linearized, pullback
from iwbounds.engine.rule import Rule
from iwbounds.gradients import Coefficients
from iwbounds.latents import Latents, latent_leaves, map_latents
from iwbounds.proposals import LogJoint, LogProb, Proposal

__all__ = ["Channels", "GatedRoute", "PathRoute", "Route", "ScoreRoute", "TotalRoute", "TracedPathRoute", "route_for"]

Channels: TypeAlias = Sequence[Channel]


class Route(Protocol):
    """The log-weights of all samples, and the channels that lead from them to the parameters."""

    log_w: Tensor
    """Detached log p − log q, ``(K, *batch)``, in at least float32."""

    def __init__(self, log_joint: LogJoint, proposal: Proposal, latents: Latents) -> None: ...

    def channels(self, coefficients: Coefficients) -> Channels:
        """Pairs of a tensor in the graph and the multiplier that its gradient gets."""


def route_for(rule: Rule, proposal: Proposal) -> type[Route]:
    """The cheapest route that serves the rule's gradient."""
    if not rule.gradient.pathwise:
        return ScoreRoute
    if rule.total:
        return TotalRoute
    if proposal.fixed_log_prob is not None and not rule.gradient.total:
        return GatedRoute
    return TracedPathRoute if torch.compiler.is_compiling() else PathRoute


class TotalRoute:
    """The total derivative: both densities at the live latents, so that their difference has coefficient a."""

    def __init__(self, log_joint: LogJoint, proposal: Proposal, latents: Latents) -> None:
        log_q = evaluate_proposal(proposal, latents)
        refuse_missing_path(proposal, latents, log_q)
        self._live = log_ratio(check_log_joint(log_joint(latents), log_q), log_q)
        self.log_w = self._live.detach()

    def channels(self, coefficients: Coefficients) -> Channels:
        return [(self._live, coefficients.model)]


class PathRoute:
    """Three separate channels: the log-joint behind a gate, the log-proposal linearised."""

    def __init__(self, log_joint: LogJoint, proposal: Proposal, latents: Latents) -> None:
        self._linearized = Linearized(lambda z: evaluate_proposal(proposal, z), latents)
        self._log_q = self._linearized.value
        refuse_missing_path(proposal, latents, self._log_q)
        self._path = self._linearized.path(latents)
        self._gate = gate()
        self._log_p = check_log_joint(log_joint(self._gate(latents)), self._log_q)
        self.log_w = log_ratio(self._log_p.detach(), self._log_q.detach())

    def channels(self, coefficients: Coefficients) -> Channels:
        (a, b), s = coefficients.model_and_path, coefficients.score
        self._linearized.keep_graph = s is not None
        return [self._gate.channel(self._log_p, a, b), (self._path, -b), (self._log_q, s)]


class GatedRoute:
    """Both densities behind one gate, the log-proposal with its parameters detached: for proposals that can do that.

    It never sees the proposal's explicit parameters; a gradient with a score coefficient costs one more evaluation.
    """

    def __init__(self, log_joint: LogJoint, proposal: Proposal, latents: Latents) -> None:
        self._proposal, self._latents, self._gate = proposal, latents, gate()
        gated = self._gate(latents)
        live = any(z.requires_grad for z in latent_leaves(gated))
        log_q = evaluate_proposal(proposal, gated, proposal.fixed_log_prob if live else None)
        refuse_missing_path(proposal, gated, log_q)
        self._live = log_ratio(check_log_joint(log_joint(gated), log_q), log_q)
        self.log_w = self._live.detach()

    def channels(self, coefficients: Coefficients) -> Channels:
        (a, b), s = coefficients.model_and_path, coefficients.score
        live = [self._gate.channel(self._live, a, b)]
        if s is None:
            return live
        return [*live, (evaluate_proposal(self._proposal, map_latents(Tensor.detach, self._latents)), s)]


class TracedPathRoute:
    """:class:`PathRoute` for ``torch.compile``, which cannot trace autograd.grad inside a backward.

    The log-proposal's pullback to the samples is taken on the way, by ``torch.func``.
    """

    def __init__(self, log_joint: LogJoint, proposal: Proposal, latents: Latents) -> None:
        self._latents = [z for z in latent_leaves(latents) if z.requires_grad]
        self._log_q, self._pull_q = pullback(lambda z: evaluate_proposal(proposal, z), latents)
        refuse_missing_path(proposal, latents, self._log_q)
        self._gate = gate()
        self._log_p = check_log_joint(log_joint(self._gate(latents)), self._log_q)
        self.log_w = log_ratio(self._log_p.detach(), self._log_q.detach())

    def channels(self, coefficients: Coefficients) -> Channels:
        (a, b), s = coefficients.model_and_path, coefficients.score
        slopes = zip(self._latents, self._pull_q(-b), strict=True)
        return [self._gate.channel(self._log_p, a, b), *slopes, (self._log_q, s)]


class ScoreRoute:
    """Samples held fixed: the explicit parameters of both densities.

    Of mixed latents, the reparameterised parts are live, and enter every density. Their own log-proposals are then
    part of the total derivative (coefficient −a), and those of the fixed parts get the score coefficient.
    """

    def __init__(self, log_joint: LogJoint, proposal: Proposal, latents: Latents) -> None:
        self._live = [z.requires_grad for z in latent_leaves(latents)]
        self._parts = proposal.log_prob_parts(latents)
        self._log_q = checked_log_q(sum(self._parts[1:], self._parts[0]), latents)
        self._log_p = check_log_joint(log_joint(latents), self._log_q)
        self.log_w = log_ratio(self._log_p.detach(), self._log_q.detach())

    def channels(self, coefficients: Coefficients) -> Channels:
        a, s = coefficients.model, coefficients.score
        if len(self._parts) == 1:
            return [(self._log_p, a), (self._log_q, s)]
        minus_a = None if a is None else -a
        parts = [(part, minus_a if live else s) for part, live in zip(self._parts, self._live, strict=True)]
        return [(self._log_p, a), *parts]


def log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p − log q in at least float32."""
    dtype = full_precision(log_q.dtype)
    return log_p.to(dtype) - log_q.to(dtype)


def evaluate_proposal(proposal: Proposal, latents: Latents, log_prob: LogProb | None = None) -> Tensor:
    """The proposal's log-density (or ``log_prob`` in its stead), of a known shape ``(K, *batch)``."""
    parts = proposal.log_prob_parts(latents, log_prob)
    return checked_log_q(sum(parts[1:], parts[0]), latents)


def checked_log_q(log_q: object, latents: Latents) -> Tensor:
    """``log_q``, known to be a floating tensor with the samples' number along its first axis."""
    return check_log_density("the proposal's log_prob", log_q, check_latents(latents, None))


def refuse_missing_path(proposal: Proposal, latents: Latents, log_q: Tensor) -> None:
    """Raise where the proposal's parameters want a gradient that no latent carries."""
    if log_q.requires_grad and not any(z.requires_grad for z in latent_leaves(latents)):
        raise ValueError(
            f"expected samples that carry the gradient of the parameters of {proposal.name}, as a pathwise gradient "
            "differentiates through them; got samples without a graph (drawn by sample, detached, or under no_grad). "
            "Draw them by rsample, or use a gradient that needs none: VIMCO(), ScoreFunction()."
        )
