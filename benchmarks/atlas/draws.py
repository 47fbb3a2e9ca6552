"""Posterior draws by Hamiltonian Monte Carlo, many chains at once, and proposals fitted to them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from targets import Conditional, Density, Target
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

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


def candidates(draws: Tensor) -> Iterator[tuple[str, iw.Proposal]]:
    """A Gaussian, Student's t, and mixtures of Gaussians, all fitted to the draws."""
    mean = draws.mean(0)
    factor = cholesky(covariance(draws))
    gaussian = MultivariateNormal(mean, scale_tril=factor)
    yield "Gaussian", iw.Proposal(gaussian.sample, gaussian.log_prob, False)
    for df in (5.0, 15.0):
        yield f"t, {df:.0f} degrees", student(mean, factor, df)
    for parts in (4, 16):
        # A component has d (d + 3)/2 numbers; with fewer than five draws for each, it fits the chain, not its target.
        if len(draws) > 5 * parts * len(mean) * (len(mean) + 3) / 2:
            yield f"{parts} Gaussians and a t", mixture(draws, parts, student(mean, 1.2 * factor, 5.0))


def conditioned(outer: iw.Proposal, width: int, conditional: Conditional) -> iw.Proposal:
    """The first coordinates from ``outer``, the others from the Gaussian that is theirs given the first."""

    def sample(shape: tuple[int]) -> Tensor:
        first = outer.sample(shape)
        mean, factor = conditional(first)
        noise = torch.randn_like(mean)
        moved = factor * noise if factor.ndim == 2 else (factor @ noise.unsqueeze(-1)).squeeze(-1)
        return torch.cat([first, mean + moved], -1)

    def log_prob(z: Tensor) -> Tensor:
        mean, factor = conditional(z[:, :width])
        moved, diagonal = (z[:, width:] - mean).unsqueeze(-1), factor
        if factor.ndim == 2:
            white = moved / factor.unsqueeze(-1)
        else:
            white, diagonal = torch.linalg.solve_triangular(factor, moved, upper=False), factor.diagonal(dim1=1, dim2=2)
        constant = 0.5 * mean.shape[1] * math.log(2 * math.pi)
        log_q = -0.5 * white.square().sum((1, 2)) - diagonal.log().sum(1) - constant
        return outer.log_prob(z[:, :width]) + log_q

    return iw.Proposal(sample, log_prob, reparameterized=False)


def covariance(draws: Tensor) -> Tensor:
    """``(d, d)``, for one dimension too."""
    return draws.T.cov().reshape(draws.shape[1], draws.shape[1])


def cholesky(covariance: Tensor) -> Tensor:
    """Of a covariance, of which a small part of the diagonal is added for the sake of rounding."""
    return torch.linalg.cholesky(covariance + 1e-9 * torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1)))


def mixture(draws: Tensor, parts: int, wide: iw.Proposal, share: float = 0.05) -> iw.Proposal:
    """Gaussians fitted by expectation maximisation, and a share of a wide component.

    Inside the posterior the Gaussians follow it, for the upper side; in its tails, where they are too light for the
    lower one, the wide component bounds the weights.
    """
    mixed = fitted_mixture(draws, parts)
    chosen = torch.distributions.Bernoulli(torch.tensor(share).double())

    parts_of = mixed.component_distribution

    def sample(shape: tuple[int]) -> Tensor:
        # torch's own mixture draws from every component, and keeps one.
        index = mixed.mixture_distribution.sample(shape)
        noise = torch.randn(*shape, parts_of.event_shape[0], 1, dtype=torch.float64)
        inside = parts_of.loc[index] + (parts_of.scale_tril[index] @ noise).squeeze(-1)
        return torch.where(chosen.sample(shape).bool().unsqueeze(-1), wide.sample(shape), inside)

    def log_prob(z: Tensor) -> Tensor:
        return torch.logaddexp(mixed.log_prob(z) + math.log1p(-share), wide.log_prob(z) + math.log(share))

    return iw.Proposal(sample, log_prob, reparameterized=False)


def fitted_mixture(draws: Tensor, parts: int, steps: int = 30) -> MixtureSameFamily:
    """Started from nearest neighbours of random draws."""
    whole = covariance(draws)
    white = torch.linalg.solve_triangular(cholesky(whole), (draws - draws.mean(0)).T, upper=False).T
    centres = white[torch.randperm(len(white))[:parts]]
    shares = torch.nn.functional.one_hot(torch.cdist(white, centres).argmin(1), parts).double()
    for _ in range(steps):
        # A few draws' worth of the whole covariance in each: no component may shrink onto a point.
        counts = shares.sum(0) + 1e-9
        means = shares.T @ draws / counts.unsqueeze(1)
        moved = draws.unsqueeze(1) - means
        scatter = torch.einsum("nj,njd,nje->jde", shares, moved, moved)
        factors = cholesky((scatter + 5 * whole) / (counts + 5).reshape(-1, 1, 1))
        gaussians = MultivariateNormal(means, scale_tril=factors)
        weights = (counts + 1) / (counts + 1).sum()
        shares = (gaussians.log_prob(draws.unsqueeze(1)) + weights.log()).softmax(1)
    return MixtureSameFamily(Categorical(probs=weights), gaussians)


def student(mean: Tensor, factor: Tensor, df: float) -> iw.Proposal:
    """Multivariate t whose covariance is ``factor factorᵀ``."""
    width = len(mean)
    factor = factor * math.sqrt((df - 2) / df)
    constant = math.lgamma((df + width) / 2) - math.lgamma(df / 2) - 0.5 * width * math.log(df * math.pi)
    constant -= factor.diagonal().log().sum().item()

    def sample(shape: tuple[int]) -> Tensor:
        chi2 = torch.distributions.Chi2(torch.tensor(df).double()).sample(shape)
        return mean + (torch.randn(*shape, width, dtype=torch.float64) @ factor.T) * (df / chi2).sqrt().unsqueeze(-1)

    def log_prob(z: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False).T
        return constant - 0.5 * (df + width) * (white.square().sum(-1) / df).log1p()

    return iw.Proposal(sample, log_prob, reparameterized=False)
