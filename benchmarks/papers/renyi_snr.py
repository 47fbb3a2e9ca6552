"""Signal-to-noise of the VR-IWAE bound's gradients: Daudel, Benton, Shi and Doucet (2023), arXiv:2210.06226.

    PYTHONPATH=benchmarks python -m papers.renyi_snr             # a minute
    PYTHONPATH=benchmarks python -m papers.renyi_snr --full      # 64 times the replications

With alpha = 0 (IWAE) the reparameterised gradient of the proposal loses its signal with K: SNR of order K^(-1/2). With
0 < alpha < 1 the limit of the bound still depends on the proposal, so the signal stays and SNR is of order K^(1/2);
doubly reparameterised, alpha = 0 has that too. The model's gradient has K^(1/2) throughout.

A Gaussian x | z ~ N(z, I), z ~ N(mu, I) with q = N(x/2 + b, 2/3 I) near its optimum, in five dimensions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import table
from papers.expected import Figure, parser, report
from papers.training import keep
from torch import Tensor
from torch.distributions import Independent, Normal

import iwbounds as iw

COUNTS = (16, 64, 256)
RULES = {"reparameterised": iw.Reparameterized(), "doubly reparameterised": iw.DReG()}
ROWS = 2**15
"""Samples × replications in memory at once."""


@dataclass(frozen=True)
class Problem:
    x: Tensor
    mu: Tensor
    b: Tensor

    @classmethod
    def draw(cls, dimension: int, offset: float) -> Problem:
        noise = torch.randn(4, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mu = noise[0]
        return cls(mu + math.sqrt(2) * noise[1], mu + offset * noise[2], mu / 2 + offset * noise[3])

    def gradients(self, bound: iw.Bound, rule: iw.Gradient, count: int, replications: int) -> tuple[Tensor, Tensor]:
        """For the model's mu and the proposal's b, (replications, dimension): each replication has its own copies."""
        # The batch axis is that of replications: one backward gives all their gradients.
        mu, b = (p.repeat(replications, 1).requires_grad_() for p in (self.mu, self.b))
        scale = torch.full_like(b, math.sqrt(2 / 3))
        q = Independent(Normal(self.x / 2 + b, scale, validate_args=False), 1, validate_args=False)

        def log_joint(z: Tensor) -> Tensor:
            return -((z - mu).square() + (self.x - z).square()).sum(-1) / 2

        iw.estimate(log_joint, q, bound, rule, num_samples=count).value.sum().backward()
        return mu.grad, b.grad


def moments(gradients: Tensor) -> tuple[float, float]:
    """Norm of the mean, whose own noise is taken off, and total variance."""
    variance = gradients.var(0).sum()
    # Left in, it would give a gradient that is pure noise an SNR of 1/√replications.
    squared = gradients.mean(0).square().sum() - variance / len(gradients)
    return squared.clamp_min(0).sqrt().item(), variance.item()


def measure(problem: Problem, alpha: float, count: int, replications: int) -> dict[str, float]:
    """SNR of the model's gradient and, by rule, of the proposal's: of one mean, which the less noisy rule tells."""
    bound = iw.IWAE() if alpha == 0 else iw.Renyi(alpha)  # the same at 0, by its own code
    found = {}
    for name, rule in RULES.items():
        # Both rules see the same noise, so that their difference is not of the draws.
        torch.manual_seed(count)
        size = max(1, ROWS // count)
        parts = [problem.gradients(bound, rule, count, size) for _ in range(math.ceil(replications / size))]
        found[name] = [moments(torch.cat(side)) for side in zip(*parts, strict=True)]
    signal = min((proposal for _, proposal in found.values()), key=lambda m: m[1])[0]
    snr = {name: signal / math.sqrt(proposal[1]) for name, (_, proposal) in found.items()}
    model_signal, model_variance = found["reparameterised"][0]
    return snr | {"model": model_signal / math.sqrt(model_variance)}


def slope(values: Sequence[float]) -> float:
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (COUNTS, values))
    x = x - x.mean()
    return ((x @ y) / (x @ x)).item()


def main(argv: Sequence[str] | None = None) -> bool:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    problem = Problem.draw(options.dimension, options.offset)
    slopes: dict[tuple[float, str], float] = {}
    rows = []
    for alpha in options.alphas:
        replications = options.replications or (2**19 if options.full else 2**13)
        curves = [measure(problem, alpha, count, replications) for count in COUNTS]
        for name in curves[0]:
            values = [curve[name] for curve in curves]
            slopes[alpha, name] = slope(values)
            rows.append([f"{alpha:g}", name, *(f"{v:.3g}" for v in values), f"{slopes[alpha, name]:+.2f}"])
    print(table(["alpha", "gradient", *(f"K = {k}" for k in COUNTS), "slope"], rows))
    keep({f"alpha {a:g}, {name}": {"slope": round(s, 3)} for (a, name), s in slopes.items()}, Path(options.results))
    # Only IWAE's limit, log p(x), does not depend on the proposal.
    theory = {key: -0.5 if key == (0.0, "reparameterised") else 0.5 for key in slopes}
    return report(
        [Figure.near(f"slope, alpha {a:g}, {name}", s, theory[a, name], 0.15) for (a, name), s in slopes.items()]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    found = parser(__doc__, "renyi_snr.json")
    found.add_argument("--full", action="store_true")
    found.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.2, 0.5])
    found.add_argument("--dimension", type=int, default=5)
    found.add_argument("--offset", type=float, default=0.2, help="of mu and b from their optimum")
    found.add_argument("--replications", type=int, help="default: 8192, or 524 288 with --full")
    return found.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(not main())
