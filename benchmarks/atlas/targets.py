"""Real posteriors, each a log-density on R^d whose integral is the evidence.

Positive parameters are logs, intervals logits, ordered ones a first value and log-increments; every density contains
the Jacobian, which leaves the evidence as it is. The constants are those of the models as published: see README.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Beta, Binomial, Cauchy, Gamma, Normal
from torch.nn.functional import logsigmoid, softplus

Density = Callable[[Tensor], Tensor]
Conditional = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The first coordinates ``(N, h)`` to mean ``(N, d − h)`` and factor of the covariance of a Gaussian of the others: a
matrix ``(N, d − h, d − h)``, or its diagonal."""


@dataclass(frozen=True)
class Target:
    name: str
    log_density: Density
    """``(N, d)`` to ``(N,)``."""
    start: Tensor
    """Where the search for the mode begins, ``(d,)``."""
    truth: float | None = None
    source: str = "first published here"
    exact: Callable[[int], Tensor] | None = None
    """Independent draws of the posterior itself."""
    reference: Tensor | None = None
    """Draws of ten long chains ``(2000, d)``, for densities that are slow to differentiate."""
    held: int = 0
    """How many of the first coordinates stay as they are while the mode is looked for."""
    outer: int = 0
    """How many of the first coordinates, once known, leave the others Gaussian, or nearly so."""
    conditional: Conditional | None = None


