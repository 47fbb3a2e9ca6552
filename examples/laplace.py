r"""How tight are the bounds of a density that is an integral? HVM, SIVI and IWHVI on a Laplace distribution.

The 50-dimensional Laplace distribution is a Gaussian whose variances are exponential,

    psi_d ~ Exp(1/2),    z_d | psi_d ~ N(0, psi_d)    =>    z_d ~ Laplace(0, 1),

so that log q(z) is known, and the gap of every bound can be measured: U_K from above and Lambda_K from below, with
auxiliary draws of the mixing distribution (SIVI) or of a Gamma reverse model that a small network predicts from z. The
reverse model is first trained by maximum likelihood (the HVM bound, K = 0), then by the doubly reparameterised gradient
of the IWHVI bound.

    python examples/laplace.py [--seed 0] [--out out/laplace.png]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Exponential, Gamma, Independent, Laplace, Normal
from tqdm import tqdm

import iwbounds as iw

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DIMS = 50
NUM_AUX = (0, 1, 5, 10, 50, 100, 1000)


class Reverse(nn.Module):
    """A Gamma for each variance, given its z."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2)
        )

    def forward(self, z: Tensor) -> Distribution:
        size = z.abs() + 1e-4
        log_concentration, log_mean = self.net(torch.stack([size.log(), size.sqrt()], -1)).unbind(-1)
        concentration = log_concentration.exp() + 0.05
        return Independent(Gamma(concentration, concentration * (-log_mean).exp(), validate_args=False), 1)


def proposal(reverse: Callable[[Tensor], Distribution] | None, num_aux: int) -> iw.HierarchicalProposal:
    mixing = Independent(Exponential(torch.full((DIMS,), 0.5)), 1)
    return iw.HierarchicalProposal(mixing, conditional, reverse, num_aux)


def conditional(psi: Tensor) -> Distribution:
    return Independent(Normal(torch.zeros_like(psi), psi.clamp_min(1e-12).sqrt()), 1)


def train(reverse: Reverse, num_aux: int, samples: int, steps: int, rate: float, progress: tqdm) -> None:
    """Minimise the upper bound U_K of log q(z): the ELBO of a log-joint of zeros, whose value is −U_K."""
    optimizer = torch.optim.Adam(reverse.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    q = proposal(reverse, num_aux)
    for _ in range(steps):
        estimate = iw.estimate(lambda z: z.new_zeros(z.shape[0]), q, iw.ELBO(), num_samples=samples)
        optimizer.zero_grad()
        (-estimate.value).backward()
        optimizer.step()
        schedule.step()
        progress.update()
        progress.set_postfix(K=num_aux, bound=f"{-estimate.value.item():.2f}")


@dataclass
class Gap:
    """Mean of U_K − log q(z) or of Λ_K − log q(z), in nats."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


@torch.no_grad()
def gaps(q: iw.HierarchicalProposal, num_aux: int, num_samples: int) -> tuple[Gap, Gap | None]:
    """Both sides against the exact density, at the same z."""
    exact = Independent(Laplace(torch.zeros(DIMS), 1.0), 1)
    sides: list[list[Tensor]] = [[], []]
    size = max(1, min(num_samples, 20_000 // (num_aux + 1)))
    for _ in range(math.ceil(num_samples / size)):
        z, psi = q.rsample((size,))
        log_q = exact.log_prob(z)
        sides[0].append(q.log_prob_upper(z, psi, num_aux) - log_q)
        if num_aux:
            sides[1].append(q.log_prob_lower(z, num_aux) - log_q)
    upper, lower = (_gap(torch.cat(side)) if side else None for side in sides)
    assert upper is not None
    return upper, lower


def _gap(values: Tensor) -> Gap:
    return Gap(values.mean().item(), values.std().item() / math.sqrt(len(values)))


def measure(
    proposals: dict[str, iw.HierarchicalProposal], counts: Sequence[int], num_samples: int
) -> dict[str, dict[int, tuple]]:
    rows: dict[str, dict[int, tuple]] = {name: {} for name in proposals}
    with tqdm(total=len(proposals) * len(counts), desc="measure") as progress:
        for name, q in proposals.items():
            for num_aux in counts:
                rows[name][num_aux] = gaps(q, num_aux, max(500, num_samples // (1 + num_aux // 10)))
                progress.update()
    return rows


def table(rows: dict[str, dict[int, tuple]]) -> str:
    counts = list(next(iter(rows.values())))
    lines = [f"{'gap to log q(z) in nats':<31}" + "".join(f"{f'K = {k}':>19}" for k in counts)]
    lines.append("-" * len(lines[0]))
    for name, cells in rows.items():
        for side, label in enumerate(("upper", "lower")):
            values = [cells[k][side] for k in counts]
            lines.append(f"{name + ', ' + label:<31}" + "".join(f"{'-' if v is None else str(v):>19}" for v in values))
    return "\n".join(lines)


def plot(rows: dict[str, dict[int, tuple]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for colour, (name, cells) in zip(("C3", "C1", "C0"), rows.items(), strict=False):
        for side, style, marker in ((0, "-", "o"), (1, "--", "s")):
            points = [(k, both[side]) for k, both in cells.items() if both[side] is not None]
            label = f"{name}: {('upper', 'lower')[side]} bound"
            x = [k + 0.5 if k == 0 else k for k, _ in points]
            size, error = [abs(gap.mean) for _, gap in points], [gap.error for _, gap in points]
            axes.errorbar(x, size, error, color=colour, linestyle=style, marker=marker, markersize=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="auxiliary draws K", ylabel="|bound − log q(z)|, nats")
    axes.set_xticks([0.5, 1, 10, 100, 1000], ["0\n(HVM)", "1", "10", "100", "1000"])
    axes.set_title(f"Bounds of the density of a {DIMS}-dimensional Laplace distribution")
    axes.grid(alpha=0.3, which="major")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/laplace.png"), help="where the figure goes")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--likelihood-steps", type=int, default=2000, help="training steps at K = 0")
    parser.add_argument("--bound-steps", type=int, default=500, help="training steps of the IWHVI bound at K = 10")
    parser.add_argument("--aux", type=int, nargs="+", default=NUM_AUX, help="the numbers K to measure at")
    parser.add_argument("--samples", type=int, default=10_000, help="z to measure the gaps at, fewer for large K")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    first, second = Reverse(), Reverse()
    with tqdm(total=args.likelihood_steps + args.bound_steps, desc="train the reverse model") as progress:
        train(first, 0, 100, args.likelihood_steps, 1e-2, progress)
        second.load_state_dict(first.state_dict())
        train(second, 10, 30, args.bound_steps, 2e-3, progress)
    rows = measure(
        {
            "SIVI": proposal(None, 0),
            "IWHVI, trained at K = 0": proposal(first, 0),
            "IWHVI, then at K = 10": proposal(second, 0),
        },
        args.aux,
        args.samples,
    )
    print(table(rows))
    print(f"\nexact negative entropy {-DIMS * (1 + math.log(2)):.5f}; the column K = 0 of a reverse model is HVM")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot(rows, args.out)
    print(f"\nFigure: {args.out}")


if __name__ == "__main__":
    main()
