"""What a call asks for, completed and checked: how many latents, with or without a graph, and which gradient."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds import IWAE, Bound
from iwbounds.checks import check_latents
from iwbounds.engine.redraws import Draws
from iwbounds.engine.rule import Rule
from iwbounds.gradients import VIMCO, DReG, Gradient, Reparameterized, ScoreFunction
from iwbounds.latents import Latents, latent_leaves, map_latents
from iwbounds.proposals import LogJoint, Proposal, as_proposal
from iwbounds.proposals.base import ExtendedProposal

__all__ = ["DEFAULT_NUM_SAMPLES", "Prepared", "prepare"]

DEFAULT_NUM_SAMPLES = 64


class Prepared(NamedTuple):
    """What the engine works on: all of it checked, nothing drawn yet."""

    log_joint: LogJoint
    proposal: Proposal
    rule: Rule
    draws: Draws


def prepare(
    log_joint: LogJoint,
    proposal: Distribution | Proposal,
    bound: Bound = IWAE(),
    gradient: Gradient | None = None,
    *,
    proposal_bound: Bound | None = None,
    num_samples: int | None = None,
    samples: Latents | None = None,
) -> Prepared:
    """The arguments of :func:`iwbounds.estimate`, completed and checked; it raises what they are wrong for."""
    if isinstance(proposal, ExtendedProposal):
        log_joint, proposal = proposal.extend(log_joint)
    given = as_proposal(proposal)
    log_joint, proposal = given.extended(log_joint)
    gradient = gradient or default_gradient(bound, proposal, num_samples, samples)
    given.check(gradient, proposal_bound)
    rule = Rule(bound, gradient, proposal_bound)
    return Prepared(log_joint, proposal, rule, prepare_draws(proposal, rule, num_samples, samples))


def default_gradient(bound: Bound, proposal: Proposal, num_samples: int | None, samples: Latents | None) -> Gradient:
    """The estimator of choice for ``bound``, given what the proposal, or the samples at hand, can carry."""
    if samples is None:
        pathwise, count = proposal.pathwise, num_samples or DEFAULT_NUM_SAMPLES
    else:
        pathwise = any(z.requires_grad for z in latent_leaves(samples)) and not proposal.mixed
        count = check_latents(samples, num_samples)
    if pathwise:
        return DReG() if bound.smooth and proposal.independent and proposal.fixed_support else Reparameterized()
    return VIMCO() if count >= 2 else ScoreFunction()


def prepare_draws(proposal: Proposal, rule: Rule, num_samples: int | None, samples: Latents | None) -> Draws:
    """The latents of one estimate, checked but not drawn yet.

    They will carry a graph where the gradient follows the path through them, and be detached elsewhere.

    Raises:
        ValueError: ``num_samples`` contradicts ``samples`` or does not suit the rule; the gradient is pathwise and the
            proposal cannot be reparameterised.
    """
    if samples is not None:
        count = check_latents(samples, num_samples)
        rule.check(count, proposal.mixed)
        return Draws(count, lambda _: keep_paths(samples, proposal, rule.gradient))
    count = DEFAULT_NUM_SAMPLES if num_samples is None else num_samples
    rule.check(count, proposal.mixed)
    if rule.gradient.pathwise and not proposal.pathwise:
        raise ValueError(_no_path_message(proposal, rule.gradient))
    return Draws(count, partial(draw, proposal, rule.gradient), proposal.samples_per_call)


def draw(proposal: Proposal, gradient: Gradient, count: int) -> Latents:
    """``count`` new samples."""
    with nullcontext() if follows_path(proposal, gradient) else torch.no_grad():
        latents = proposal.sample((count,))
    check_latents(latents, count)
    return keep_paths(latents, proposal, gradient)


def follows_path(proposal: Proposal, gradient: Gradient) -> bool:
    """Whether any latent carries a gradient: all of them, or the reparameterised parts of mixed latents."""
    return gradient.pathwise or (proposal.mixed and gradient.follows_bound)


def keep_paths(latents: Latents, proposal: Proposal, gradient: Gradient) -> Latents:
    """Detach the latents, or the parts of mixed latents, that ``gradient`` must not follow."""
    if gradient.pathwise:
        return latents
    if follows_path(proposal, gradient):
        return map_latents(lambda z, live: z if live else z.detach(), latents, proposal.reparameterized)
    return map_latents(Tensor.detach, latents)


def _no_path_message(proposal: Proposal, gradient: Gradient) -> str:
    parts = "not all parts of its samples are" if proposal.mixed else "it is not (it has no rsample)"
    return (
        f"{gradient!r} differentiates through the samples, which takes a reparameterised proposal; {proposal.name}: "
        f"{parts}. Use a proposal with rsample, or a gradient that needs none: VIMCO(), ScoreFunction()."
    )
