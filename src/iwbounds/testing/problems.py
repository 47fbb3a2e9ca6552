"""Models with named parameters, small enough for the exact expectation of any gradient estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal

from iwbounds.proposals import LogJoint

__all__ = ["GradientProblem", "categorical_problem", "gaussian_problem"]


@dataclass(frozen=True)
class GradientProblem:
    """A model and a proposal whose parameters are told apart, to check the gradients of each.

    Args:
        build: returns ``(log_joint, proposal)`` on a fresh graph. Called with latents ``(K, n, *batch)``, ``log_joint``
            must broadcast over the axis n, along which a method puts the terms of its expectation.
        model: leaf parameters of the log-joint.
        proposal: leaf parameters of the proposal.

    >>> shift, loc = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    >>> problem = GradientProblem(lambda: (lambda z: -(z - shift) ** 2, Normal(loc, 1.0)), [shift], [loc])
    """

    build: Callable[[], tuple[LogJoint, Distribution]]
    model: Sequence[Tensor]
    proposal: Sequence[Tensor]

    @property
    def parameters(self) -> list[Tensor]:
        """All of them, the model's first."""
        return [*self.model, *self.proposal]


def categorical_problem() -> GradientProblem:
    """Two data, one categorical latent with three values each; a proposal far from the posterior."""
    table = _leaf([[0.4, -1.1, 0.7], [-0.3, 0.9, -1.6]])
    logits = _leaf([[0.3, -0.5, 0.2], [0.8, 0.1, -0.4]])

    def build() -> tuple[LogJoint, Distribution]:
        scores = table - torch.tensor([[0.5], [1.0]], dtype=torch.float64)
        return lambda z: scores.expand(*z.shape, -1).gather(-1, z.unsqueeze(-1)).squeeze(-1), Categorical(logits=logits)

    return GradientProblem(build, [table], [logits])


def gaussian_problem(num_data: int = 2) -> GradientProblem:
    """A linear-Gaussian model with a scalar latent per datum, and a proposal off in location and scale.

    The latent enters the likelihood through a slope and an offset, the proposal has a location and a log-scale.
    """
    slope, offset, log_noise = _leaf(0.8), _leaf(-0.2), _leaf(0.1)
    loc, log_scale = _leaf([0.5, -0.4]), _leaf([-0.3, 0.0])
    x = torch.tensor([1.1, -0.6], dtype=torch.float64).repeat(num_data // 2)

    def build() -> tuple[LogJoint, Distribution]:
        def log_joint(z: Tensor) -> Tensor:
            prior: Distribution = Normal(torch.zeros_like(z), 1.0, validate_args=False)
            likelihood: Distribution = Normal(slope * z + offset, log_noise.exp(), validate_args=False)
            return prior.log_prob(z) + likelihood.log_prob(x)

        repeated = num_data // 2
        return log_joint, Normal(loc.repeat(repeated), log_scale.exp().repeat(repeated))

    return GradientProblem(build, [slope, offset, log_noise], [loc, log_scale])


def _leaf(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)
