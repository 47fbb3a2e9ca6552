r"""Bayesian logistic regression: a semi-implicit posterior, and the evidence between a lower and an upper bound.

    beta ~ N(0, s² I),    y_i ~ Bernoulli(sigmoid(x_i · beta))

The posterior is approximated by a mean-field Gaussian and by a semi-implicit distribution, noise through a network
plus Gaussian noise, trained by the IWHVI bound with a learned reverse model. The lower bound of log p(y) is M-IWHVI,
several samples in the logarithm. The upper bound takes draws of the posterior by Markov chains: it holds up to their
error.

    python examples/logistic_regression.py [--seed 0]                     # scikit-learn's breast-cancer data
    python examples/logistic_regression.py --data waveform.npz                    # with X_train, y_train, BetaMCMC
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from torch.nn import functional as F
from tqdm import tqdm

import iwbounds as iw

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass
class Regression:
    """Data, prior, and the log-joint of the coefficients."""

    x: Tensor
    y: Tensor
    prior_scale: float
    chains: Tensor | None = None

    @property
    def dims(self) -> int:
        return self.x.shape[1]

    def log_joint(self, beta: Tensor) -> Tensor:
        """log p(y, beta), of coefficients ``(…, dims)``."""
        logits = beta @ self.x.T
        prior = Independent(Normal(torch.zeros(self.dims), self.prior_scale), 1)
        return prior.log_prob(beta) + (self.y * logits - F.softplus(logits)).sum(-1)

    def laplace(self) -> tuple[Tensor, Tensor]:
        """Mode and precision of the Laplace approximation, by Newton's method with halved steps."""
        beta = torch.zeros(self.dims, dtype=torch.float64)
        x, y = self.x.double(), self.y.double()
        eye = torch.eye(self.dims, dtype=torch.float64) / self.prior_scale**2

        def objective(b: Tensor) -> Tensor:
            return (y * (x @ b) - F.softplus(x @ b)).sum() - 0.5 * (b @ eye @ b)

        for _ in range(50):
            p = torch.sigmoid(x @ beta)
            precision = (x.T * (p * (1 - p))) @ x + eye
            step = torch.linalg.solve(precision, x.T @ (y - p) - eye @ beta)
            while objective(beta + step) < objective(beta) and step.norm() > 1e-9:
                step = step / 2
            beta = beta + step
        return beta.float(), precision.float()


def breast_cancer(prior_scale: float) -> Regression:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    x = np.concatenate([np.ones((len(x), 1)), x], 1)
    return Regression(torch.from_numpy(x).float(), torch.from_numpy(y).float(), prior_scale)


def from_file(path: Path, prior_scale: float) -> Regression:
    with np.load(path) as data:
        x, y = (torch.from_numpy(np.asarray(data[key])).float() for key in ("X_train", "y_train"))
        chains = torch.from_numpy(data["BetaMCMC"].T.copy()).float() if "BetaMCMC" in data else None
    return Regression(x, y.flatten(), prior_scale, chains)


def hamiltonian_chains(model: Regression, count: int, steps: int, leapfrogs: int = 12) -> Tensor:
    """The last state of each of ``count`` chains, started at the Laplace approximation and preconditioned by it."""
    mode, precision = model.laplace()
    root = torch.linalg.cholesky(precision.inverse())
    state = torch.randn(count, model.dims)
    step_size, accepted = 0.25, []

    def energy(white: Tensor) -> tuple[Tensor, Tensor]:
        white = white.detach().requires_grad_()
        value = -model.log_joint(mode + white @ root.T)
        return value.detach(), torch.autograd.grad(value.sum(), white)[0]

    for step in tqdm(range(steps), desc="Hamiltonian Monte Carlo", leave=False):
        momentum = torch.randn_like(state)
        start, slope = energy(state)
        before = start + momentum.square().sum(-1) / 2
        position = state
        for _ in range(leapfrogs):
            momentum = momentum - step_size / 2 * slope
            position = position + step_size * momentum
            after, slope = energy(position)
            momentum = momentum - step_size / 2 * slope
        accept = torch.rand(count).log() < before - after - momentum.square().sum(-1) / 2
        state = torch.where(accept.unsqueeze(-1), position, state)
        accepted.append(accept.float().mean().item())
        if step < steps // 2:
            step_size *= 1.05 if accepted[-1] > 0.85 else 0.95
    print(f"{count} chains, {steps} steps, acceptance {np.mean(accepted[steps // 2 :]):.2f}")
    return (mode + state @ root.T).detach()