def data_folder() -> Path | None:
    """``IWBOUNDS_DATA``, or ``shared/data`` beside the repository; None where neither is there."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("IWBOUNDS_DATA", beside))
    return folder if (folder / "targets.npz").exists() else None


def double(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def all_targets() -> Iterator[Target]:
    yield from scikit_learn_regressions()
    folder = data_folder()
    if folder is None:
        return
    with np.load(folder / "targets.npz") as d:
        small = {key: double(d[key]) for key in d}
    with np.load(folder / "posteriordb.npz", allow_pickle=False) as d:
        db = {key: d[key] if key.endswith(".names") else double(d[key]) for key in d}
    with np.load(folder / "waveform.npz") as d:
        waveform = {key: double(d[key]) for key in ("X_train", "y_train")}
    yield from radiata(small)
    yield from logistic_regressions(small, waveform)
    yield seeds(small)
    yield eight_schools(db)
    yield from linear_models(db)
    yield from slow_models(db)


def normal_gamma(name: str, x: Tensor, y: Tensor, mean: Tensor, precision: Tensor, shape: float, rate: float) -> Target:
    """y ~ N(Xb, 1/τ), b | τ ~ N(mean, (τ·precision)⁻¹), τ ~ Gamma(shape, rate); z = (b, log τ)."""
    n, width = x.shape
    after = precision + x.T @ x
    centre = torch.linalg.solve(after, precision @ mean + x.T @ y)
    quadratic = (y @ y + mean @ precision @ mean - centre @ after @ centre).item()
    a, b = shape + n / 2, rate + quadratic / 2
    determinants = 0.5 * (torch.logdet(precision) - torch.logdet(after)).item()
    gammas = shape * math.log(rate) - math.lgamma(shape) - a * math.log(b) + math.lgamma(a)
    truth = determinants + gammas - n / 2 * math.log(2 * math.pi)
    constant = 0.5 * torch.logdet(precision).item() - 0.5 * (n + width) * math.log(2 * math.pi)
    prior_of_tau = Gamma(torch.tensor(shape).double(), torch.tensor(rate).double())

    def log_density(z: Tensor) -> Tensor:
        beta, log_tau = z[..., :-1], z[..., -1]
        tau, d = log_tau.exp(), z[..., :-1] - mean
        squares = (y - beta @ x.T).square().sum(-1) + ((d @ precision) * d).sum(-1)
        return constant + 0.5 * (n + width) * log_tau - 0.5 * tau * squares + prior_of_tau.log_prob(tau) + log_tau

    def exact(count: int) -> Tensor:
        tau = Gamma(torch.tensor(a).double(), torch.tensor(b).double()).sample((count,))
        noise = torch.linalg.solve_triangular(
            torch.linalg.cholesky(after).T, torch.randn(width, count, dtype=torch.float64), upper=True
        ).T
        return torch.cat([centre + noise * tau.rsqrt().unsqueeze(-1), tau.log().unsqueeze(-1)], -1)

    start = torch.cat([centre, torch.tensor([math.log(a / b)]).double()])
    return Target(name, log_density, start, truth, "closed form", exact)


def scikit_learn_regressions() -> Iterator[Target]:
    from sklearn.datasets import load_diabetes, load_linnerud

    diabetes, linnerud = load_diabetes(), load_linnerud()
    yield unit_prior("diabetes", double(diabetes.data), double(diabetes.target))
    for column, name in enumerate(linnerud.target_names):
        yield unit_prior(f"linnerud {name.lower()}", double(linnerud.data), double(linnerud.target[:, column]))


def unit_prior(name: str, x: Tensor, y: Tensor) -> Target:
    """Everything standardised, an intercept, b | τ ~ N(0, I/τ), τ ~ Gamma(1, 1)."""
    x, y = (x - x.mean(0)) / x.std(0, correction=0), (y - y.mean()) / y.std(correction=0)
    x = torch.cat([torch.ones(len(x), 1).double(), x], 1)
    width = x.shape[1]
    return normal_gamma(name, x, y, torch.zeros(width).double(), torch.eye(width).double(), 1.0, 1.0)


def radiata(d: dict[str, Tensor]) -> Iterator[Target]:
    mean, precision = torch.tensor([3000.0, 185.0]).double(), torch.diag(torch.tensor([0.06, 6.0]).double())
    for name in ("density", "adjusted"):
        v = d[f"radiata_{name}"]
        x = torch.stack([torch.ones_like(v), v - v.mean()], 1)
        yield normal_gamma(f"radiata {name}", x, d["radiata_y"], mean, precision, 3.0, 2 * 300.0**2)


def logistic(name: str, x: Tensor, y: Tensor, scale: float, truth: float | None, source: str) -> Target:
    def log_density(w: Tensor) -> Tensor:
        logits = w @ x.T
        return Normal(0.0, scale).log_prob(w).sum(-1) + (y * logits - softplus(logits)).sum(-1)

    return Target(name, log_density, torch.zeros(x.shape[1]).double(), truth, source)


def logistic_regressions(d: dict[str, Tensor], waveform: dict[str, Tensor]) -> Iterator[Target]:
    published = {"sonar": -108.383, "ionosphere": -111.608, "australian": None}
    for name, truth in published.items():
        x = d[f"{name}_X"]
        x = (x - x.mean(0)) / x.std(0, correction=0).where(x.std(0, correction=0) > 0, 1.0)
        x = torch.cat([torch.ones(len(x), 1).double(), x], 1)
        source = "first published here" if truth is None else "importance sampling, 1e6 draws"
        yield logistic(name, x, d[f"{name}_y"], 1.0, truth, source)
    y = waveform["y_train"][0]
    yield logistic("waveform", waveform["X_train"], y, 10.0, -150.3842, "published, ± 0.0012")


def seeds(d: dict[str, Tensor]) -> Target:
    """Random effects as b = u/√τ with u standard normal, which has no funnel."""
    r, n, x1, x2 = (d[f"seeds_{key}"] for key in ("r", "n", "x1", "x2"))
    x = torch.stack([torch.ones_like(x1), x1, x2, x1 * x2], 1)
    prior = Gamma(torch.tensor(0.01).double(), torch.tensor(0.01).double())

    def log_density(z: Tensor) -> Tensor:
        log_tau, a, u = z[..., 0], z[..., 1:5], z[..., 5:]
        logits = a @ x.T + u * (-log_tau / 2).exp().unsqueeze(-1)
        log_p = prior.log_prob(log_tau.exp().clamp_min(1e-300)) + log_tau + Normal(0.0, 10.0).log_prob(a).sum(-1)
        likelihood = Binomial(n, logits=logits, validate_args=False).log_prob(r.expand_as(logits)).sum(-1)
        return log_p + Normal(0.0, 1.0).log_prob(u).sum(-1) + likelihood

    start = torch.zeros(26).double()
    start[0] = 2.0

    def conditional(outer: Tensor) -> tuple[Tensor, Tensor]:
        """Given τ and a the random effects are independent: Newton's method for each mode, and the curvature there."""
        scale, fixed = (-outer[:, :1] / 2).exp(), outer[:, 1:] @ x.T
        u = torch.zeros_like(fixed)
        for _ in range(12):
            p = (fixed + scale * u).sigmoid()
            curvature = 1 + scale.square() * n * p * (1 - p)
            u = u + ((scale * (r - n * p) - u) / curvature).clamp(-3, 3)
        return u, curvature.rsqrt()

    # The joint mode is at an absurd scale of the random effects, far from the mass.
    return Target("seeds", log_density, start, held=1, outer=5, conditional=conditional)


