r"""Chains from a mean-field posterior to the exact one: ULA, MCD, CMCD, DAIS and AIS at equal numbers of gradients.

    z ~ N(0, I),    y_i ~ N(x_i · z, σ²)    or    y_i ~ Bernoulli(sigmoid(x_i · z))

The coefficients of correlated columns are correlated in the posterior, which a mean-field Gaussian cannot follow: its
ELBO is nats away from log p(y). Every chain below starts from that Gaussian and makes T steps towards the posterior.
The ELBO of the whole path trains the start and the steps together, doubly reparameterised where that is legal; AIS
learns nothing and adapts its steps in a pilot run. The same paths under IWAE are tighter still. What a chain learns is
a function of the time from 0 to 1: a longer chain goes on from the shorter one of its kind.

    python examples/annealed.py [--seed 0]                       # scikit-learn's diabetes data: log p(y) is exact
    python examples/annealed.py --data targets.npz --target ionosphere    # with ionosphere_X, ionosphere_y
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import options_parser, print_table, pyplot, save_figure
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.nn import functional as F
from tqdm import tqdm

import iwbounds as iw

NOISE = 0.7
KNOTS = 4
KINDS = ("ULA", "MCD", "CMCD", "DAIS", "AIS")
TRUTHS = {"sonar": -108.383, "ionosphere": -111.608}


@dataclass(frozen=True)
class Target:
    """A posterior in coordinates in which the mean-field fit is a standard normal."""

    name: str
    dims: int
    log_joint: Callable[[Tensor], Tensor]
    truth: float | None
    """log p(y) in nats."""
    initial_elbo: float = float("nan")


def diabetes() -> Target:
    """Linear regression with a known noise: the evidence is that of a Gaussian."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x = torch.from_numpy(data.data / data.data.std(0)).float()
    y = torch.from_numpy((data.target - data.target.mean()) / data.target.std()).float()

    def log_joint(z: Tensor) -> Tensor:
        return _prior(z) + Normal(z @ x.T, NOISE).log_prob(y).sum(-1)

    wide = x.double()
    covariance = wide @ wide.T + NOISE**2 * torch.eye(len(wide), dtype=torch.float64)
    truth = MultivariateNormal(torch.zeros(len(wide), dtype=torch.float64), covariance).log_prob(y.double()).item()
    return Target("diabetes", x.shape[1], log_joint, truth)


def classification(path: Path, name: str) -> Target:
    """Logistic regression with an intercept on standardised columns."""
    with np.load(path) as data:
        x, y = data[f"{name}_X"].astype(np.float64), torch.from_numpy(data[f"{name}_y"]).float()
    spread = x.std(0)
    x = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    design = torch.from_numpy(np.concatenate([np.ones((len(x), 1)), x], 1)).float()

    # log p(y | z) = −Σ softplus(±x · z), and a matrix that is transposed once.
    signed = ((1 - 2 * y).unsqueeze(1) * design).T.contiguous()

    def log_joint(z: Tensor) -> Tensor:
        return _prior(z) - F.softplus(z @ signed).sum(-1)

    return Target(name, design.shape[1], log_joint, TRUTHS.get(name))


def _prior(z: Tensor) -> Tensor:
    """log N(z; 0, I), without a distribution made anew for each state of a chain."""
    return -0.5 * z.square().sum(-1) - z.shape[-1] / 2 * math.log(2 * math.pi)


def warm_started(target: Target, iterations: int = 1500) -> Target:
    """The target in the coordinates of its mean-field fit, z = mean + scale · u: that fit is u ~ N(0, I)."""
    mean, log_scale = nn.Parameter(torch.zeros(target.dims)), nn.Parameter(torch.full((target.dims,), -1.0))
    optimizer = torch.optim.Adam([mean, log_scale], 0.03)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in tqdm(range(iterations), desc="mean field", leave=False):
        q = normal(mean, log_scale.exp())
        optimizer.zero_grad()
        (-iw.estimate(target.log_joint, q, iw.ELBO(), num_samples=16).value).backward()
        optimizer.step()
        decay.step()
    mean, scale = mean.detach(), log_scale.detach().exp()

    def log_joint(u: Tensor) -> Tensor:
        return target.log_joint(mean + scale * u) + scale.log().sum()

    moved = replace(target, log_joint=log_joint)
    return replace(moved, initial_elbo=scored(moved, standard_normal(target.dims), groups=16).elbo)


def standard_normal(dims: int) -> Independent:
    return normal(torch.zeros(dims), torch.ones(dims))


def normal(mean: Tensor, scale: Tensor) -> Independent:
    """Without validation, which reads every value in each step."""
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


