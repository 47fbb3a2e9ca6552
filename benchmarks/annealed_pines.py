r"""The evidence of a log-Gaussian Cox process on a grid: IWAE and AIS from a Laplace approximation, from both sides.

python benchmarks/annealed_pines.py --data targets.npz --grids 10 40

A count y per cell of an m × m grid over the unit square, f ~ N(log 126 − σ²/2, σ² exp(−distance/β)) with σ² = 1.91 and
β = 1/33, and a log-likelihood Σ f y − exp(f)/m² (the published convention: without log y! and log m²). The upper side
is AIS run backwards from the ends of other, longer chains, half of whose moves are made at β = 1: it is an upper bound
as far as these have arrived.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import iwbounds as iw

VARIANCE, RANGE = 1.91, 1 / 33
MEAN = math.log(126) - VARIANCE / 2


@dataclass(frozen=True)
class Cox:
    """f = MEAN + L u with u ~ N(0, I), in coordinates u = mode + factor · v of the Laplace approximation."""

    counts: Tensor
    root: Tensor
    mode: Tensor
    factor: Tensor

    @property
    def dims(self) -> int:
        return len(self.counts)

    def initial(self) -> Independent:
        """The Laplace approximation: v ~ N(0, I)."""
        return Independent(Normal(torch.zeros(self.dims, dtype=torch.float64), 1.0), 1)

    def log_joint(self, v: Tensor) -> Tensor:
        """log p(y, v), the volume of the change of coordinates included."""
        u = self.mode + v @ self.factor.T
        prior = -0.5 * u.square().sum(-1) - self.dims / 2 * math.log(2 * math.pi)
        return prior + likelihood(MEAN + u @ self.root.T, self.counts) + self.factor.diagonal().log().sum()


def likelihood(f: Tensor, counts: Tensor) -> Tensor:
    return (f * counts - f.exp() / len(counts)).sum(-1)


def cox(points: np.ndarray, m: int) -> Cox:
    """Counts, the prior's Cholesky factor, and mode and curvature of the posterior by damped Newton steps."""
    # A coordinate equal to 1 goes into the last cell.
    cells = np.minimum((points * m).astype(int), m - 1)
    counts = torch.from_numpy(np.bincount(cells[:, 0] * m + cells[:, 1], minlength=m * m)).double()
    axis = (torch.arange(m, dtype=torch.float64) + 0.5) / m
    centres = torch.cartesian_prod(axis, axis)
    root = torch.linalg.cholesky(VARIANCE * (-torch.cdist(centres, centres) / RANGE).exp())
    u, eye = torch.zeros(m * m, dtype=torch.float64), torch.eye(m * m, dtype=torch.float64)

    def value(u: Tensor) -> Tensor:
        return likelihood(MEAN + root @ u, counts) - 0.5 * u.square().sum()

    for _ in range(30):
        rate = (MEAN + root @ u).exp() / m**2
        precision = eye + root.T @ (rate.unsqueeze(1) * root)
        step = torch.linalg.solve(precision, root.T @ (counts - rate) - u)
        while value(u + step) < value(u) and step.abs().max() > 1e-10:
            step = step / 2
        u = u + step
        if step.abs().max() < 1e-8:
            break
    # A lower triangular factor of the inverse: its diagonal gives the volume.
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    return Cox(counts, root, u, factor)


@torch.no_grad()
def measure(name: str, model: Cox, proposal: object, count: int, block: int) -> None:
    """Log-mean-weight, its 99 % lower certificate, ESS and seconds."""
    start = time.perf_counter()
    parts = [iw.estimate(model.log_joint, proposal, num_samples=block).log_weights for _ in range(count // block)]
    log_w = torch.cat(parts)
    value, sure = iw.log_mean_exp(log_w), iw.lower_confidence_bound(log_w)
    ess = iw.effective_sample_size(log_w)
    print(
        f"{name}: log Z = {value:.3f}, ELBO {log_w.mean():.3f} ± {log_w.std() / len(log_w) ** 0.5:.3f}, certified >= "
        f"{sure:.3f} (99 %), ESS {ess:.1f} of {len(log_w)}, {time.perf_counter() - start:.0f} s",
        flush=True,
    )


@torch.no_grad()
def arrived(model: Cox, steps: int, count: int) -> Tensor:
    """Posterior draws, one from the end of each chain: the first half of the moves to the posterior, the rest on it."""
    # AIS takes a schedule that increases: what is left out of the first half is nothing to a move.
    there = 1 - 1e-9
    rise = torch.linspace(0, there, steps // 2 + 1, dtype=torch.float64)
    schedule = torch.cat([rise, torch.linspace(there, 1, steps - steps // 2 + 1, dtype=torch.float64)[1:]])
    chain = iw.AnnealedProposal(model.initial(), iw.HMC(0.2, 3), len(schedule) - 1, schedule)
    return chain.adapted(model.log_joint, num_samples=8, adapt_schedule=False).report(model.log_joint, count).samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--grids", nargs="+", type=int, default=[10, 40])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2000, help="of IWAE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with np.load(options.data) as data:
        points = data["pines"]
    for m in options.grids:
        torch.manual_seed(options.seed)
        start = time.perf_counter()
        model = cox(points, m)
        print(f"{m} × {m}: mode and curvature in {time.perf_counter() - start:.0f} s", flush=True)
        measure(f"{m} × {m}, IWAE", model, model.initial(), options.samples, min(options.samples, 500))
        start = time.perf_counter()
        chain = iw.AnnealedProposal(model.initial(), iw.HMC(0.2, 3), options.steps)
        chain = chain.adapted(model.log_joint, num_samples=8)
        print(f"{m} × {m}: pilot runs in {time.perf_counter() - start:.0f} s", flush=True)
        name = f"{m} × {m}, AIS with {options.steps} steps"
        measure(name, model, chain, options.chains, min(options.chains, 32))
        start = time.perf_counter()
        draws = arrived(model, 2 * options.steps, options.chains)
        print(f"{m} × {m}: posterior draws in {time.perf_counter() - start:.0f} s", flush=True)
        with torch.no_grad():
            print(iw.sandwich(model.log_joint, chain, draws, options.chains, chunk_size=32), flush=True)


if __name__ == "__main__":
    main()
