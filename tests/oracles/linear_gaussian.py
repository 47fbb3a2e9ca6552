"""Linear-Gaussian models in which every quantity that the library bounds has a closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from iwbounds.proposals import HierarchicalProposal


@dataclass
class LinearHierarchy:
    """ψ ~ N(m, s²), z | ψ ~ N(aψ + b, σ²), reverse ψ | z ~ N(cz + d, t²); model z ~ N(μ, 1), x | z ~ N(wz, 1)."""

    x: float = 0.7
    values: dict[str, float] = field(
        default_factory=lambda: {
            "mixing_mean": 0.3,
            "mixing_scale": 0.8,
            "conditional_slope": 0.7,
            "conditional_shift": -0.2,
            "conditional_scale": 0.6,
            "reverse_slope": 0.5,
            "reverse_shift": 0.25,
            "reverse_scale": 0.7,
            "model_mean": 0.1,
            "model_slope": 0.8,
        }
    )

    def __post_init__(self) -> None:
        self.parameters = {name: torch.tensor(v, dtype=torch.float64) for name, v in self.values.items()}
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def log_joint(self, z: Tensor) -> Tensor:
        p = self.parameters
        prior = Normal(p["model_mean"], 1.0).log_prob(z)
        return prior + Normal(p["model_slope"] * z, 1.0).log_prob(torch.tensor(self.x, dtype=z.dtype))

    def mixing(self, batch: tuple[int, ...] = ()) -> Distribution:
        p = self.parameters
        return Normal(p["mixing_mean"].expand(batch), p["mixing_scale"].expand(batch))

    def conditional(self, psi: Tensor) -> Normal:
        p = self.parameters
        return Normal(p["conditional_slope"] * psi + p["conditional_shift"], p["conditional_scale"])

    def reverse(self, z: Tensor) -> Normal:
        p = self.parameters
        return Normal(p["reverse_slope"] * z + p["reverse_shift"], p["reverse_scale"])

    def exact_reverse(self, z: Tensor) -> Normal:
        """q(ψ | z)."""
        p = {name: value.detach() for name, value in self.parameters.items()}
        precision = p["mixing_scale"] ** -2 + (p["conditional_slope"] / p["conditional_scale"]) ** 2
        residual = (z - p["conditional_shift"]) * p["conditional_slope"] / p["conditional_scale"] ** 2
        return Normal((residual + p["mixing_mean"] / p["mixing_scale"] ** 2) / precision, precision**-0.5)

    def marginal(self) -> Normal:
        """q(z)."""
        p = {name: value.detach() for name, value in self.parameters.items()}
        variance = (p["conditional_slope"] * p["mixing_scale"]) ** 2 + p["conditional_scale"] ** 2
        return Normal(p["conditional_slope"] * p["mixing_mean"] + p["conditional_shift"], variance**0.5)

    def log_evidence(self) -> float:
        """log p(x)."""
        w, mu = self.values["model_slope"], self.values["model_mean"]
        mean, scale, x = torch.tensor([w * mu, math.sqrt(1 + w * w), self.x], dtype=torch.float64)
        return Normal(mean, scale).log_prob(x).item()

    def posterior(self) -> Normal:
        """p(z | x)."""
        w, mu = self.values["model_slope"], self.values["model_mean"]
        variance = 1 / (1 + w * w)
        mean, scale = torch.tensor([variance * (mu + w * self.x), math.sqrt(variance)], dtype=torch.float64)
        return Normal(mean, scale)

    def proposal(self, num_aux: int, reverse: bool = True, **options: object) -> HierarchicalProposal:
        return HierarchicalProposal(
            self.mixing(), self.conditional, self.reverse if reverse else None, num_aux, **options
        )

    def gradients(self) -> dict[str, float]:
        return {name: 0.0 if p.grad is None else p.grad.item() for name, p in self.parameters.items()}


@dataclass
class LinearChannel:
    """z ~ N(0, I), x | z ~ N(Wz, I) in any dimension: mutual information, entropy and encoder are known."""

    weight: Tensor

    @property
    def mutual_information(self) -> float:
        eye = torch.eye(self.weight.shape[0], dtype=self.weight.dtype)
        return 0.5 * torch.logdet(eye + self.weight @ self.weight.T).item()

    @property
    def entropy(self) -> float:
        """H(x)."""
        return self.mutual_information + 0.5 * self.weight.shape[0] * math.log(2 * math.pi * math.e)

    def prior(self) -> Distribution:
        return Independent(Normal(self.weight.new_zeros(self.weight.shape[1]), 1.0), 1)

    def likelihood(self, z: Tensor) -> Distribution:
        return Independent(Normal(z @ self.weight.T, 1.0), 1)

    def encoder(self, x: Tensor) -> Distribution:
        """p(z | x)."""
        precision = torch.eye(self.weight.shape[1], dtype=self.weight.dtype) + self.weight.T @ self.weight
        covariance = torch.linalg.inv(precision)
        return MultivariateNormal(x @ (covariance @ self.weight.T).T, covariance)
