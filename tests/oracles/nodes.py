"""Distributions that draw prepared noise, so that an expectation is a weighted sum over a Gauss-Hermite grid."""

from __future__ import annotations

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.distributions import Normal


def gauss_hermite_grid(points: int, dims: int) -> tuple[Tensor, Tensor]:
    """Nodes ``(dims, points**dims)`` of standard normal noise, and their weights ``(points**dims)``."""
    nodes, weights = (torch.tensor(a, dtype=torch.float64) for a in hermegauss(points))
    weights = weights / weights.sum()
    grid = torch.cartesian_prod(*[nodes] * dims).reshape(-1, dims)
    return grid.T.contiguous(), torch.cartesian_prod(*[weights] * dims).reshape(-1, dims).prod(-1)


class NodeNormal(Normal):
    """A normal whose ``rsample`` uses given noise, of exactly the shape that is asked for."""

    def __init__(self, normal: Normal, noise: Tensor) -> None:
        super().__init__(normal.loc.expand(normal.batch_shape), normal.scale.expand(normal.batch_shape))
        self._noise = noise

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        assert self._noise.shape == torch.Size(sample_shape) + self.batch_shape
        return self.loc + self.scale * self._noise
