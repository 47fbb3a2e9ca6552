"""What a call asks for, completed and checked once: the bound, a gradient that fits, the proposal, how many samples."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds import ELBO, IWAE, Bound, Direction
from iwbounds.checks import Latents, check_latents, check_structure, check_whole_number, latent_leaves, map_latents
from iwbounds.engine.autograd import refuse_transforms
from iwbounds.gradients import VIMCO, Coefficients, DReG, Gradient, Reparameterized, ScoreFunction
from iwbounds.proposals import ExtendedProposal, LogJoint, Proposal, as_proposal

__all__ = ["DEFAULT_NUM_SAMPLES", "Request", "cannot", "complete"]

DEFAULT_NUM_SAMPLES = 64


@dataclass(frozen=True)
class Request:
    """What the engine works on: all of it checked, nothing drawn yet."""

    log_joint: LogJoint
    proposal: Proposal
    bound: Bound
    gradient: Gradient
    proposal_bound: Bound | None
    direction: Direction
    count: int
    chunk_size: int | None
    """Below ``count``, or None."""
    backward_samples: int | None
    """Below ``count``, or None."""
    samples: Latents | None
    differentiate: bool
    total: bool
    """Whether all that is asked for is the total derivative of one bound."""
    gate: bool
    """Whether path over model coefficients is bounded, so that one gate can serve both."""
    unfit: str | None
    """Why the gradient would be wrong for the proposal, and what is right; raised if the proposal has parameters."""

    def all_samples(self) -> Latents:
        """All samples, in one call."""
        return self.draw(self.count) if self.samples is None else self.fixed(self.samples, self.count)

    def draw(self, count: int) -> Latents:
        """``count`` samples, in the graph where the gradient follows a path through them or needs what they carry."""
        # What does not fit is drawn in the graph too: a point mass has no parameters in its log q, but in its point.
        follows = self.gradient.pathwise or self.proposal.carries or self._follows_parts or self.unfit is not None
        try:
            with nullcontext() if follows else torch.no_grad():
                latents = self.proposal.sample((count,))
        except NotImplementedError as error:
            raise TypeError(cannot(self.proposal, "be sampled", error)) from error
        if self.unfit is not None and any(z.requires_grad for z in latent_leaves(latents)):
            raise ValueError(self.unfit)
        return self.fixed(latents, count)

    def fixed(self, latents: Latents, count: int) -> Latents:
        """``latents``, known to be ``count`` samples; detached are those that the gradient must not follow."""
        check_latents(latents, count)
        if not isinstance(self.proposal.reparameterized, bool):
            check_structure(f"samples of {self.proposal.name}", latents, self.proposal.reparameterized)
        if self.gradient.pathwise:
            return latents
        return map_latents(self._fixed_part, latents, self.proposal.reparameterized)

    @property
    def _follows_parts(self) -> bool:
        """Whether the reparameterised parts of mixed latents are followed; wake updates follow none."""
        return self.proposal.mixed and self.gradient.follows_bound

    def _fixed_part(self, z: Tensor, reparameterized: bool | None) -> Tensor:
        carried = reparameterized is None
        if carried or not z.requires_grad or (reparameterized and self._follows_parts):
            return z  # the very tensor: log_prob may recognise it
        if self.proposal.needs_own_samples:
            raise ValueError(
                f"{self.gradient!r} holds the samples fixed, but {self.proposal.name} needs its own samples "
                "(needs_own_samples=True), and they carry a graph. Draw them under torch.no_grad(), or use "
                "Reparameterized()."
            )
        return z.detach()

    def evaluate(self, log_w: Tensor) -> tuple[Tensor, Coefficients | None]:
        """The value of ``bound``, and coefficients where there is a backward.

        The model's are those of ``bound``; path and score are those of ``proposal_bound`` where there is one.
        """
        bound = self.bound.frozen(log_w)
        if not self.differentiate:
            return bound(log_w), None
        if self.proposal_bound is None:
            return self.gradient.evaluate(bound, log_w)
        value, c, _ = bound.differentiate(log_w)
        other = self.gradient.coefficients(self.proposal_bound.frozen(log_w), log_w)
        return value, Coefficients(c, other.path, other.score, other.extra)


def complete(
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
    scaled_likelihood: bool = False,
) -> Request:
    """The arguments of :func:`iwbounds.estimate`, completed and checked; it raises what they are wrong for."""
    _check_kinds(log_joint, bound, gradient, proposal_bound)
    given = as_proposal(proposal)
    if isinstance(given, ExtendedProposal):
        log_joint, given = given.extend(log_joint)
    if num_samples is not None:
        num_samples = check_whole_number("num_samples", num_samples, 1, "Draw at least 1.")
    if bound.chooses_num_samples:
        _refuse_count(bound, given, num_samples, samples)
        bound, num_samples = bound.frozen_level()  # type: ignore[attr-defined]
    count = check_latents(samples, num_samples) if samples is not None else num_samples or DEFAULT_NUM_SAMPLES
    chunk_size = _part_of(count, "chunk_size", chunk_size)
    backward_samples = _part_of(count, "backward_samples", backward_samples)
    live = None if samples is None else any(z.requires_grad for z in given.latent_parts(samples))
    chosen = gradient or _default(bound, given, count, live)
    _check_rule(bound, chosen, proposal_bound, count, given, samples)
    if given.needs_own_samples:
        _refuse_parts(given, chunk_size=chunk_size, backward_samples=backward_samples)
    # Given samples without a graph may still serve a frozen proposal; a path that is no derivative serves nothing.
    if chosen.pathwise and not _has_path(given) and (samples is None or live or given.mixed):
        raise ValueError(_no_path_message(given, chosen, bound, count))
    differentiate = torch.is_grad_enabled()
    if differentiate:
        refuse_transforms()
    return Request(
        log_joint,
        given,
        bound,
        chosen,
        proposal_bound,
        # A scaled mini-batch likelihood is unbiased inside nothing but a mean of log-weights.
        Direction.NONE if scaled_likelihood and not isinstance(bound, ELBO) else bound.direction,
        count,
        chunk_size,
        backward_samples if differentiate else None,
        samples,
        differentiate,
        total=chosen.total and proposal_bound is None,
        gate=proposal_bound is None and chosen.bounded_ratio(bound),
        unfit=_unfit_message(chosen, given, bound, count) if differentiate else None,
    )


def _refuse_count(bound: Bound, proposal: Proposal, num_samples: int | None, samples: Latents | None) -> None:
    if num_samples is not None or samples is not None:
        raise ValueError(
            f"{bound!r} draws how many samples it takes, before sampling; got num_samples= or samples=. Drop them, or "
            "call the bound on given log-weights: it is truncated then, and a lower bound."
        )
    if not proposal.independent:
        raise ValueError(f"{bound!r} is exact for independent samples; got {proposal.name} with independent=False.")


def _part_of(count: int, name: str, value: int | None) -> int | None:
    """An option that asks for some of the samples; None where it asks for all of them."""
    if value is None:
        return None
    size = check_whole_number(name, value, 1, "Take at least 1; None takes all.")
    return size if size < count else None


def _check_kinds(log_joint: object, bound: object, gradient: object, proposal_bound: object) -> None:
    if isinstance(log_joint, Distribution | Proposal | ExtendedProposal | type) or not callable(log_joint):
        given = f"the class {log_joint.__name__}" if isinstance(log_joint, type) else type(log_joint).__name__
        raise TypeError(
            f"expected log_joint to be a callable from latents to (num_samples, *batch) nats; got {given}. It comes "
            "first, then the proposal."
        )
    for name, value, kind, example in (
        ("bound", bound, Bound, "iw.IWAE()"),
        ("gradient", gradient, Gradient, "iw.DReG()"),
        ("proposal_bound", proposal_bound, Bound, "iw.MIWAE(8)"),
    ):
        if isinstance(value, kind) or (value is None and name != "bound"):
            continue
        found = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        made = f"Make an instance of it: {value.__name__}(…)." if isinstance(value, type) else f"Pass {example}."
        raise TypeError(f"expected {name} to be an instance of iwbounds.{kind.__name__}; got {found}. {made}")


def _check_rule(
    bound: Bound,
    gradient: Gradient,
    proposal_bound: Bound | None,
    count: int,
    proposal: Proposal,
    samples: Latents | None,
) -> None:
    """Raise where the gradient is wrong for the bound, or a bound cannot take so many samples."""
    if proposal_bound is not None and proposal.mixed:
        raise ValueError(
            "proposal_bound needs latents that are all reparameterised, or none; got mixed ones, whose path and score "
            "share one bound. Drop proposal_bound."
        )
    if proposal.joint_has_parameters and proposal_bound is not None:
        raise ValueError(
            "proposal_bound needs reverse=None, or another proposal without parameters in the log-joint: those follow "
            f"one bound only; got {proposal.name}. Drop proposal_bound."
        )
    if proposal.joint_has_parameters and not gradient.follows_bound:
        raise ValueError(
            f"{gradient!r} is not defined for a reverse model, or whatever else has parameters in the log-joint too: a "
            f"wake update would treat the two apart; got {proposal.name}. Use reverse=None, or DReG()."
        )
    if samples is None and any(b is not None and b.needs_posterior_samples for b in (bound, proposal_bound)):
        raise ValueError(
            f"{bound!r} is an upper bound at draws of the posterior alone, and estimate draws from the proposal. Pass "
            "posterior draws as samples=, or call iw.sandwich."
        )
    gradient.check(proposal_bound or bound)
    bound.check_count(count)
    if proposal_bound is not None:
        proposal_bound.check_count(count)


def _refuse_parts(proposal: Proposal, **options: int | None) -> None:
    used = next((name for name, value in options.items() if value is not None), None)
    if used is not None:
        raise ValueError(
            f"{used} hands slices or copies of the samples to log_prob, but {proposal.name} needs its own samples "
            "(needs_own_samples: it recognises them, or has their inverse from a cache). Drop "
            f"{used}, or give it a density that can be evaluated anywhere (cache_size=0)."
        )


def cannot(proposal: Proposal, what: str, error: NotImplementedError) -> str:
    """For a class that leaves a method out."""
    return (
        f"expected a proposal that can be sampled and has a log_prob; {proposal.name} cannot {what}"
        f"{f' ({error})' if str(error) else ''}. Wrap callables of your own: iwbounds.Proposal(sample=…, log_prob=…)."
    )


# Which gradients fit.


def _default(bound: Bound, proposal: Proposal, count: int, live: bool | None) -> Gradient:
    """The first estimator of choice that fits; where none does, one that is refused if there is anything to train."""
    pathwise = _has_path(proposal) and live is not False
    candidates: list[Gradient] = []
    if pathwise:
        candidates += (
            [DReG(), Reparameterized()] if bound.smooth and not proposal.needs_own_samples else [Reparameterized()]
        )
    candidates.append(VIMCO() if count >= 2 else ScoreFunction())
    return next((candidate for candidate in candidates if _unfit(candidate, proposal) is None), candidates[-1])


def _has_path(proposal: Proposal) -> bool:
    return proposal.reparameterized is True or proposal.pathwise


def _unfit(gradient: Gradient, proposal: Proposal) -> str | None:
    """What the gradient assumes and the proposal does not offer; None where it fits."""
    if not proposal.fixed_support and gradient.needs_fixed_support:
        return "its support moves with its parameters (fixed_support=False), and the boundary's term would be missing"
    if not proposal.independent and gradient.needs_independence:
        return "its samples depend on each other (independent=False)"
    if proposal.total_derivative_only and not gradient.total:
        return (
            "its log_prob knows a sample by how it was made (a transform with a cache, or without an inverse), and has "
            "no derivative at fixed parameters"
        )
    return None


def _fitting(proposal: Proposal, bound: Bound, count: int) -> str:
    """The estimators that fit, for a message."""
    candidates: list[Gradient] = []
    if proposal.pathwise:
        candidates += [Reparameterized(), *([DReG()] if bound.smooth else [])]
    candidates += [VIMCO()] if count >= 2 else []
    candidates.append(ScoreFunction())
    fitting = [repr(candidate) for candidate in candidates if _unfit(candidate, proposal) is None]
    if fitting:
        return f"What fits: {', '.join(fitting)}."
    return "No estimator fits it as it is (Reparameterized() would, with a path): evaluate it under torch.no_grad()."


def _unfit_message(gradient: Gradient, proposal: Proposal, bound: Bound, count: int) -> str | None:
    reason = _unfit(gradient, proposal)
    if reason is None:
        return None
    return f"{gradient!r} is wrong for {proposal.name}: {reason}. {_fitting(proposal, bound, count)}"


def _no_path_message(proposal: Proposal, gradient: Gradient, bound: Bound, count: int) -> str:
    parts = (
        "not all parts of its samples are" if proposal.mixed else "it is not (no rsample, or a straight-through one)"
    )
    return (
        f"{gradient!r} differentiates through the samples, which takes a reparameterised proposal; {proposal.name}: "
        f"{parts}. Use a proposal with rsample. {_fitting(proposal, bound, count)}"
    )
