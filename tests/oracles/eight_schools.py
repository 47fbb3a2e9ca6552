"""Rubin's eight schools: evidence by quadrature, and independent draws of the posterior, for any library's model."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from scipy.stats import halfcauchy, norm
from torch import Tensor
from torch.distributions import HalfCauchy, Normal, StudentT

import iwbounds as iw

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
_Y, _SIGMA = torch.from_numpy(EFFECTS), torch.from_numpy(ERRORS)
EVIDENCE = -31.311347352293
"""θ_j ~ N(μ, τ²), y_j ~ N(θ_j, σ_j²), μ ~ N(0, 5²), τ half-Cauchy of scale 5."""


@cache
def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """log τ on a grid, log p(y, log τ) with θ and μ integrated out, and μ's mean and scale given τ and y."""
    log_tau = np.linspace(math.log(1e-6), math.log(1e4), 20_001)
    tau = np.exp(log_tau)
    # y_j = μ + noise of variance v_j, μ ~ N(0, 25): a conjugate Gaussian for every τ.
    v = ERRORS**2 + tau[:, None] ** 2
    precision = 1 / 25 + (1 / v).sum(1)
    mean = (EFFECTS / v).sum(1) / precision
    log_y = norm.logpdf(EFFECTS, mean[:, None], np.sqrt(v)).sum(1)  # at μ = its mean: Bayes' rule gives the rest
    log_y += norm.logpdf(mean, 0, 5) - norm.logpdf(0, 0, precision**-0.5)
    return log_tau, log_y + halfcauchy.logpdf(tau, scale=5) + log_tau, mean, precision**-0.5


def evidence() -> float:
    """By the trapezoidal rule over log τ."""
    log_tau, log_p, _, _ = _grid()
    return float(np.log(np.trapezoid(np.exp(log_p - log_p.max()), log_tau)) + log_p.max())


def posterior_draws(count: int, seed: int) -> dict[str, np.ndarray]:
    """Independent draws of the posterior: log τ from its grid, then μ and θ from their Gaussians."""
    rng = np.random.default_rng(seed)
    log_tau, log_p, mean, scale = _grid()
    p = np.exp(log_p - log_p.max())
    at = rng.choice(len(p), size=count, p=p / p.sum())
    # Spread over the cell, so that draws have the density and not its grid.
    tau = np.exp(log_tau[at] + (rng.random(count) - 0.5) * (log_tau[1] - log_tau[0]))
    mu = mean[at] + scale[at] * rng.standard_normal(count)
    precision = 1 / ERRORS**2 + 1 / tau[:, None] ** 2
    centre = (EFFECTS / ERRORS**2 + mu[:, None] / tau[:, None] ** 2) / precision
    return {"mu": mu, "tau": tau, "theta": centre + precision**-0.5 * rng.standard_normal((count, 8))}


def log_joint(z: dict[str, Tensor]) -> Tensor:
    """log p(y, μ, τ, θ) of latents ``mu`` and ``tau`` (K,) and ``theta`` (K, 8), float64."""
    mu, tau, theta = z["mu"], z["tau"], z["theta"]
    school = Normal(mu[:, None], tau[:, None]).log_prob(theta) + Normal(theta, _SIGMA).log_prob(_Y)
    return Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(tau) + school.sum(-1)


def proposal() -> iw.Proposal:
    """q(τ) of tails between those of p and p², μ and θ given τ from their exact conditionals."""
    tau_base = StudentT(torch.tensor(7.0, dtype=torch.float64), 0.0, 4.0)

    def given_tau(tau: Tensor) -> Normal:
        weight = 1 / (_SIGMA**2 + tau[:, None] ** 2)
        precision = 1 / 25 + weight.sum(-1)
        return Normal((weight * _Y).sum(-1) / precision, precision**-0.5)

    def given_both(tau: Tensor, mu: Tensor) -> Normal:
        precision = _SIGMA**-2 + tau[:, None] ** -2
        return Normal((_Y / _SIGMA**2 + (mu / tau**2)[:, None]) / precision, precision**-0.5)

    def sample(shape: tuple[int]) -> dict[str, Tensor]:
        tau = tau_base.rsample(shape).abs()
        mu = given_tau(tau).rsample()
        return {"mu": mu, "tau": tau, "theta": given_both(tau, mu).rsample()}

    def log_prob(z: dict[str, Tensor]) -> Tensor:
        mu, tau, theta = z["mu"], z["tau"], z["theta"]
        log_q = tau_base.log_prob(tau) + math.log(2) + given_tau(tau).log_prob(mu)
        return log_q + given_both(tau, mu).log_prob(theta).sum(-1)

    return iw.Proposal(sample, log_prob)
