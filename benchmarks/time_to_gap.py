"""How long until the bound is near the evidence: Controlled against DReG and Reparameterized, each at its best rate.

    python benchmarks/time_to_gap.py --targets targets.npz [--quick]

Logistic regression on the sonar data (61 coefficients, log p(y) = −108.383) by a full-covariance Gaussian that starts
at N(0, 0.3² I): IWAE of 8 samples, Adam with a constant rate of a grid. The gap is that of IWAE of 8 samples, looked at
every 50 steps, over 400 estimates. Seconds are the process's own on one thread, without the looks, so that a shared
machine counts for less. At too high a rate the factor becomes singular: such a run counts up to there.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from common import arguments, table
from gradient_variance import Posterior

import iwbounds as iw

LOG_EVIDENCE, COUNT, EVERY = -108.383, 8, 50
RATES, GAPS = (0.001, 0.002, 0.004), (30.0, 10.0, 5.0, 3.0)
GRADIENTS = {"Reparameterized": iw.Reparameterized, "DReG": iw.DReG, "Controlled": iw.Controlled}


def gap(model: Posterior, loc: torch.Tensor, factor: torch.Tensor) -> float:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        q = model.proposal(loc, factor).expand((400,))
        return LOG_EVIDENCE - iw.estimate(model.log_joint, q, num_samples=COUNT).value.mean().item()


def path_of(targets: Path, gradient: iw.Gradient, rate: float, steps: int) -> list[tuple[float, int, float]]:
    """Seconds, steps and the gap, as training goes on."""
    torch.manual_seed(0)
    model = Posterior.sonar(targets)
    loc, factor = (t.clone().requires_grad_() for t in (model.loc, model.factor))
    optimizer = torch.optim.Adam([loc, factor], lr=rate)
    spent, found = 0.0, []
    for step in range(1, steps + 1):
        start = time.process_time()
        optimizer.zero_grad()
        q = model.proposal(loc, factor)
        (-iw.estimate(model.log_joint, q, gradient=gradient, num_samples=COUNT).value).backward()
        optimizer.step()
        spent += time.process_time() - start
        if step % EVERY == 0:
            left = gap(model, loc.detach(), factor.detach())
            if not -1 < left < 1000:
                break
            found.append((spent, step, left))
    return found


def reached(path: list[tuple[float, int, float]], goal: float) -> tuple[float, int]:
    """The first time that the gap is below the goal; infinite where it is not."""
    return next(((spent, step) for spent, step, left in path if left < goal), (float("inf"), 0))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--targets", type=Path, default=Path("shared/data/targets.npz"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.targets.exists():
        raise SystemExit(f"{options.targets} is absent: nothing to measure (--targets)")
    rows = []
    for name, make in GRADIENTS.items():
        paths = {rate: path_of(options.targets, make(), rate, 200 if options.quick else 1500) for rate in RATES}
        cells = []
        for goal in GAPS:
            (seconds, steps), rate = min((reached(path, goal), rate) for rate, path in paths.items())
            cells.append(f"{seconds:.1f} s ({steps} at {rate:g})" if steps else "never")
        least = min(left for path in paths.values() for *_, left in path)
        rows.append([name, *cells, f"{least:.2f}"])
        print("  ".join(rows[-1]), flush=True)
    print(table(["", *(f"gap {goal:g}" for goal in GAPS), "least gap"], rows))


if __name__ == "__main__":
    main()