def eight_schools(db: dict[str, Tensor]) -> Target:
    y, sigma = (db[f"eight_schools_noncentered.data.{key}"] for key in ("y", "sigma"))

    def log_density(z: Tensor) -> Tensor:
        log_tau, mu, effect = z[..., :1], z[..., 1:2], z[..., 2:]
        log_p = Normal(0.0, 1.0).log_prob(effect).sum(-1) + Normal(0.0, 5.0).log_prob(mu).squeeze(-1)
        half = (math.log(2) + Cauchy(0.0, 5.0).log_prob(log_tau.exp()) + log_tau).squeeze(-1)
        return log_p + half + Normal(mu + log_tau.exp() * effect, sigma).log_prob(y).sum(-1)

    def conditional(log_tau: Tensor) -> tuple[Tensor, Tensor]:
        """Given τ, mu and the effects are Gaussian exactly: a linear regression."""
        tau = log_tau.exp().unsqueeze(-1)
        ones = torch.ones(len(tau), 8, 1, dtype=tau.dtype)
        design = torch.cat([ones, tau * torch.eye(8, dtype=tau.dtype)], -1) / sigma.unsqueeze(-1)
        prior = torch.diag(torch.tensor([1 / 25.0, *[1.0] * 8], dtype=tau.dtype))
        covariance = torch.linalg.inv(design.mT @ design + prior)
        mean = (covariance @ design.mT @ (y / sigma).unsqueeze(-1)).squeeze(-1)
        return mean, torch.linalg.cholesky(covariance)

    start, truth = torch.zeros(10).double(), -31.311347352293
    return Target("eight schools", log_density, start, truth, "quadrature", outer=1, conditional=conditional)


def half_cauchy(sigma: Tensor) -> Tensor:
    return Cauchy(0.0, 2.5).log_prob(sigma)


def linear(
    name: str, x: Tensor, y: Tensor, mean: Tensor, scale: Tensor, log_prior_of_sigma: Callable[[Tensor], Tensor]
) -> Target:
    """y ~ N(Xb, σ²), b_i ~ N(mean_i, scale_i²), flat where the scale is infinite; z = (b, log σ)."""
    proper = scale.isfinite()
    precision = torch.where(proper, scale.square().reciprocal(), 0.0)
    constant = (torch.where(proper, -scale.log(), 0.0) - 0.5 * math.log(2 * math.pi) * proper).sum().item()
    n = len(y)

    def log_density(z: Tensor) -> Tensor:
        b, log_sigma = z[..., :-1], z[..., -1]
        residuals = (y - b @ x.T).square().sum(-1)
        log_p = constant - 0.5 * ((b - mean).square() * precision).sum(-1)
        likelihood = -0.5 * n * math.log(2 * math.pi) - n * log_sigma - 0.5 * residuals * (-2 * log_sigma).exp()
        return log_p + likelihood + log_prior_of_sigma(log_sigma.exp()) + log_sigma

    fit = torch.linalg.lstsq(x, y.unsqueeze(1)).solution.squeeze(1)
    log_sigma = ((y - x @ fit).square().mean().sqrt()).log()
    start = torch.cat([fit, log_sigma.reshape(1)])
    integral = _linear_evidence(x, y, mean, precision, constant, log_prior_of_sigma, log_sigma.item())
    return Target(name, log_density, start, integral, "quadrature")


