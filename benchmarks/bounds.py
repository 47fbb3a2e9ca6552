"""The subset bounds: forward and backward against an IWAE reduction, and against enumerating the subsets.

    python benchmarks/bounds.py   # batch 100, about a minute

First every bound must agree with enumeration, in value and gradient, or nothing is timed. Ratios are medians over
rounds in which both sides are timed in turn, in one run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import cache
from itertools import combinations

import torch
from common import arguments, table
from torch import Tensor

import iwbounds as iw

BATCH = 100
Reduction = Callable[[Tensor], Tensor]


@cache
def _sets(count: int, size: int) -> Tensor:
    """Their indices, made once: not part of the time."""
    return torch.tensor(list(combinations(range(count), size)))


def enumerated(size: int) -> Reduction:
    """The average of IWAE over all sets of ``size`` samples, by gathering each of them."""

    def reduce(log_w: Tensor) -> Tensor:
        return log_w.double()[_sets(len(log_w), size)].logsumexp(1).mean(0) - math.log(size)

    return reduce


def enumerated_jackknife(order: int) -> Reduction:
    def reduce(log_w: Tensor) -> Tensor:
        count = len(log_w)
        return sum(_coefficient(count, order, j) * enumerated(count - j)(log_w) for j in range(order + 1))

    return reduce


def sorted_second_jackknife(log_w: Tensor) -> Tensor:
    """Order 2 by sorted subtraction over all pairs: each sum keeps at least a third of what it is subtracted from."""
    count = len(log_w)
    x = log_w.double().sort(0, descending=True).values
    w = (x - x[0].detach()).exp()
    total, without_one, without_two = w.sum(0), w[1:].sum(0), w[2:].sum(0)
    first, second = (_sets(count - 1, 2) + 1).unbind(1)
    singles = torch.cat([without_one.unsqueeze(0), total - w[1:]]).log().mean(0) - math.log(count - 1)
    pairs = [without_two.unsqueeze(0), without_one - w[2:], total - w[first] - w[second]]
    doubles = torch.cat(pairs).log().mean(0) - math.log(count - 2)
    c = [_coefficient(count, 2, j) for j in range(3)]
    return x[0].detach() + c[0] * (total.log() - math.log(count)) + c[1] * singles + c[2] * doubles


def _coefficient(count: int, order: int, j: int) -> float:
    return (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j))


def forward_backward(reduction: Reduction, log_w: Tensor) -> tuple[Tensor, Tensor]:
    leaf = log_w.detach().clone().requires_grad_()
    value = reduction(leaf)
    value.sum().backward()
    return value.detach(), leaf.grad


def gate() -> None:
    """Refuse to go on unless value and gradient agree with enumeration to 1e-10, for normal and wide weights."""
    checks = [(iw.Jackknife(m), enumerated_jackknife(m)) for m in (1, 2, 3)]
    checks += [(iw.UStatistic(n), enumerated(n)) for n in (2, 6, 12)]
    checks += [(iw.Jackknife(2), sorted_second_jackknife)]
    for (bound, oracle), scale in [(check, scale) for check in checks for scale in (1.0, 60.0)]:
        log_w = scale * torch.randn(14, 10, dtype=torch.float64)
        pairs = zip(forward_backward(bound, log_w), forward_backward(oracle, log_w), strict=True)
        error = max((found - expected).abs().max().item() / scale for found, expected in pairs)
        if not error < 1e-10:
            raise SystemExit(f"gate: {bound!r} is {error:.1e} from enumeration at scale {scale} (limit 1e-10)")


def compare(candidate: Reduction, reference: Reduction, log_w: Tensor, repeats: int) -> list[float]:
    """Median milliseconds of both, and the median of the rounds' ratios."""
    for reduction in (candidate, reference):
        forward_backward(reduction, log_w)
    times = [[_seconds(reduction, log_w) for reduction in (candidate, reference)] for _ in range(repeats)]
    ratio = statistics.median(a / b for a, b in times)
    return [*(1e3 * statistics.median(column) for column in zip(*times, strict=True)), ratio]


def _seconds(reduction: Reduction, log_w: Tensor) -> float:
    start = time.perf_counter()
    forward_backward(reduction, log_w)
    return time.perf_counter() - start


def against_iwae(repeats: int | None) -> None:
    goals = {iw.Jackknife(1): 4, iw.Jackknife(2): 30, iw.Jackknife(3): 75}
    log_w = torch.randn(50, BATCH)
    rows = []
    for bound, goal in goals.items():
        own = compare(bound, iw.IWAE(), log_w, repeats or 300)
        torchs = compare(bound, lambda x: x.logsumexp(0), log_w, repeats or 300)
        rows.append([repr(bound), 50, f"{own[0]:.2f}", f"{own[2]:.1f}", f"{torchs[2]:.1f}", f"<= {goal}"])
    print(table(["bound", "K", "ms", "÷ iw.IWAE", "÷ torch.logsumexp", "goal"], rows), end="\n\n")


def against_enumeration(repeats: int | None) -> None:
    cases = [(iw.Jackknife(2), sorted_second_jackknife, 500, 50), (iw.UStatistic(6), enumerated(6), 20, 20)]
    rows = []
    for bound, reference, count, goal in cases:
        mine, its, ratio = compare(bound, reference, torch.randn(count, BATCH), repeats or 7)
        rows.append([repr(bound), count, f"{mine:.1f}", f"{its:.0f}", f"{1 / ratio:.0f}", f">= {goal}"])
    log_w = torch.randn(64, BATCH)
    seconds = statistics.median(_seconds(iw.UStatistic(32), log_w) for _ in range(3))
    sets = math.comb(64, 32)
    rows.append(["UStatistic(size=32)", 64, f"{1e3 * seconds:.0f}", f"{sets:.0e} sets", "", "possible"])
    print(table(["bound", "K", "ms", "enumeration ms", "times faster", "goal"], rows))


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    gate()
    against_iwae(options.repeats)
    against_enumeration(options.repeats)


if __name__ == "__main__":
    main()
