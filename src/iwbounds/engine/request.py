"""What a call asks for, completed and checked once: the bound, a gradient that fits, the proposal, how many samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds.base import Bound, Direction
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import Latents, check_latents, check_structure, check_whole_number, latent_leaves, map_latents
from iwbounds.engine.autograd import compiling, refuse_transforms
from iwbounds.engine.ranks import BOUND, LEVEL, SHIFT, Ranks
from iwbounds.gradients.base import Coefficients, Gradient
from iwbounds.gradients.reparameterized import DReG, Reparameterized
from iwbounds.gradients.score import VIMCO, ScoreFunction
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal, cannot
from iwbounds.proposals.distributions import as_proposal
from iwbounds.proposals.prior import PriorAndLikelihood

__all__ = ["DEFAULT_NUM_SAMPLES", "Request", "complete"]

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
    """K, or this rank's share of it."""
    chunk_size: int | None
    """Below ``count``, or None."""
    backward_samples: int | None
    """Below K, or None."""
    samples: Latents | None
    differentiate: bool
    total: bool
    """Whether all that is asked for is the total derivative of one bound."""
    gate: bool
    """Whether path over model coefficients is bounded, so that one gate can serve both."""
    unfit: str | None
    """Why the gradient would be wrong for the proposal, and what is right; raised if the proposal has parameters."""
    ranks: Ranks | None = None
    """Those that the samples are sharded over."""
    first: int | None = None
    """Where this rank's samples start among all K; None: all are here."""

    @property
    def rows(self) -> slice:
        """This rank's samples among all K."""
        return slice(None) if self.first is None else slice(self.first, self.first + self.count)

    def all_samples(self) -> Latents:
        """All samples, in one call."""
        return self.draw(self.count) if self.samples is None else self.fixed(self.samples, self.count)

    def draw(self, count: int) -> Latents:
        """``count`` samples, in the graph where the gradient follows a path through them or needs what they carry."""
        # What does not fit is drawn in the graph too: a point mass has no parameters in its log q, but in its point.
        follows = self.gradient.pathwise or self.proposal.carries or self._follows_parts or self.unfit is not None
        try:
            with nullcontext() if follows else torch.no_grad():
                latents = self._sample(count)
        except NotImplementedError as error:
            raise TypeError(cannot(self.proposal, "be sampled", error)) from error
        if self.unfit is not None and any(z.requires_grad for z in latent_leaves(latents)):
            raise ValueError(self.unfit)
        return self.fixed(latents, count)

    def _sample(self, count: int) -> Latents:
        rows_of_table = self.proposal.sample_rows
        if self.ranks is None:
            return self.proposal.sample((count,))
        if rows_of_table is not None:
            # One shift for the rows of all ranks: shifted each by its own, they would not be one even set of points.
            with self.ranks.shared_stream(SHIFT):
                return rows_of_table(range(self.rows.start, self.rows.stop))
        latents = self.proposal.sample((count,))
        if self.proposal.reparameterized is True:  # continuous draws are never equal by chance
            self.ranks.note_draws(latents)
        return latents

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

    def shared_stream(self) -> AbstractContextManager[None]:
        """For what is drawn once for all ranks, a random bound say; without ranks, torch's generators as they are."""
        return nullcontext() if self.ranks is None else self.ranks.shared_stream(BOUND)

    def evaluate(self, log_w: Tensor) -> tuple[Tensor, Coefficients | None]:
        """The value of ``bound`` at all K log-weights, and coefficients where there is a backward.

        The model's are those of ``bound``; path and score are those of ``proposal_bound`` where there is one.
        """
        # A random bound is drawn once here: value and coefficients must be of the same draw.
        bound = self.bound.frozen(log_w)
        if not self.differentiate:
            return bound(log_w), None
        if self.proposal_bound is None:
            return self.gradient.evaluate(bound, log_w)
        value, c, _ = bound.differentiate(log_w)
        # Two bounds: the model's coefficient from one, path and score from the other, at the same weights.
        other = self.gradient.coefficients(self.proposal_bound.frozen(log_w), log_w)
        return value, Coefficients(c, other.path, other.score, other.extra, other.lesson)

    def own(self, coefficients: Coefficients, rows: slice | None = None) -> Coefficients:
        """What this rank's backward sends: of the coefficients of all samples those of its own.

        Every rank has the whole of a learned baseline, and sends an equal part of its gradient. What an estimator
        learns is summed over the ranks at the end of the backward, so that all of them learn the same.

        Args:
            rows: which of ``coefficients`` are this rank's; None: those of its samples among all K.
        """
        if self.ranks is None:
            return coefficients
        rows = self.rows if rows is None else rows
        channels = (coefficients.model, coefficients.path, coefficients.score)
        model, path, score = (None if c is None else c[rows] for c in channels)
        extra = tuple((tensor, multiplier / self.ranks.size) for tensor, multiplier in coefficients.extra)
        lesson = coefficients.lesson
        return Coefficients(
            model, path, score, extra, None if lesson is None else lesson.share(rows, self.ranks.all_reduce_sum)
        )


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
    ranks: Ranks | None = None,
) -> Request:
    """The arguments of :func:`iwbounds.estimate`, completed and checked; it raises what they are wrong for."""
    # Kinds first: everything below asks questions that only the right kinds can answer.
    _check_kinds(log_joint, bound, gradient, proposal_bound)
    given = as_proposal(proposal)
    if isinstance(given, ExtendedProposal):
        _refuse_extended(gradient, given)
        # From here on an extended proposal is like any other: the engine never learns of chains or hierarchies.
        log_joint, given = given.extend(log_joint)
    if num_samples is not None:
        num_samples = check_whole_number("num_samples", num_samples, 1, "Draw at least 1.")
    if bound.chooses_num_samples:
        _refuse_count(bound, given, num_samples, samples)
        # A bound that chooses K is replaced by that of this call, whose K is known: the rest need not know of it.
        bound, num_samples = _level(bound, ranks)
    count, own_count, first = _count(samples, num_samples, ranks)
    chunk_size = _part_of(own_count, "chunk_size", chunk_size)
    backward_samples = _part_of(count, "backward_samples", backward_samples)
    # None: not known yet, as they are still to be drawn; then the proposal's word is taken.
    live = None if samples is None else any(z.requires_grad for z in given.latent_parts(samples))
    chosen = gradient or _default(bound, given, count, live)
    _check_rule(bound, chosen, proposal_bound, given, samples)
    gate = proposal_bound is None and chosen.bounded_ratio(bound)
    for each in (bound,) if proposal_bound is None else (bound, proposal_bound):
        each.check_count(count)
    _refuse_parts(given, chunk_size=chunk_size, backward_samples=backward_samples)
    # Given samples without a graph may still serve a frozen proposal; a path that is no derivative serves nothing.
    if chosen.pathwise and not _has_path(given) and (samples is None or live or given.mixed):
        raise ValueError(_no_path_message(given, chosen, bound, count))
    unfit = None
    # What concerns the backward alone is no matter to those who want the value.
    differentiate = torch.is_grad_enabled()
    if differentiate:
        _refuse_learning(chosen)
        _check_prior(chosen, log_joint, proposal_bound)
        unfit = _unfit_message(chosen, given, bound, count)
        refuse_transforms()
    return Request(
        log_joint,
        given,
        bound,
        chosen,
        proposal_bound,
        # A scaled mini-batch likelihood is unbiased inside nothing but a mean of log-weights.
        Direction.NONE if scaled_likelihood and not isinstance(bound, ELBO) else bound.direction,
        own_count,
        chunk_size,
        backward_samples if differentiate else None,
        samples,
        differentiate,
        total=chosen.total and proposal_bound is None,
        gate=gate,
        unfit=unfit,
        ranks=ranks,
        first=first,
    )


