"""Posterior draws by Hamiltonian Monte Carlo, many chains at once, and proposals fitted to them."""

from __future__ import annotations

import math

import torch
from targets import Density, Target
from torch import Tensor
from torch.distributions import MultivariateNormal

import iwbounds as iw

CHAINS, WARM_UP, KEPT = 64, 300, 600


def mode_and_factor(target: Target) -> tuple[Tensor, Tensor]:
    """A maximum by damped Newton steps, and a Cholesky factor of the inverse curvature there."""

    def density(z: Tensor) -> Tensor:
        return target.log_density(z.unsqueeze(0)).squeeze(0)

    z, damping = target.start.clone(), 1e-3
    for _ in range(100):
        gradient, hessian = torch.func.grad(density)(z), torch.func.hessian(density)(z)
        step = torch.linalg.solve(positive(-hessian, damping), gradient)
        step[: target.held] = 0.0
        if density(z + step) > density(z) - 1e-9:
            z, damping = z + step, max(damping / 10, 1e-9)
        else:
            damping = min(10 * damping, 1e6)
        if step.abs().max() < 1e-8:
            break
    curvature = positive(-torch.func.hessian(density)(z), 1e-9)
    curvature[: target.held], curvature[:, : target.held] = 0.0, 0.0
    curvature[range(target.held), range(target.held)] = 1.0
    return z, torch.linalg.cholesky(torch.linalg.inv(curvature))


def positive(matrix: Tensor, least: float) -> Tensor:
    """The matrix with the size of its eigenvalues, and none below ``least`` times the largest."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors @ torch.diag(values.abs().clamp_min(least * values.abs().max())) @ vectors.T


def hamiltonian(density: Density, centre: Tensor, factor: Tensor) -> Tensor:
    """States ``(CHAINS, KEPT, d)`` after the warm-up, which sets the step size and then the scale."""

    def value_and_slope(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        value = density(centre + u @ factor.T)
        return value.detach(), torch.autograd.grad(value.sum(), u)[0].nan_to_num(0.0)

    step, states = 0.5 / len(centre) ** 0.25, []
    # Close to the mode: where the curvature there is small, a whole standard deviation may be a long way off.
    u = 0.1 * torch.randn(CHAINS, len(centre), dtype=torch.float64)
    value, slope = value_and_slope(u)
    for iteration in range(WARM_UP + KEPT):
        length = int(torch.randint(4, 12, ()))
        new, momentum = u, torch.randn_like(u)
        energy = value - 0.5 * momentum.square().sum(-1)
        momentum = momentum + 0.5 * step * slope
        for leap in range(length):
            new = new + step * momentum
            new_value, new_slope = value_and_slope(new)
            momentum = momentum + (0.5 if leap == length - 1 else 1.0) * step * new_slope
        rate = (new_value - 0.5 * momentum.square().sum(-1) - energy).nan_to_num(-math.inf).clamp_max(0).exp()
        accepted = torch.rand_like(rate) < rate
        u = torch.where(accepted.unsqueeze(-1), new, u)
        value, slope = torch.where(accepted, new_value, value), torch.where(accepted.unsqueeze(-1), new_slope, slope)
        if iteration < WARM_UP:
            step *= math.exp(0.1 * (rate.mean().item() - 0.8))
        else:
            states.append(centre + u @ factor.T)
    return torch.stack(states, 1)


def candidates(draws: Tensor) -> list[tuple[str, iw.Proposal]]:
    """A Gaussian and Student's t with the moments of the draws."""
    mean = draws.mean(0)
    factor = torch.linalg.cholesky(draws.T.cov() + 1e-12 * torch.eye(len(mean)).double())
    gaussian = MultivariateNormal(mean, scale_tril=factor)
    found = [("Gaussian", iw.Proposal(lambda n: gaussian.sample(n), gaussian.log_prob, False))]
    return found + [(f"t, {df} degrees", student(mean, factor, df)) for df in (5.0, 15.0)]


def student(mean: Tensor, factor: Tensor, df: float) -> iw.Proposal:
    """Multivariate t whose covariance is ``factor factorᵀ``."""
    width = len(mean)
    factor = factor * math.sqrt((df - 2) / df)
    constant = math.lgamma((df + width) / 2) - math.lgamma(df / 2) - 0.5 * width * math.log(df * math.pi)
    constant -= factor.diagonal().log().sum().item()

    def sample(shape: tuple[int]) -> Tensor:
        chi2 = torch.distributions.Chi2(torch.tensor(df).double()).sample(shape)
        return mean + (torch.randn(*shape, width).double() @ factor.T) * (df / chi2).sqrt().unsqueeze(-1)

    def log_prob(z: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False).T
        return constant - 0.5 * (df + width) * (white.square().sum(-1) / df).log1p()

    return iw.Proposal(sample, log_prob, reparameterized=False)