def _linear_evidence(
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    precision: Tensor,
    constant: float,
    log_prior_of_sigma: Callable[[Tensor], Tensor],
    centre: float,
) -> float:
    """Trapezoids in log σ, 4000 of them over 4 nats around the fit; halving their number moves it by less than 1e-9."""
    u = torch.linspace(centre - 2, centre + 2, 4001, dtype=torch.float64)
    inverse = (-2 * u).exp()
    # Residuals about the least-squares fit, so that nothing cancels.
    gram, r = x.T @ x, y - x @ mean
    after = gram * inverse.reshape(-1, 1, 1) + torch.diag(precision)
    moment = (x.T @ r) * inverse.unsqueeze(1)
    explained = (moment * torch.linalg.solve(after, moment)).sum(-1)
    exponent = -0.5 * (r @ r * inverse - explained)
    width = 0.5 * x.shape[1] * math.log(2 * math.pi) - 0.5 * torch.logdet(after)
    log_p = constant + width + exponent - len(y) * (u + 0.5 * math.log(2 * math.pi))
    return torch.logsumexp(log_p + log_prior_of_sigma(u.exp()) + u, 0).item() + math.log(4 / 4000)


def linear_models(db: dict[str, Tensor]) -> Iterator[Target]:
    def with_intercept(v: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(v), v], 1)

    flat = torch.full((2,), math.inf).double()
    zero = torch.zeros(2).double()
    kid, earn = "kidscore_momiq.data.", "logearn_height.data."
    x = with_intercept(db[f"{kid}mom_iq"])
    yield linear("kidscore_momiq", x, db[f"{kid}kid_score"], zero, flat, half_cauchy)
    x = with_intercept(db[f"{earn}height"])
    yield linear("logearn_height", x, db[f"{earn}earn"].log(), zero, flat, torch.zeros_like)
    k = {key: db[f"kilpisjarvi.data.{key}"] for key in ("x", "y", "pmualpha", "psalpha", "pmubeta", "psbeta")}
    mean, scale = torch.stack([k["pmualpha"], k["pmubeta"]]), torch.stack([k["psalpha"], k["psbeta"]])
    yield linear("kilpisjarvi", with_intercept(k["x"]), k["y"], mean, scale, torch.zeros_like)
    x, y = db["blr.data.X"], db["blr.data.y"]
    ten = torch.full((5,), 10.0).double()
    yield linear("blr", x, y, torch.zeros(5).double(), ten, Normal(0.0, 10.0).log_prob)
    y, order = db["arK.data.y"], 5
    lags = [y[order - lag : len(y) - lag] for lag in range(1, order + 1)]
    x = torch.stack([torch.ones_like(lags[0]), *lags], 1)
    ten = torch.full((6,), 10.0).double()
    yield linear("arK", x, y[order:], torch.zeros(6).double(), ten, half_cauchy)


def slow_models(db: dict[str, Tensor]) -> Iterator[Target]:
    """Loops over time and mixtures, with the draws of the public database."""
    yield arma(db)
    yield garch(db)
    yield gaussian_mixture(db)
    yield hidden_markov(db)
    yield gaussian_process(db)


def from_draws(name: str, log_density: Density, draws: Tensor) -> Target:
    return Target(name, log_density, draws.mean(0), reference=draws)


