r"""Is log_prob the log-density of what is drawn? Tests that need nothing but the two.

**Shape, of continuous parts.** Let T be an involution that preserves volume, chosen independently of z. Given the pair
{z, Tz}, the draw is z with probability :math:`q(z)/(q(z)+q(Tz))`, exactly. T reflects z in a hyperplane through another
draw: it moves one direction by a distance of the order of q's width, whatever the dimension. A density that is too
flat, too steep, or not the sampler's is beaten by a guess from :math:`\beta (\log q(z) - \log q(Tz))`, or from a
Gaussian fitted to other draws. Discrete parts stay where they are. Blind to constant factors.

**Size, of continuous latents.** With r the density of that Gaussian, :math:`\mathbb E_{z\sim r}[q(z)/r(z)] = \int q
\le 1` sees a density that is too large, and :math:`\mathbb E_{z\sim q}[r(z)/q(z)] \le 1` one that is too small.
Powerful where q is near a Gaussian in the unconstrained coordinates of its support; valid always.

**Mass, of discrete latents.** The probabilities of *distinct* draws add up to at most 1. No test: a fact.

**Shape, of discrete parts.** T exchanges two values a and b, taken from other draws, of one coordinate (or of all).
Given the pair {z, Tz}, guessing by another temperature, or by the frequencies of other draws, must not win.

**Size, of discrete latents.** :math:`\mathbb E_q[r(z)/q(z)] \le 1` for r the frequencies of other draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import one_hot

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.proposals.base import Proposal
from iwbounds.testing.betting import EProcess, guesses, stakes
from iwbounds.testing.charts import Coordinates, chosen_leaves, flattened, is_discrete, replaced, support_of
from iwbounds.testing.densities import log_proposal

__all__ = ["draw", "draws_fault"]

DrawTest: TypeAlias = Callable[[Latents], Tensor]
"""Fresh draws to the factors, in nats, of bettors against them: ``(bettors, n, data)``."""

_REFERENCE, _DRAWS, _ROUNDS, _COMPARED, _FULL_COVARIANCE = 256, 4096, 8, 64, 32
_TILTS = ((0.0, 0.0), (0.5, 0.0), (0.8, 0.0), (1.25, 0.0), (2.0, 0.0), (4.0, 0.0), (0.0, 1.0), (0.5, 0.5))


def draw(proposal: Proposal, size: int) -> Latents:
    """``size`` independent draws: of dependent ones, the first of as many calls."""
    if proposal.independent:
        return proposal.sample((size,))
    # Draws of one call depend on each other, and every bet here is on independent ones.
    calls = [proposal.sample((1,)) for _ in range(size)]
    return map_latents(lambda *parts: torch.cat(parts), calls[0], *calls[1:])


def draws_fault(given: Distribution | Proposal, proposal: Proposal, batch: torch.Size, alpha: float) -> str | None:
    """What is wrong with the proposal's log_prob, or None. Draws from torch's generators; call it without a graph.

    Args:
        given: the user's proposal, which is asked for its support.
        proposal: the engine's view of it.
        batch: the batch shape.
        alpha: the probability of a false alarm, over all tests.

    Raises:
        UnjudgedError: no sound test is known.
    """
    reference, leading = draw(proposal, _REFERENCE), 1 + len(batch)
    discrete = [is_discrete(z) for z in latent_leaves(reference)]
    tests: dict[str, DrawTest] = {}
    if all(discrete) and not proposal.needs_own_samples:
        mass = _excess_mass(proposal, reference, leading)
        # Rounding of a few hundred float32 probabilities is below this; a missing normaliser is far above.
        if mass > 1.001:
            return f"the probabilities of distinct draws add up to {mass:.4g} > 1"
    if any(discrete):
        tests |= _discrete_tests(proposal, reference, discrete, leading, _coordinates_are_free(given))
    if not all(discrete):
        space = Coordinates(given, proposal, reference, [not d for d in discrete], batch)
        tests |= _continuous_tests(space, proposal, reference, mixed=any(discrete))
    # The data count as draws too: about 4096 in all, looked at in eight rounds.
    size = max(32, math.ceil(_DRAWS / _ROUNDS / max(1, batch.numel())))
    size = size if proposal.independent else min(size, 64)  # one call for each
    for fault, test in tests.items():
        # alpha is split evenly: by the union bound all tests together raise a false alarm with at most alpha.
        if at := _rejected_at(test, proposal, size, alpha / len(tests)):
            return f"{fault} (certain after {at} draws, at alpha = {alpha:g})"
    return None


def _rejected_at(test: DrawTest, proposal: Proposal, size: int, alpha: float) -> int | None:
    """Play on all data together, and on each datum alone: either may see a fault that the other drowns."""
    together, apart = EProcess(alpha / 2), EProcess(alpha / 2)
    for _ in range(_ROUNDS):
        factors = test(draw(proposal, size))
        together.add(factors.flatten(1))
        apart.add(factors.transpose(1, 2).flatten(0, 1))
        if together.rejected_at or apart.rejected_at:
            break
    return together.rejected_at or apart.rejected_at


def _continuous_tests(space: Coordinates, proposal: Proposal, reference: Latents, mixed: bool) -> dict[str, DrawTest]:
    """What each test finds wrong, and the test."""
    points = space.of(reference)
    fitted = _Gaussian(points.at, points.inside)

    def own(draws: Latents) -> tuple[Tensor, Tensor, Tensor]:
        points = space.of(draws)
        # The very tensors that were drawn: log_prob may not know them by value.
        return points.at, log_proposal(proposal, draws).double() + points.log_jacobian, points.inside

    def shape(draws: Latents) -> Tensor:
        at, log_q, inside = own(draws)
        # Other draws to reflect through: the involution must be chosen without a look at z.
        mirrored = _reflected(at, space.of(draw(proposal, len(at))).at)
        # The points are read back after rounding: the density there is that of what the latents really hold.
        points, log_q_mirrored = space.moved(mirrored, draws)
        # Conditioned on both points being inside, the odds are still those of the densities.
        out = ~(inside & points.inside)
        log_pair = torch.stack([log_q, log_q_mirrored]).masked_fill(out, 0.0)  # equal odds: nothing is won or lost
        log_r = torch.stack([fitted.log_prob(at), fitted.log_prob(mirrored)]).masked_fill(out, 0.0)
        return _pair_guesses(log_pair, log_r)

    def too_small(draws: Latents) -> Tensor:
        at, log_q, inside = own(draws)
        return _stakes_per_draw((fitted.log_prob(at) - log_q).masked_fill(~inside, -torch.inf))

    def too_large(draws: Latents) -> Tensor:
        # Draws of r, not of q: E_r[q/r] is the integral of q over the region.
        at = fitted.sample(len(latent_leaves(draws)[0]))
        points, log_q = space.moved(at, draws)
        return _stakes_per_draw((log_q - fitted.log_prob(at)).masked_fill(~points.inside, -torch.inf))

    tests: dict[str, DrawTest] = {} if mixed else {"it is too small where the draws fall": too_small}
    if proposal.needs_own_samples:
        return tests  # nothing else can be asked of a density that knows its own samples only
    tests = {"another density tells the draws from their mirror images better": shape} | tests
    if not mixed:
        large = "it integrates to more than one (is its normaliser, or a sum over the event, missing?)"
        tests[large] = too_large
    return tests


def _pair_guesses(log_q: Tensor, log_r: Tensor) -> Tensor:
    """Factors ``(bettors, n, data)`` of guessing the draw among pairs ``(2, n, *batch)``; the draw is at index 0.

    Only differences within a pair matter; they are cut at ±1e4 nats, where every guess is certain.
    """
    # Relative to the draw's own, so that the constant of the density drops out.
    odds = (log_q - log_q[:1]).clamp(-1e4, 1e4)
    other = (log_r - log_r[:1]).nan_to_num().clamp(-1e4, 1e4)
    flat = torch.stack([(beta * odds + gamma * other).flatten(1) for beta, gamma in _TILTS])
    factors = guesses(odds.flatten(1), flat)
    return factors.reshape(len(factors), log_q.shape[1], -1)


def _stakes_per_draw(log_e: Tensor) -> Tensor:
    """Factors ``(bettors, n, data)`` of staking on e-values ``(n, *batch)``."""
    factors = stakes(log_e.flatten())
    return factors.reshape(len(factors), len(log_e), -1)


def _reflected(points: Tensor, others: Tensor) -> Tensor:
    """Mirror images in hyperplanes through ``others``: across a random coordinate, or a random direction."""
    direction = torch.nn.functional.normalize(torch.randn_like(points), dim=-1)
    # A fault in one coordinate is drowned in a random direction of many, and one in a correlation is blind to axes.
    axis = one_hot(torch.randint(points.shape[-1], points.shape[:-1], device=points.device), points.shape[-1])
    along_axis = torch.rand(points.shape[:-1], device=points.device).unsqueeze(-1) < 0.5
    direction = torch.where(along_axis, axis.to(points.dtype), direction)
    return points - 2 * ((points - others) * direction).sum(-1, keepdim=True) * direction


class _Gaussian:
    """A Gaussian fitted to standardised points ``(n, *batch, d)``: full covariance, shrunk, in low dimension."""

    def __init__(self, points: Tensor, inside: Tensor) -> None:
        count, d = inside.sum(0).unsqueeze(-1), points.shape[-1]
        self._mean = torch.where(inside.unsqueeze(-1), points, 0.0).sum(0) / count
        covariance = torch.eye(d, dtype=points.dtype, device=points.device).expand(*points.shape[1:-1], d, d)
        if d <= _FULL_COVARIANCE:
            centred = torch.where(inside.unsqueeze(-1), points - self._mean, 0.0).movedim(0, -1)
            # Shrunk to the identity by as much as d dimensions outweigh the draws: always positive definite.
            own = (4 * d / (4 * d + count)).unsqueeze(-1)
            covariance = own * covariance + (1 - own) * (centred @ centred.mT) / count.unsqueeze(-1)
        self._factor = torch.linalg.cholesky(covariance)

    def log_prob(self, points: Tensor) -> Tensor:
        """``(n, *batch)`` nats."""
        white = torch.linalg.solve_triangular(self._factor, (points - self._mean).unsqueeze(-1), upper=False)
        log_det = self._factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        quadratic: Tensor = white.squeeze(-1).square().sum(-1)
        log_density: Tensor = -0.5 * quadratic - log_det - points.shape[-1] * math.log(2 * math.pi) / 2
        return log_density

    def sample(self, count: int) -> Tensor:
        """``(count, *batch, d)``."""
        noise = torch.randn(count, *self._mean.shape, dtype=self._mean.dtype, device=self._mean.device)
        points: Tensor = self._mean + (self._factor @ noise.unsqueeze(-1)).squeeze(-1)
        return points


def _coordinates_are_free(proposal: Distribution | Proposal) -> bool:
    """Whether each coordinate's values may be exchanged on their own (not so for one-hot vectors)."""
    support = support_of(proposal)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is not None and support.event_dim == 0


