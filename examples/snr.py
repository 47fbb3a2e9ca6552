"""Does the gradient get better with more samples? Signal-to-noise ratios where all is Gaussian and nothing is hidden.

The set-up of Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh (2018), Tighter Variational Bounds are Not
Necessarily Better, arXiv:1802.04537: z ~ N(mu, I), x | z ~ N(z, I), q(z | x) = N(Ax + b, 2/3 I) in D = 20 dimensions,
near the optimum mu = x's mean, A = I/2, b = mu/2. One x is studied; for it A and b are one vector, the proposal's mean,
so the offsets N(0, 0.01²) are added to mu and b, and A stays.

Many replications of each gradient are drawn at once: the batch axis holds replications, each with its own copy of the
parameters, so that ``.grad`` has one row for each. The signal ||E g|| of every estimator of the proposal's gradient is
the same; it is taken from DReG, which is the least noisy here, as the mean of the others drowns in their noise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _common import options_parser, print_table, pyplot, save_figure
from torch import Tensor
from torch.distributions import Independent, Normal
from tqdm import tqdm

import iwbounds as iw

DIMENSION = 20
ROWS_IN_MEMORY = 2**14
"""Samples × replications that are evaluated together."""

ESTIMATORS = {
    "Reparameterized": iw.Reparameterized(),
    "DReG": iw.DReG(),
    "VIMCO": iw.VIMCO(),
    "OVIS(0)": iw.OVIS(0.0),
}
EXPECTED = {
    "SNR, model, Reparameterized": 0.5,
    "SNR, proposal, Reparameterized": -0.5,
    "SNR, proposal, DReG": 0.5,
    "SNR, proposal, VIMCO": -0.5,
    "SNR, proposal, OVIS(0)": 0.5,
    "variance, proposal, DReG": -3.0,
}
"""Slopes in log K as K grows."""


@dataclass(frozen=True)
class Problem:
    """One datum, and parameters near their optimum for it."""

    x: Tensor
    mu: Tensor
    b: Tensor

    @staticmethod
    def draw(offset: float, device: str) -> Problem:
        mu, noise, *offsets = torch.randn(4, DIMENSION, dtype=torch.float64).to(device)
        return Problem(mu + math.sqrt(2) * noise, mu + offset * offsets[0], mu / 2 + offset * offsets[1])

    def gradients(self, gradient: iw.Gradient, num_samples: int, replications: int) -> tuple[Tensor, Tensor]:
        """Independent gradients of IWAE for ``mu`` and for ``b``, each ``(replications, D)``."""
        mu, b = (p.repeat(replications, 1).requires_grad_() for p in (self.mu, self.b))
        scale = torch.full_like(b, math.sqrt(2 / 3))
        proposal = Independent(Normal(self.x / 2 + b, scale, validate_args=False), 1)

        def log_joint(z: Tensor) -> Tensor:
            return -((z - mu).square() + (self.x - z).square()).sum(-1) / 2 - DIMENSION * math.log(2 * math.pi)

        iw.estimate(log_joint, proposal, iw.IWAE(), gradient, num_samples=num_samples).value.sum().backward()
        return mu.grad, b.grad


@dataclass(frozen=True)
class Moments:
    """Norm of a gradient's mean, and its total variance, from replications ``(R, D)``."""

    signal: float
    variance: float

    @staticmethod
    def of(gradients: Tensor) -> Moments:
        variance = gradients.var(0).sum()
        squared = gradients.mean(0).square().sum() - variance / len(gradients)  # the mean's own noise is taken off
        return Moments(squared.clamp_min(0).sqrt().item(), variance.item())

    def snr(self, signal: float | None = None) -> float:
        return (self.signal if signal is None else signal) / math.sqrt(self.variance)


def measure(problem: Problem, counts: Sequence[int], replications: int) -> dict[str, list[float]]:
    """Every quantity of :data:`EXPECTED`, and the variances of the other estimators, for each number of samples."""
    curves: dict[str, list[float]] = defaultdict(list)
    for count in tqdm(counts, desc="signal to noise", unit="K"):
        moments = {name: _moments(problem, rule, count, replications) for name, rule in ESTIMATORS.items()}
        signal = moments["DReG"][1].signal
        curves["SNR, model, Reparameterized"].append(moments["Reparameterized"][0].snr())
        for name, (_, proposal) in moments.items():
            curves[f"SNR, proposal, {name}"].append(proposal.snr(signal))
            curves[f"variance, proposal, {name}"].append(proposal.variance)
    return curves


def _moments(problem: Problem, rule: iw.Gradient, count: int, replications: int) -> tuple[Moments, Moments]:
    """Of the gradients for the model and for the proposal."""
    at_once = max(1, ROWS_IN_MEMORY // count)
    parts = [problem.gradients(rule, count, rows) for rows in _portions(replications, at_once)]
    model, proposal = (torch.cat(grads) for grads in zip(*parts, strict=True))
    return Moments.of(model), Moments.of(proposal)


def _portions(total: int, size: int) -> list[int]:
    whole, rest = divmod(total, size)
    return [size] * whole + [rest] * (rest > 0)


def slope(counts: Sequence[int], values: Sequence[float]) -> float:
    """Of the least-squares line through log value against log K."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (counts, values))
    x = x - x.mean()
    return ((x @ y) / (x @ x)).item()


def draw_figure(counts: Sequence[int], curves: dict[str, list[float]], path: Path) -> None:
    figure, axes = pyplot().subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    titles = {"SNR": "Signal-to-noise ratio, ‖E g‖ / √tr Var g", "variance": "Variance, tr Var g"}
    colors = {name: f"C{i}" for i, name in enumerate(ESTIMATORS)}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for key, values in curves.items():
            found, target, name = key.split(", ")
            if found == kind:
                axis.loglog(counts, values, "o--" if target == "model" else "o-", color=colors[name])
                label = f"  {target}: {name}, slope {slope(counts, values):+.2f}"
                axis.annotate(label, (counts[-1], values[-1]), color=colors[name], va="center", annotation_clip=False)
        axis.set(title=title, xlabel="samples K")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.grid(True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Gradients of IWAE on a linear-Gaussian model, D = 20")
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_parser(__doc__.splitlines()[0], "snr.png")
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="the numbers K")
    parser.add_argument("--replications", type=int, default=8192, help="gradients per estimator and K")
    parser.add_argument("--offset", type=float, default=0.01, help="standard deviation of the parameters' offsets")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    problem = Problem.draw(options.offset, options.device)
    curves = measure(problem, options.samples, options.replications)
    rows = [
        [
            name,
            *(f"{value:.3g}" for value in curves[name]),
            f"{slope(options.samples, curves[name]):+.2f}",
            f"{theory:+g}",
        ]
        for name, theory in EXPECTED.items()
    ]
    print_table(["quantity", *(f"K={count}" for count in options.samples), "slope", "theory"], rows)
    draw_figure(options.samples, curves, options.out)


if __name__ == "__main__":
    main()