def arma(db: dict[str, Tensor]) -> Target:
    y = db["arma11.data.y"]

    def log_density(z: Tensor) -> Tensor:
        mu, phi, theta, log_sigma = z.unbind(-1)
        sigma = log_sigma.exp()
        log_p = Normal(0.0, 10.0).log_prob(mu) + Normal(0.0, 2.0).log_prob(torch.stack([phi, theta])).sum(0)
        error = y[0] - mu - phi * mu
        squares = error.square()
        for t in range(1, len(y)):
            error = y[t] - mu - phi * y[t - 1] - theta * error
            squares = squares + error.square()
        likelihood = -len(y) * (log_sigma + 0.5 * math.log(2 * math.pi)) - 0.5 * squares / sigma.square()
        return log_p + half_cauchy(sigma) + log_sigma + likelihood

    return from_draws("arma11", log_density, by_name(db, "arma11", ("mu", "phi", "theta"), ("sigma",)))


def garch(db: dict[str, Tensor]) -> Target:
    y, first = db["garch11.data.y"], db["garch11.data.sigma1"]

    def log_density(z: Tensor) -> Tensor:
        mu, log_a0, u, v = z.unbind(-1)
        a0, a1 = log_a0.exp(), u.sigmoid()
        b1 = v.sigmoid() * (1 - a1)
        jacobian = log_a0 + logsigmoid(u) + 2 * logsigmoid(-u) + logsigmoid(v) + logsigmoid(-v)
        variance = first.square().expand_as(mu)
        log_p = Normal(mu, variance.sqrt()).log_prob(y[0])
        for t in range(1, len(y)):
            variance = a0 + a1 * (y[t - 1] - mu).square() + b1 * variance
            log_p = log_p + Normal(mu, variance.sqrt()).log_prob(y[t])
        return log_p + jacobian

    mu, a0, a1, b1 = by_name(db, "garch11", ("mu", "alpha0", "alpha1", "beta1")).unbind(-1)
    z = torch.stack([mu, a0.log(), a1.logit(), (b1 / (1 - a1)).logit()], -1)
    return from_draws("garch11", log_density, z)


def gaussian_mixture(db: dict[str, Tensor]) -> Target:
    y = db["low_dim_gauss_mix.data.y"]

    def log_density(z: Tensor) -> Tensor:
        first, log_gap, log_s1, log_s2, logit = z.unbind(-1)
        mu, log_s = torch.stack([first, first + log_gap.exp()], -1), torch.stack([log_s1, log_s2], -1)
        log_p = Normal(0.0, 2.0).log_prob(mu).sum(-1) + (Normal(0.0, 2.0).log_prob(log_s.exp()) + log_s).sum(-1)
        share = Beta(torch.tensor(5.0).double(), torch.tensor(5.0).double())
        log_p = log_p + log_gap + share.log_prob(logit.sigmoid()) + logsigmoid(logit) + logsigmoid(-logit)
        shares = torch.stack([logsigmoid(logit), logsigmoid(-logit)], -1).unsqueeze(-2)
        parts = Normal(mu.unsqueeze(-2), log_s.exp().unsqueeze(-2)).log_prob(y.unsqueeze(-1))
        return log_p + (shares + parts).logsumexp(-1).sum(-1)

    names = ("mu[1]", "mu[2]", "sigma[1]", "sigma[2]", "theta")
    m1, m2, s1, s2, theta = by_name(db, "low_dim_gauss_mix", names).unbind(-1)
    z = torch.stack([m1, (m2 - m1).log(), s1.log(), s2.log(), theta.logit()], -1)
    return from_draws("low_dim_gauss_mix", log_density, z)


