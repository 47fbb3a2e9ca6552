r"""Is log_prob the log-density of continuous draws? Tests that need nothing but the two.

**Shape.** Let T be an involution that preserves volume, chosen independently of z. Given the pair {z, Tz}, the draw is
z with probability :math:`q(z)/(q(z)+q(Tz))`, exactly. T reflects z in a hyperplane through another draw: it moves one
direction by a distance of the order of q's width, whatever the dimension. A density that is too flat, too steep, or
not the sampler's is beaten by a guess from :math:`\beta (\log q(z) - \log q(Tz))`, or from a Gaussian fitted to other
draws. Blind to constant factors.

**Mass.** With r the density of that Gaussian, :math:`\mathbb E_{z\sim r}[q(z)/r(z)] = \int q \le 1` sees a density that
is too large, and :math:`\mathbb E_{z\sim q}[r(z)/q(z)] \le 1` one that is too small. Powerful where q is near a
Gaussian in the unconstrained coordinates of its support; valid always.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from iwbounds.checks import Latents
from iwbounds.proposals import Proposal
from iwbounds.testing.betting import guesses, stakes
from iwbounds.testing.coordinates import Coordinates

__all__ = ["DrawTest", "continuous_tests", "pair_guesses", "per_draw_stakes"]

DrawTest: TypeAlias = Callable[[Latents], Tensor]
"""Fresh draws to the factors, in nats, of bettors against them: ``(bettors, n, data)``."""

_TILTS = ((0.0, 0.0), (0.5, 0.0), (0.8, 0.0), (1.25, 0.0), (2.0, 0.0), (4.0, 0.0), (0.0, 1.0), (0.5, 0.5))
_FULL_COVARIANCE = 32


def continuous_tests(space: Coordinates, proposal: Proposal, reference: Latents) -> dict[str, DrawTest]:
    """What each test finds wrong, and the test."""
    fitted = _Gaussian(space.of(reference))

    def shape(draws: Latents) -> Tensor:
        points = space.of(draws)
        mirrored = _reflected(points, space.of(proposal.sample((len(points),))))
        log_q = torch.stack([space.log_prob(points), space.log_prob(mirrored)])
        return pair_guesses(log_q, torch.stack([fitted.log_prob(points), fitted.log_prob(mirrored)]))

    def too_small(draws: Latents) -> Tensor:
        points = space.of(draws)
        return per_draw_stakes(fitted.log_prob(points) - space.log_prob(points))

    def too_large(draws: Latents) -> Tensor:
        points = fitted.sample(len(space.of(draws)))
        return per_draw_stakes(space.log_prob(points) - fitted.log_prob(points))

    return {
        "another density tells the draws from their mirror images better": shape,
        "it is too small where the draws fall": too_small,
        "it integrates to more than one (is its normaliser, or a sum over the event, missing?)": too_large,
    }


def pair_guesses(log_q: Tensor, log_r: Tensor) -> Tensor:
    """Factors ``(bettors, n, data)`` of guessing the draw among pairs ``(2, n, *batch)``; the draw is at index 0.

    Only differences within a pair matter; they are cut at ±1e4 nats, where every guess is certain.
    """
    odds = (log_q - log_q[:1]).clamp(-1e4, 1e4)
    other = (log_r - log_r[:1]).nan_to_num().clamp(-1e4, 1e4)
    flat = torch.stack([(beta * odds + gamma * other).flatten(1) for beta, gamma in _TILTS])
    factors = guesses(odds.flatten(1), flat)
    return factors.reshape(len(factors), log_q.shape[1], -1)


def per_draw_stakes(log_e: Tensor) -> Tensor:
    """Factors ``(bettors, n, data)`` of staking on e-values ``(n, *batch)``."""
    factors = stakes(log_e.flatten())
    return factors.reshape(len(factors), len(log_e), -1)


def _reflected(points: Tensor, others: Tensor) -> Tensor:
    """Mirror images in hyperplanes through ``others``: across a random coordinate, or a random direction."""
    direction = torch.nn.functional.normalize(torch.randn_like(points), dim=-1)
    axis = one_hot(torch.randint(points.shape[-1], points.shape[:-1], device=points.device), points.shape[-1])
    along_axis = torch.rand(points.shape[:-1], device=points.device).unsqueeze(-1) < 0.5
    direction = torch.where(along_axis, axis.to(points.dtype), direction)
    return points - 2 * ((points - others) * direction).sum(-1, keepdim=True) * direction


class _Gaussian:
    """A Gaussian fitted to standardised points ``(n, *batch, d)``: full covariance, shrunk, in low dimension."""

    def __init__(self, points: Tensor) -> None:
        count, d = len(points), points.shape[-1]
        self._mean = points.mean(0)
        covariance = torch.eye(d, dtype=points.dtype, device=points.device).expand(*points.shape[1:-1], d, d)
        if d <= _FULL_COVARIANCE:
            centred = (points - self._mean).movedim(0, -1)
            own = 4 * d / (4 * d + count)
            covariance = own * covariance + (1 - own) * (centred @ centred.mT) / count
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