class Posterior(nn.Module):
    """An approximation in coordinates u, beta = mode + root u, where the Laplace approximation is standard normal."""

    def __init__(self, mode: Tensor, root: Tensor) -> None:
        super().__init__()
        self.mode, self.root = mode, root
        self.dims = len(mode)

    def beta(self, u: Tensor) -> Tensor:
        return self.mode + u @ self.root.T

    def coordinates(self, beta: Tensor) -> Tensor:
        return torch.linalg.solve(self.root, (beta - self.mode).T).T

    def log_joint(self, model: Regression) -> Callable[[Tensor], Tensor]:
        """log p(y, u): with the volume that beta = mode + root u stretches."""
        log_volume = torch.linalg.slogdet(self.root).logabsdet
        return lambda u: model.log_joint(self.beta(u)) + log_volume

    def proposal(self, batch: tuple[int, ...] = ()) -> Distribution | iw.Proposal:
        raise NotImplementedError


class MeanField(Posterior):
    """A Gaussian with a diagonal covariance; so ``root`` must be diagonal too."""

    def __init__(self, mode: Tensor, root: Tensor) -> None:
        super().__init__(mode, root)
        self.mean, self.log_scale = nn.Parameter(torch.zeros(self.dims)), nn.Parameter(torch.zeros(self.dims))

    def proposal(self, batch: tuple[int, ...] = ()) -> Distribution:
        scale = self.log_scale.exp()
        return Independent(Normal(self.mean.expand(*batch, -1), scale.expand(*batch, -1)), 1)


class SemiImplicit(Posterior):
    """Noise ψ through a linear map and a network, plus Gaussian noise; and the way back."""

    def __init__(self, mode: Tensor, root: Tensor, num_aux: int, hidden: int = 64) -> None:
        super().__init__(mode, root)
        self.num_aux = num_aux
        self.linear, self.network = nn.Linear(self.dims, self.dims), _residual(self.dims, hidden)
        self.back, self.back_network = nn.Linear(self.dims, self.dims), _residual(self.dims, hidden)
        self.log_scale = nn.Parameter(torch.full((self.dims,), math.log(0.5)))
        self.tril = nn.Parameter(torch.diag(torch.full((self.dims,), math.log(0.5))))
        for layer in (self.linear, self.back):  # u = 0.87 ψ + 0.5 noise is standard normal, ψ given u N(0.87 u, 0.25)
            layer.weight.data = 0.75**0.5 * torch.eye(self.dims)
            nn.init.zeros_(layer.bias)

    def conditional(self, psi: Tensor) -> Distribution:
        return Independent(Normal(self.linear(psi) + self.network(psi), self.log_scale.exp()), 1)

    def reverse(self, u: Tensor) -> Distribution:
        tril = self.tril.tril(-1) + torch.diag(self.tril.diag().exp())
        return MultivariateNormal(self.back(u) + self.back_network(u), scale_tril=tril, validate_args=False)

    def proposal(self, batch: tuple[int, ...] = ()) -> iw.HierarchicalProposal:
        mixing = Independent(Normal(torch.zeros(*batch, self.dims), 1.0), 1)
        return iw.HierarchicalProposal(mixing, self.conditional, self.reverse, self.num_aux)


def _residual(dims: int, hidden: int) -> nn.Sequential:
    """A network that starts at zero."""
    net = nn.Sequential(
        nn.Linear(dims, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, dims)
    )
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    return net