def hidden_markov(db: dict[str, Tensor]) -> Target:
    y = db["hmm_example.data.y"]

    def log_density(z: Tensor) -> Tensor:
        u, v, log_mu, log_gap = z.unbind(-1)
        mu = torch.stack([log_mu.exp(), log_mu.exp() + log_gap.exp()], -1)
        log_p = Normal(3.0, 1.0).log_prob(mu[..., 0]) + Normal(10.0, 1.0).log_prob(mu[..., 1]) + log_mu + log_gap
        log_p = log_p + sum(logsigmoid(x) + logsigmoid(-x) for x in (u, v))
        rows = [torch.stack([logsigmoid(x), logsigmoid(-x)], -1) for x in (u, v)]
        transition = torch.stack(rows, -2)  # from, to
        emission = Normal(mu.unsqueeze(-2), 1.0).log_prob(y.unsqueeze(-1))
        forward = emission[..., 0, :]
        for t in range(1, len(y)):
            forward = (forward.unsqueeze(-1) + transition).logsumexp(-2) + emission[..., t, :]
        return log_p + forward.logsumexp(-1)

    names = ("theta1[1]", "theta2[1]", "mu[1]", "mu[2]")
    t1, t2, m1, m2 = by_name(db, "hmm_example", names).unbind(-1)
    z = torch.stack([t1.logit(), t2.logit(), m1.log(), (m2 - m1).log()], -1)
    return from_draws("hmm_example", log_density, z)


def gaussian_process(db: dict[str, Tensor]) -> Target:
    """f = Cholesky factor times e, with e standard normal."""
    x, k = db["gp_pois_regr.data.x"], db["gp_pois_regr.data.k"]
    squares = (x.unsqueeze(0) - x.unsqueeze(1)).square()
    eye = torch.eye(len(x)).double()

    def factor(log_rho: Tensor, log_alpha: Tensor) -> Tensor:
        scaled = squares / (2 * (2 * log_rho).exp()).reshape(-1, 1, 1)
        covariance = (2 * log_alpha).exp().reshape(-1, 1, 1) * (-scaled).exp() + 1e-10 * eye
        return torch.linalg.cholesky_ex(covariance).L  # a proposal that leaves the range is rejected, not an error

    prior = Gamma(torch.tensor(25.0).double(), torch.tensor(4.0).double())

    def log_density(z: Tensor) -> Tensor:
        log_rho, log_alpha, e = z[..., 0], z[..., 1], z[..., 2:]
        f = (factor(log_rho, log_alpha) @ e.unsqueeze(-1)).squeeze(-1)
        log_p = prior.log_prob(log_rho.exp()) + log_rho + Normal(0.0, 2.0).log_prob(log_alpha.exp()) + log_alpha
        likelihood = (k * f - f.exp() - torch.lgamma(k + 1)).sum(-1)
        return log_p + Normal(0.0, 1.0).log_prob(e).sum(-1) + likelihood

    def conditional(outer: Tensor) -> tuple[Tensor, Tensor]:
        """Given the kernel's parameters e has a concave log-density: damped Newton steps to its mode."""
        root = factor(outer[:, 0], outer[:, 1])
        e = torch.zeros(len(outer), len(x), 1).double()
        for _ in range(15):
            rate = (root @ e).exp()
            curvature = eye + root.mT @ (rate * root)
            step = torch.cholesky_solve(root.mT @ (k.unsqueeze(-1) - rate) - e, torch.linalg.cholesky(curvature))
            # A step that would multiply a rate by more than e² is shortened: exp overshoots from below.
            e = e + step * (2 / (root @ step).abs().amax((1, 2), keepdim=True)).clamp_max(1)
        return e.squeeze(-1), torch.linalg.cholesky(torch.linalg.inv(curvature))

    # The public draws of f have too few digits to be divided by a factor this close to singular.
    start = torch.zeros(2 + len(x)).double()
    start[:2] = torch.tensor([6.0, 2.0]).log()
    return Target("gp_pois_regr", log_density, start, outer=2, conditional=conditional)


def by_name(db: dict[str, Tensor], model: str, plain: tuple[str, ...], logs: tuple[str, ...] = ()) -> Tensor:
    """Columns of the draws in this order, the last ones as logarithms."""
    draws, names = db[f"{model}.draws"], list(db[f"{model}.names"])
    columns = [draws[:, names.index(name)] for name in plain] + [draws[:, names.index(name)].log() for name in logs]
    return torch.stack(columns, -1)
