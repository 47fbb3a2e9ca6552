r"""Is log_prob the log-probability of discrete draws? Tests that need nothing but the two.

**Mass.** The probabilities of *distinct* draws add up to at most 1. No test: a fact.

**Shape.** T exchanges two values a and b, taken from other draws, of one coordinate (or of the whole event). Given the
pair {z, Tz}, the draw is z with probability :math:`q(z)/(q(z)+q(Tz))`, exactly; guessing by another temperature, or by
the frequencies of other draws, must not win.

**Size.** :math:`\mathbb E_q[r(z)/q(z)] \le 1` for r the frequencies of other draws.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import one_hot

from iwbounds.checks import Latents
from iwbounds.proposals import Proposal
from iwbounds.testing.continuous import DrawTest, pair_guesses, per_draw_stakes
from iwbounds.testing.coordinates import flattened, unflattened
from iwbounds.testing.weights import log_proposal

__all__ = ["coordinates_are_free", "discrete_tests", "excess_mass"]

_COMPARED = 64


def coordinates_are_free(proposal: Distribution | Proposal) -> bool:
    """Whether each coordinate's values may be exchanged on their own (not so for one-hot vectors)."""
    if not isinstance(proposal, Distribution) or proposal.support is None:
        return False
    support = proposal.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return bool(support.event_dim == 0)


def excess_mass(proposal: Proposal, reference: Latents, leading: int) -> float:
    """The largest sum, over data, of the probabilities of distinct draws."""
    log_q = log_proposal(proposal, reference)
    codes = _codes(flattened(reference, leading))
    order = codes.argsort(0)
    ordered = codes.gather(0, order)
    repeated = torch.cat([torch.zeros_like(ordered[:1], dtype=torch.bool), ordered[1:] == ordered[:-1]])
    return float(log_q.gather(0, order).exp().masked_fill(repeated, 0.0).sum(0).max())


def _codes(events: Tensor) -> Tensor:
    """One integer per event, ``(n, *batch)``: a random linear hash modulo 2⁶⁴, equal for equal events."""
    factors = torch.randint(-(2**62), 2**62, events.shape[-1:], device=events.device)
    return (events.long() * factors).sum(-1)


def discrete_tests(proposal: Proposal, reference: Latents, leading: int, free: bool) -> dict[str, DrawTest]:
    """What each test finds wrong, and the test."""
    compared = flattened(reference, leading)[:_COMPARED]

    def log_frequency(points: Tensor, mask: Tensor) -> Tensor:
        same = ((points.unsqueeze(1) == compared) | ~mask.unsqueeze(1)).all(-1)
        return (same.sum(1) / len(compared)).log()

    def log_q(points: Tensor) -> Tensor:
        return log_proposal(proposal, unflattened(points, reference))

    def shape(draws: Latents) -> Tensor:
        points = flattened(draws, leading)
        first, second = (flattened(proposal.sample((len(points),)), leading) for _ in range(2))
        mask = _mask(points, free)
        swapped = _exchanged(points, first, second, mask)
        frequencies = [log_frequency(z, mask).clamp_min(-5.0) for z in (points, swapped)]
        return pair_guesses(torch.stack([log_q(points), log_q(swapped)]), torch.stack(frequencies))

    def size(draws: Latents) -> Tensor:
        points = flattened(draws, leading)
        return per_draw_stakes(log_frequency(points, torch.ones_like(points, dtype=torch.bool)) - log_q(points))

    return {
        "another probability tells the draws from exchanged values better": shape,
        "it is too small where the draws fall": size,
    }


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
    return torch.where(mask & is_second & ~is_first, first, exchanged)