def train(model: Regression, posterior: Posterior, steps: int, samples: int, rate: float, name: str) -> None:
    optimizer = torch.optim.Adam(posterior.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with tqdm(range(steps), desc=f"train {name}", leave=False) as progress:
        for _ in progress:
            estimate = iw.estimate(posterior.log_joint(model), posterior.proposal(), iw.ELBO(), num_samples=samples)
            optimizer.zero_grad()
            (-estimate.value).backward()
            optimizer.step()
            schedule.step()
            progress.set_postfix(elbo=f"{estimate.value.item():.2f}")


@torch.no_grad()
def lower_bound(model: Regression, posterior: Posterior, bound: iw.Bound, samples: int, repeats: int) -> Tensor:
    """Independent estimates of a lower bound, as a batch."""
    log_joint, sizes = posterior.log_joint(model), [25] * (repeats // 25)
    values = [iw.estimate(log_joint, posterior.proposal((n,)), bound, num_samples=samples).value for n in sizes]
    return torch.cat(values)


@torch.no_grad()
def upper_bound(model: Regression, posterior: Posterior, chains: Tensor, samples: int) -> Tensor:
    """One estimate for each posterior draw."""
    log_joint, pieces = posterior.log_joint(model), posterior.coordinates(chains).split(25)
    values = [iw.upper_bound(log_joint, posterior.proposal((len(z),)), z, samples).value for z in pieces]
    return torch.cat(values)


@torch.no_grad()
def draws(posterior: Posterior, count: int) -> Tensor:
    q = posterior.proposal()
    u = q.rsample((count,))
    return posterior.beta(u[0] if isinstance(u, tuple) else u)


def mean_and_error(values: Tensor) -> str:
    return f"{values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


def plot(chains: Tensor, found: dict[str, Tensor], path: Path) -> None:
    """The marginals of the coefficients in which the mean-field posterior is most and least wrong."""
    ratio = (found["mean-field"].std(0) / chains.std(0)).argsort()
    shown = [*ratio[:4].tolist(), *ratio[-2:].tolist()]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), layout="constrained")
    for axis, d in zip(axes.flat, shown, strict=True):
        bins = np.linspace(*np.quantile(chains[:, d], [0, 1]) + np.array([-1, 1]) * chains[:, d].std().item(), 40)
        axis.hist(chains[:, d].numpy(), bins, density=True, color="0.8", label=f"{len(chains)} posterior draws")
        for colour, (name, z) in zip(("C3", "C0"), found.items(), strict=True):
            height, _ = np.histogram(z[:, d].numpy(), bins, density=True)
            axis.plot((bins[1:] + bins[:-1]) / 2, height, color=colour, label=name)
        axis.set_title(f"coefficient {d}", fontsize=9)
        axis.set_yticks([])
    axes[0, 0].legend(fontsize=8)
    figure.suptitle("Posterior marginals: where mean field is worst (first four) and best (last two)", fontsize=10)
    figure.savefig(path, dpi=110)


def report(
    model: Regression,
    posteriors: dict[str, Posterior],
    chains: Tensor,
    found: dict[str, Tensor],
    samples: int,
    repeats: int,
) -> str:
    heads = ("ELBO", f"lower bound, M = {samples}", f"upper bound, M = {samples}")
    rows = [f"{'':<16}" + "".join(f"{head:>24}" for head in heads) + f"{'sd / sd of draws':>20}"]
    rows.append("-" * len(rows[0]))
    for name, posterior in posteriors.items():
        cells = [
            mean_and_error(lower_bound(model, posterior, iw.ELBO(), samples, repeats)),
            mean_and_error(lower_bound(model, posterior, iw.IWAE(), samples, repeats)),
            mean_and_error(upper_bound(model, posterior, chains, samples)),
        ]
        ratio = (found[name].std(0) / chains.std(0)).mean()
        rows.append(f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells) + f"{ratio:>20.3f}")
    rows.append(
        "log p(y) in nats, with standard errors; the upper bound is valid up to the error of the posterior draws"
    )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with X_train, y_train and, optionally, BetaMCMC (dims, draws)")
    parser.add_argument("--prior-scale", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=50, help="samples of the bounds of the evidence")
    parser.add_argument("--repeats", type=int, default=1000, help="lower bounds to average over, a multiple of 25")
    parser.add_argument(
        "--chains", type=int, default=250, help="posterior draws, one a chain, where the data have none"
    )
    parser.add_argument("--aux", type=int, default=5, help="auxiliary draws K")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/logistic_regression.png"), help="where the figure goes")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    model = breast_cancer(args.prior_scale) if args.data is None else from_file(args.data, args.prior_scale)
    chains = hamiltonian_chains(model, args.chains, 200) if model.chains is None else model.chains
    mode, precision = model.laplace()
    posteriors: dict[str, Posterior] = {
        "mean-field": MeanField(mode, torch.diag(precision.diag() ** -0.5)),
        "semi-implicit": SemiImplicit(mode, torch.linalg.cholesky(precision.inverse()), args.aux),
    }
    for name, posterior in posteriors.items():
        train(model, posterior, args.steps, 16, 3e-3, name)
    found = {name: draws(posterior, 20_000) for name, posterior in posteriors.items()}
    print(report(model, posteriors, chains, found, args.samples, args.repeats))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot(chains, found, args.out)
    print(f"\nFigure: {args.out}")


if __name__ == "__main__":
    main()