def _level(bound: Bound, ranks: Ranks | None) -> tuple[Bound, int]:
    """A bound that chooses K, for one call, and its K; drawn before any sample is, and the same on all ranks."""
    with nullcontext() if ranks is None else ranks.shared_stream(LEVEL):
        return bound.frozen_level()  # type: ignore[attr-defined, no-any-return]


def _count(samples: Latents | None, num_samples: int | None, ranks: Ranks | None) -> tuple[int, int, int | None]:
    """K, how many of them are this rank's, and where these start; without ranks: K, K, None."""
    if ranks is None:
        count = check_latents(samples, num_samples) if samples is not None else num_samples or DEFAULT_NUM_SAMPLES
        return count, count, None
    if samples is None:
        shares = ranks.shares(num_samples or DEFAULT_NUM_SAMPLES)
    else:
        check_latents(samples, None)
        shares = tuple(ranks.numbers)
    # Ranks give their own parts, num_samples is of all: a rank that passes its own share would shrink K silently.
    if num_samples not in (None, sum(shares)):
        raise ValueError(
            f"expected the samples of all ranks to be num_samples = {num_samples} together; got {list(shares)}. Each "
            "rank gives its own part of them; drop num_samples."
        )
    return sum(shares), shares[ranks.rank], sum(shares[: ranks.rank])