def _excess_mass(proposal: Proposal, reference: Latents, leading: int) -> float:
    """The largest sum, over data, of the probabilities of distinct draws."""
    log_q = log_proposal(proposal, reference)
    # Hashed to one number per draw, as torch.unique works on no axis per datum.
    codes = _codes(flattened(list(latent_leaves(reference)), leading))
    order = codes.argsort(0)
    ordered = codes.gather(0, order)
    repeated = torch.cat([torch.zeros_like(ordered[:1], dtype=torch.bool), ordered[1:] == ordered[:-1]])
    return float(log_q.gather(0, order).exp().masked_fill(repeated, 0.0).sum(0).max())


def _codes(events: Tensor) -> Tensor:
    """One integer per event, ``(n, *batch)``: a random linear hash modulo 2⁶⁴, equal for equal events."""
    # Integer overflow wraps, which is the modulus 2⁶⁴; two different events collide with probability about 2⁻⁶².
    factors = torch.randint(-(2**62), 2**62, events.shape[-1:], device=events.device)
    return (events.long() * factors).sum(-1)


def _discrete_tests(
    proposal: Proposal, reference: Latents, discrete: Sequence[bool], leading: int, free: bool
) -> dict[str, DrawTest]:
    """What each test finds wrong, and the test."""
    if proposal.needs_own_samples:
        return {}

    def values(latents: Latents) -> Tensor:
        return flattened(chosen_leaves(latents, discrete), leading)

    def log_q(points: Tensor, draws: Latents) -> Tensor:
        own = chosen_leaves(draws, discrete)
        pieces = points.split([math.prod(z.shape[leading:]) for z in own], -1)  # type: ignore[no-untyped-call]
        parts = [piece.reshape(z.shape).to(z.dtype) for piece, z in zip(pieces, own, strict=True)]
        return log_proposal(proposal, replaced(draws, discrete, parts))

    # The frequencies of other draws, so that the guess does not depend on what it is about.
    compared = values(reference)[:_COMPARED]

    def log_frequency(points: Tensor, mask: Tensor) -> Tensor:
        same = ((points.unsqueeze(1) == compared) | ~mask.unsqueeze(1)).all(-1)
        return (same.sum(1) / len(compared)).log()

    def shape(draws: Latents) -> Tensor:
        points = values(draws)
        first, second = (values(draw(proposal, len(points))) for _ in range(2))
        mask = _mask(points, free)
        swapped = _exchanged(points, first, second, mask)
        # A value that is not among 64 draws is rare, not impossible: log 1/150.
        frequencies = [log_frequency(z, mask).clamp_min(-5.0) for z in (points, swapped)]
        return _pair_guesses(torch.stack([log_q(points, draws), log_q(swapped, draws)]), torch.stack(frequencies))

    def size(draws: Latents) -> Tensor:
        points = values(draws)
        frequency = log_frequency(points, torch.ones_like(points, dtype=torch.bool))
        return _stakes_per_draw(frequency - log_q(points, draws))

    tests: dict[str, DrawTest] = {"another probability tells the draws from exchanged values better": shape}
    return tests | ({"it is too small where the draws fall": size} if all(discrete) else {})


def _mask(points: Tensor, free: bool) -> Tensor:
    """The coordinates whose values are exchanged: a random one, or all where they are not free."""
    size = points.shape[-1]
    if not free:
        return torch.ones_like(points, dtype=torch.bool)
    return one_hot(torch.randint(size, points.shape[:-1], device=points.device), size).bool()


def _exchanged(points: Tensor, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """``points`` with the values ``first`` and ``second`` of the masked coordinates exchanged where they occur."""
    is_first, is_second = (((points == other) | ~mask).all(-1, keepdim=True) for other in (first, second))
    exchanged = torch.where(mask & is_first, second, points)
    # ~is_first: where both values are the same, an exchange changes nothing.
    return torch.where(mask & is_second & ~is_first, first, exchanged)