class Chain(nn.Module):
    """A chain of one kind, and everything of it that is learned: its start, and functions of the time from 0 to 1.

    A function of time is linear between a few knots, so that its parameters suit any number of steps.
    """

    def __init__(self, kind: str, dims: int, num_steps: int, hidden: int = 0, knots: int = KNOTS) -> None:
        super().__init__()
        self.kind, self.dims, self.num_steps = kind, dims, num_steps
        # How much of each knot a step takes: hat functions.
        time_of = (torch.arange(num_steps) + 0.5) / num_steps * (knots - 1)
        hats = (1 - (time_of.unsqueeze(1) - torch.arange(knots)).abs()).clamp_min(0.0)
        self.register_buffer("hats", hats, persistent=False)
        # Of the initial Gaussian: the mean-field fit to begin with.
        self.mean, self.log_scale = nn.Parameter(torch.zeros(dims)), nn.Parameter(torch.zeros(dims))
        self.increments = nn.Parameter(torch.zeros(knots))
        self.log_sizes = nn.Parameter(torch.full((knots, dims), 0.3 if kind == "DAIS" else 0.25).log())
        self.drift = Drift(dims, knots, hidden) if "MCD" in kind else None

    def schedule(self) -> Tensor:
        """β_0..β_T."""
        inner = (self.hats @ self.increments).softmax(0)[:-1].cumsum(0)
        return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])

    def proposal(self) -> iw.AnnealedProposal:
        # A longer chain goes on from a shorter one: the best Langevin steps shrink, about as 1/√T; leapfrogs do not.
        unit = 1.0 if self.kind == "DAIS" else self.num_steps**-0.5
        sizes = (unit * (self.hats @ self.log_sizes).exp()).unbind(0)
        transition = {
            "ULA": lambda: iw.ULA(sizes.__getitem__),
            "MCD": lambda: iw.MCD(self.drift.network(self.hats, sizes), sizes.__getitem__),
            "CMCD": lambda: iw.CMCD(self.drift.network(self.hats, sizes), sizes.__getitem__),
            "DAIS": lambda: iw.DAIS(sizes.__getitem__),
        }[self.kind]()
        initial = normal(self.mean, self.log_scale.exp())
        return iw.AnnealedProposal(initial, transition, self.num_steps, self.schedule)


class Drift(nn.Module):
    """What is added to the Langevin drift: linear in z, as between Gaussians, and a small network if ``hidden``."""

    def __init__(self, dims: int, knots: int, hidden: int) -> None:
        super().__init__()
        # Zero at first: training starts from ULA.
        self.matrix, self.shift = nn.Parameter(torch.zeros(knots, dims, dims)), nn.Parameter(torch.zeros(knots, dims))
        self.first = nn.Parameter(torch.randn(dims, hidden) / dims**0.5)
        self.times, self.last = nn.Parameter(torch.zeros(knots, hidden)), nn.Parameter(torch.zeros(hidden, dims))

    def network(self, hats: Tensor, sizes: Sequence[Tensor]) -> Callable[[Tensor, int], Tensor]:
        """u(z, step), with the weights of all steps put together once for a whole path.

        δ u is a share of 1/T of the way: what is learned depends neither on the number of steps nor on their size.
        """
        matrices, shifts = torch.tensordot(hats, self.matrix, 1).unbind(0), (hats @ self.shift).unbind(0)
        times = (hats @ self.times).unbind(0)
        shares = [1 / (len(sizes) * size) for size in sizes]

        def drift(z: Tensor, step: int) -> Tensor:
            way = torch.addmm(shifts[step], z, matrices[step])
            if len(self.last):
                way = way + torch.tanh(torch.addmm(times[step], z, self.first)) @ self.last
            return way * shares[step]

        return drift


def trained(chain: Chain, target: Target, iterations: int, num_chains: int, rate: float) -> Chain:
    """Adam on the ELBO of the path, with as many paths in each step as ``num_chains``."""
    optimizer = torch.optim.Adam(chain.parameters(), rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_of_rate(step, iterations))
    for _ in tqdm(range(iterations), desc=f"{chain.kind}, {chain.num_steps} steps", leave=False):
        optimizer.zero_grad()
        (-iw.estimate(target.log_joint, chain.proposal(), iw.ELBO(), num_samples=num_chains).value).backward()
        nn.utils.clip_grad_norm_(chain.parameters(), 10.0)
        optimizer.step()
        decay.step()
    return chain


def schedule_of_rate(step: int, iterations: int) -> float:
    """Up over the first tenth, which Adam's averages need (50 steps at most), then down along a cosine."""
    return min(1.0, (step + 1) / min(50, 1 + iterations / 10)) * (0.51 + 0.49 * math.cos(math.pi * step / iterations))