def _refuse_count(bound: Bound, proposal: Proposal, num_samples: int | None, samples: Latents | None) -> None:
    if num_samples is not None or samples is not None:
        raise ValueError(
            f"{bound!r} draws how many samples it takes, before sampling; got num_samples= or samples=. Drop them, or "
            "call the bound on given log-weights: it is truncated then, and a lower bound."
        )
    if not proposal.independent:
        raise ValueError(f"{bound!r} is exact for independent samples; got {proposal.name} with independent=False.")


def _refuse_extended(gradient: Gradient | None, proposal: ExtendedProposal) -> None:
    if gradient is not None and not gradient.takes_extended:
        raise ValueError(
            f"{gradient!r} is proved for draws of one density; got {proposal.name} ({type(proposal).__name__}), whose "
            "latent is extended. Use DReG(), or Reparameterized()."
        )


def _refuse_learning(gradient: Gradient) -> None:
    if gradient.learns and compiling():
        raise RuntimeError(
            f"{gradient!r} learns at the end of a backward, which torch.compile cannot trace. Compile the model's "
            "modules instead; or give it what it has learned: Controlled(strengths=…), which compiles."
        )


def _check_prior(gradient: Gradient, log_joint: LogJoint, proposal_bound: Bound | None) -> None:
    """Raise where a gradient that treats the prior's parameters apart cannot see them, or is not derived."""
    if not gradient.needs_prior:
        return
    if not isinstance(log_joint, PriorAndLikelihood):
        raise ValueError(
            f"{gradient!r} needs a log-joint whose prior it can see, iw.PriorAndLikelihood(prior, log_likelihood); got "
            f"{getattr(log_joint, '__name__', type(log_joint).__name__)}. Use DReG() with a plain log-joint."
        )
    if proposal_bound is not None:
        raise ValueError(f"{gradient!r} is derived for one bound; got {proposal_bound!r} too. Drop proposal_bound.")
    if compiling():
        raise RuntimeError(f"{gradient!r} takes slopes that torch.compile cannot trace. Use DReG() inside of it.")


def _part_of(count: int, name: str, value: int | None) -> int | None:
    """An option that asks for some of the samples; None where it asks for all of them."""
    if value is None:
        return None
    size = check_whole_number(name, value, 1, "Take at least 1; None takes all.")
    # All of them is None: the engine then has one way less, without copies or a second pass.
    return size if size < count else None


def _check_kinds(log_joint: object, bound: object, gradient: object, proposal_bound: object) -> None:
    # Swapped arguments are the commonest mistake. The kinds are named, as a user's Proposal may well be callable.
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
        # iw.IWAE for iw.IWAE(): a class has all the attributes, and would fail far from here.
        found = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        made = f"Make an instance of it: {value.__name__}(…)." if isinstance(value, type) else f"Pass {example}."
        raise TypeError(f"expected {name} to be an instance of iwbounds.{kind.__name__}; got {found}. {made}")


