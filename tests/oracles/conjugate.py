"""Bayesian linear regression with a Normal-Gamma prior: evidence, posterior and its draws in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal

import iwbounds as iw


@dataclass
class NormalGamma:
    """y ~ N(X b, 1/tau), b | tau ~ N(mean, (tau precision)^-1), tau ~ Gamma(shape, rate); latents {"b", "tau"}."""

    x: Tensor
    y: Tensor
    mean: Tensor
    precision: Tensor
    shape: float
    rate: float

    @classmethod
    def synthetic(cls, count: int = 42, seed: int = 0) -> NormalGamma:
        generator = torch.Generator().manual_seed(seed)
        v = torch.randn(count, generator=generator, dtype=torch.float64)
        x = torch.stack([torch.ones_like(v), v], 1)
        y = x @ torch.tensor([30.0, 2.0], dtype=torch.float64)
        y = y + 3 * torch.randn(count, generator=generator, dtype=torch.float64)
        prior = torch.diag(torch.tensor([0.06, 6.0], dtype=torch.float64))
        return cls(x, y, torch.tensor([30.0, 1.85], dtype=torch.float64), prior, 3.0, 18.0)

    def posterior(self) -> tuple[Tensor, Tensor, float, float]:
        """Mean, precision, shape and rate of the posterior."""
        precision = self.precision + self.x.T @ self.x
        mean = torch.linalg.solve(precision, self.precision @ self.mean + self.x.T @ self.y)
        quadratic = self.y @ self.y + self.mean @ self.precision @ self.mean - mean @ precision @ mean
        return mean, precision, self.shape + len(self.y) / 2, self.rate + quadratic.item() / 2

    def log_evidence(self) -> float:
        _, precision, shape, rate = self.posterior()
        determinants = 0.5 * (torch.logdet(self.precision) - torch.logdet(precision)).item()
        gammas = (
            self.shape * math.log(self.rate) - math.lgamma(self.shape) - shape * math.log(rate) + math.lgamma(shape)
        )
        return determinants + gammas - len(self.y) / 2 * math.log(2 * math.pi)

    def log_joint(self, z: dict[str, Tensor]) -> Tensor:
        b, tau = z["b"], z["tau"]
        prior = Gamma(*_numbers(self.shape, self.rate)).log_prob(tau) + _gaussian(b, self.mean, self.precision, tau)
        return prior + Normal(b @ self.x.T, tau.rsqrt().unsqueeze(-1)).log_prob(self.y).sum(-1)

    def proposal(self, widen: float = 1.0) -> iw.Proposal:
        """The posterior (``widen=1``), or one with ``widen`` times its variances."""
        mean, precision, shape, rate = self.posterior()
        gamma = Gamma(*_numbers(shape / widen, rate / widen))
        precision = precision / widen

        def sample(size: tuple[int]) -> dict[str, Tensor]:
            tau = gamma.sample(size)
            standard = MultivariateNormal(torch.zeros_like(mean), precision_matrix=precision).sample(size)
            return {"b": mean + standard * tau.rsqrt().unsqueeze(-1), "tau": tau}

        def log_prob(z: dict[str, Tensor]) -> Tensor:
            return gamma.log_prob(z["tau"]) + _gaussian(z["b"], mean, precision, z["tau"])

        return iw.Proposal(sample, log_prob, reparameterized=False)


def _gaussian(b: Tensor, mean: Tensor, precision: Tensor, tau: Tensor) -> Tensor:
    d = b - mean
    normaliser = 0.5 * torch.logdet(precision) + 0.5 * len(mean) * (tau.log() - math.log(2 * math.pi))
    return normaliser - 0.5 * tau * ((d @ precision) * d).sum(-1)


def _numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]