def adapted(target: Target, num_gradients: int) -> iw.AnnealedProposal:
    """AIS with as many slopes per path as the other chains take: 2 leapfrog steps a move."""
    chain = iw.AnnealedProposal(standard_normal(target.dims), iw.HMC(0.2, 2), max(2, num_gradients // 2 + 1))
    return chain.adapted(target.log_joint, num_samples=64)


class Score(NamedTuple):
    """ELBO and IWAE with 64 paths, and their standard errors."""

    elbo: float
    error: float
    iwae: float
    iwae_error: float


@torch.no_grad()
def scored(target: Target, proposal: object, groups: int) -> Score:
    """From ``groups`` times 64 paths, under IWAE a group at a time."""
    log_w = torch.stack([iw.estimate(target.log_joint, proposal, num_samples=64).log_weights for _ in range(groups)])
    iwae = iw.IWAE()(log_w.T)
    return Score(
        log_w.mean().item(),
        (log_w.std() / log_w.numel() ** 0.5).item(),
        iwae.mean().item(),
        (iwae.std() / groups**0.5).item(),
    )


@dataclass(frozen=True)
class Row:
    target: str
    kind: str
    num_steps: int
    iterations: int
    score: Score
    seconds: float


@dataclass(frozen=True)
class Training:
    """How chains are trained and measured."""

    num_chains: int
    groups: int = 16
    hidden: int = 0

    def rows(
        self, target: Target, kind: str, steps: Sequence[int], iterations: Sequence[int], rates: Sequence[float]
    ) -> Iterator[Row]:
        """A line for each number of steps, in ascending order: a chain goes on from the one before."""
        shorter = None
        for num_steps, count, rate in sorted(zip(steps, iterations, rates, strict=True)):
            start = time.perf_counter()
            if kind == "AIS":
                count, proposal = 0, adapted(target, num_steps)
            else:
                chain = Chain(kind, target.dims, num_steps, self.hidden)
                if shorter is not None:
                    chain.load_state_dict(shorter.state_dict())
                shorter = trained(chain, target, count, self.num_chains, rate)
                proposal = shorter.proposal()
            yield Row(
                target.name, kind, num_steps, count, scored(target, proposal, self.groups), time.perf_counter() - start
            )


def show(target: Target, rows: Sequence[Row]) -> None:
    truth = target.truth if target.truth is not None else float("nan")
    print(f"{target.name}: {target.dims} coefficients, log p(y) = {truth:.3f} nats; mean-field ELBO, ", end="")
    print(f"from which all chains start: {target.initial_elbo - truth:+.2f} nats from it\n")
    cells = [
        [
            f"{r.kind}, {r.num_steps} steps",
            f"{truth - r.score.elbo:.3f} ± {r.score.error:.3f}",
            f"{truth - r.score.iwae:.3f} ± {r.score.iwae_error:.3f}",
            f"{r.seconds:.0f}",
        ]
        for r in rows
    ]
    print_table(["chain", "gap of the ELBO", "gap of IWAE-64", "s"], cells)


def draw(target: Target, rows: Sequence[Row], path: Path) -> None:
    """Gaps against the number of steps, one line for each kind of chain."""
    truth = target.truth if target.truth is not None else 0.0
    figure, axes = pyplot().subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    draw_gaps(axes, truth, rows)
    for axis in axes:
        axis.axhline(truth - target.initial_elbo, color="black", linewidth=0.8, linestyle=":")
    axes[1].set_ylabel("")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{target.name}: chains from a mean-field start (dotted: its ELBO)", fontsize=11)
    save_figure(figure, path)


def draw_gaps(axes: Sequence[Any], truth: float, rows: Sequence[Row]) -> None:
    """The ELBO on the first axis, IWAE on the second; hollow at its standard error, a gap that is not above it."""
    from matplotlib.ticker import LogLocator

    from iwbounds.plots.style import BLACK, BLUE, GREEN, ORANGE, VERMILION, plain

    looks = dict(zip(KINDS, zip((BLUE, GREEN, VERMILION, ORANGE, BLACK), "osD^v", strict=True), strict=True))
    steps = sorted({r.num_steps for r in rows})
    for axis, name, error in zip(axes, ("elbo", "iwae"), ("error", "iwae_error"), strict=True):
        for kind, (colour, marker) in looks.items():
            of_kind = sorted((r for r in rows if r.kind == kind), key=lambda r: r.num_steps)
            if not of_kind:
                continue
            found = [(truth - getattr(r.score, name), getattr(r.score, error)) for r in of_kind]
            gaps, counts = [max(pair) for pair in found], [r.num_steps for r in of_kind]
            axis.plot(counts, gaps, marker=marker, color=colour, label=kind)
            hollow = [i for i, (gap, least) in enumerate(found) if gap <= least]
            axis.plot([counts[i] for i in hollow], [gaps[i] for i in hollow], marker, color=colour, mfc="white")
        plain(axis, "ELBO" if name == "elbo" else "IWAE, 64 paths", "steps (slopes per path)", "log p(y) − bound, nats")
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(steps, [str(count) for count in steps])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser(__doc__.splitlines()[0], "annealed.png")
    parser.add_argument("--data", type=Path, help="an .npz with NAME_X and NAME_y")
    parser.add_argument("--target", default="ionosphere", help="NAME in that archive")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--chains", type=int, default=64, help="paths in each training step")
    parser.add_argument("--rate", type=float, default=0.01, help="Adam's first learning rate")
    options: argparse.Namespace = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    target = warm_started(diabetes() if options.data is None else classification(options.data, options.target))
    training, steps = Training(options.chains), options.steps
    counts, rates = [options.iterations] * len(steps), [options.rate] * len(steps)
    rows = [row for kind in options.kinds for row in training.rows(target, kind, steps, counts, rates)]
    show(target, rows)
    draw(target, rows, options.out)


if __name__ == "__main__":
    main()