def _check_rule(
    bound: Bound,
    gradient: Gradient,
    proposal_bound: Bound | None,
    proposal: Proposal,
    samples: Latents | None,
) -> None:
    """Raise where the gradient is wrong for the bound."""
    if proposal_bound is not None and proposal.mixed:
        raise ValueError(
            "proposal_bound needs latents that are all reparameterised, or none; got mixed ones, whose path and score "
            "share one bound. Drop proposal_bound."
        )
    # Parameters of the reverse model reach the bound by log p and log q at once: two bounds would pull them two ways.
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
    # The bound that path and score follow; the model's channel is c, which every bound has.
    gradient.check(proposal_bound or bound)


def _refuse_parts(proposal: Proposal, **options: int | None) -> None:
    used = next((name for name, value in options.items() if value is not None), None)
    if used is not None and proposal.needs_own_samples:
        raise ValueError(
            f"{used} hands slices or copies of the samples to log_prob, but {proposal.name} needs its own samples "
            "(needs_own_samples: it recognises them, or has their inverse from a cache). Drop "
            f"{used}, or give it a density that can be evaluated anywhere (cache_size=0)."
        )


# Which gradients fit.


def _candidates(bound: Bound, count: int, pathwise: bool) -> Iterator[Gradient]:
    """The estimators of choice, in the order of their variance where they fit."""
    if pathwise and bound.smooth:
        yield DReG()
    if pathwise:
        yield Reparameterized()
    if count >= 2:  # VIMCO has others to compare with from two samples on
        yield VIMCO()
    yield ScoreFunction()


def _default(bound: Bound, proposal: Proposal, count: int, live: bool | None) -> Gradient:
    """The first estimator of choice that serves; the last ones always do, and are refused where they are wrong."""
    found = _candidates(bound, count, _has_path(proposal) and live is not False)
    return next(candidate for candidate in found if not candidate.pathwise or _serves(candidate, proposal))


def _serves(candidate: Gradient, proposal: Proposal) -> bool:
    """Whether a pathwise estimator fits, and has what it differentiates."""
    # A slope at fixed parameters is taken at copies of the samples, which a density that needs its own cannot evaluate.
    at_copies = not candidate.total
    return not (at_copies and proposal.needs_own_samples) and _unfit(candidate, proposal) is None


def _has_path(proposal: Proposal) -> bool:
    return proposal.reparameterized is True or proposal.pathwise


def _unfit(gradient: Gradient, proposal: Proposal) -> str | None:
    """What the gradient assumes and the proposal does not offer; None where it fits."""
    # The reason that explains most comes first: one is given, and it should be the root of the others.
    if not proposal.fixed_support and gradient.needs_fixed_support:
        return "its support moves with its parameters (fixed_support=False), and the boundary's term would be missing"
    if not proposal.independent and gradient.needs_independence:
        return "its samples depend on each other (independent=False)"
    # Strata of learned probability, say: each has its share of samples, whose scores do not add up to a mean of zero.
    if proposal.mean_score is not None and gradient.needs_fixed_support:
        return proposal.mean_score
    if proposal.total_derivative_only and not gradient.total:
        return (
            "its log_prob knows a sample by how it was made (a transform with a cache, or without an inverse; a "
            "deterministic chain), and has no derivative at fixed parameters"
        )
    return None


def _fitting(proposal: Proposal, bound: Bound, count: int) -> str:
    """The estimators that fit, for a message."""
    found = _candidates(bound, count, proposal.pathwise)
    fitting = [repr(candidate) for candidate in found if _unfit(candidate, proposal) is None]
    if fitting:
        return f"What fits: {', '.join(fitting)}."
    return "No estimator fits it as it is (Reparameterized() would, with a path): evaluate it under torch.no_grad()."


def _unfit_message(gradient: Gradient, proposal: Proposal, bound: Bound, count: int) -> str | None:
    # Made now, raised by the draws: only they show whether the proposal has anything to train.
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
