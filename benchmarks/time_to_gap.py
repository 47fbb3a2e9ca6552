"""How long until the bound is good: Controlled against DReG and Reparameterized, each at its best rate.

    python benchmarks/time_to_gap.py --targets targets.npz [--only sonar|digits] [--quick]

Sonar: logistic regression (61 coefficients, log p(y) = −108.383) by a full-covariance Gaussian that starts at
N(0, 0.3² I), IWAE of 8 samples; the gap is that of IWAE of 8 samples over 400 estimates, looked at every 50 steps. At
too high a rate the factor becomes singular: such a run counts up to there. Left out where the file is absent.

Digits: a VAE 64-100-100-10 of scikit-learn's digits, IWAE of 8 samples, batches of 100; the figure is the held-out
negative log-likelihood by IWAE of 32 samples, looked at every 50 steps.

Adam at every constant rate of a grid. Each run starts from a few seeds; the time to a goal is the median over the seeds
(of an odd number of them), at the rate where that is least. Seconds are the process's own on one thread, without the
looks, so that a shared machine counts for less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import VAE, arguments, table
from gradient_variance import Posterior
from gradient_variance import digits as grey_digits
from torch import Tensor

import iwbounds as iw

LOG_EVIDENCE, COUNT = -108.383, 8
GRADIENTS = {"Reparameterized": iw.Reparameterized, "DReG": iw.DReG, "Controlled": iw.Controlled}
NEVER = (float("inf"), 0)
Course = list[tuple[float, int, float]]
"""Seconds, steps and the figure that is to fall, as training goes on."""


def path_of(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, look: Callable[[], float], steps: int, every: int
) -> Course:
    spent, found = 0.0, []
    for step in range(1, steps + 1):
        start = time.process_time()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        spent += time.process_time() - start
        if step % every == 0:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(1)
                left = look()
            if not abs(left) < 1000:
                break
            found.append((spent, step, left))
    return found


class Sonar:
    name, goals, rates, steps, every = "sonar, gap", (30.0, 10.0, 5.0, 3.0), (0.001, 0.002, 0.004), 2500, 50

    def __init__(self, targets: Path) -> None:
        self.model = Posterior.sonar(targets)

    def path(self, gradient: iw.Gradient, rate: float, steps: int) -> Course:
        model = self.model
        loc, factor = (t.clone().requires_grad_() for t in (model.loc, model.factor))

        def loss() -> Tensor:
            q = model.proposal(loc, factor)
            return -iw.estimate(model.log_joint, q, gradient=gradient, num_samples=COUNT).value

        def gap() -> float:
            q = model.proposal(loc, factor).expand((400,))
            return LOG_EVIDENCE - iw.estimate(model.log_joint, q, num_samples=COUNT).value.mean().item()

        return path_of(loss, torch.optim.Adam([loc, factor], lr=rate), gap, steps, self.every)


class Digits:
    name, goals, rates, steps, every = "digits, NLL", (25.0, 24.0, 23.5, 23.0), (0.002, 0.004, 0.008), 1000, 50

    def __init__(self) -> None:
        grey = grey_digits()
        held_out = torch.arange(len(grey)) % 4 == 0
        self.train = grey[~held_out]
        self.test = torch.bernoulli(grey[held_out], generator=torch.Generator().manual_seed(0))

    def path(self, gradient: iw.Gradient, rate: float, steps: int) -> Course:
        model = VAE(64, 100, 10)

        def loss() -> Tensor:
            x = torch.bernoulli(self.train[torch.randint(len(self.train), (100,))])
            return -iw.estimate(*model(x), gradient=gradient, num_samples=COUNT).value.mean()

        def nll() -> float:
            return -iw.estimate(*model(self.test), num_samples=32).value.mean().item()

        return path_of(loss, torch.optim.Adam(model.parameters(), lr=rate), nll, steps, self.every)


def reached(path: Course, goal: float) -> tuple[float, int]:
    """The first time that the figure is below the goal; infinite where it is not."""
    return next(((spent, step) for spent, step, left in path if left < goal), NEVER)


def best(paths: dict[float, list[Course]], goal: float) -> str:
    """The least median of seconds and of steps over the seeds, each with its rate."""
    cells = []
    for part, unit in ((0, " s"), (1, "")):
        value, rate = min(
            (statistics.median(reached(path, goal)[part] or float("inf") for path in of_rate), rate)
            for rate, of_rate in paths.items()
        )
        cells.append(f"{value:.1f}{unit} at {rate:g}" if unit else f"{value:.0f} steps at {rate:g}")
    return "never" if cells[0].startswith("inf") else "; ".join(cells)


def rows_of(problem: Sonar | Digits, quick: bool, seeds: int) -> Iterator[list[str]]:
    for name, make in GRADIENTS.items():
        paths: dict[float, list[Course]] = {rate: [] for rate in problem.rates}
        for seed in range(seeds):
            for rate, of_rate in paths.items():
                torch.manual_seed(seed)
                of_rate.append(problem.path(make(), rate, 200 if quick else problem.steps))
        least, rate = min(
            (statistics.median(min((left for *_, left in path), default=float("inf")) for path in of_rate), rate)
            for rate, of_rate in paths.items()
        )
        yield [name, *(best(paths, goal) for goal in problem.goals), f"{least:.2f} at {rate:g}"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["sonar", "digits"], default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", type=Path, default=Path("shared/data/targets.npz"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problems: list[Sonar | Digits] = []
    if options.only in "sonar" and options.targets.exists():
        problems.append(Sonar(options.targets))
    elif options.only in "sonar":
        print(f"sonar left out: {options.targets} is absent (--targets)")
    if options.only in "digits":
        problems.append(Digits())
    for problem in problems:
        rows = []
        for row in rows_of(problem, options.quick, 1 if options.quick else options.seeds):
            rows.append(row)
            print("  ".join(row), flush=True)
        print(table([problem.name, *(f"{goal:g}" for goal in problem.goals), "least"], rows))


if __name__ == "__main__":
    main()
