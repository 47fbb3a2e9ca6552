"""Chains at equal numbers of slopes on real posteriors: the full form of examples/annealed.py.

python benchmarks/annealed.py --data targets.npz --targets ionosphere sonar seeds
python benchmarks/annealed.py --data targets.npz --report lines.jsonl       # the table of runs made before

All start from the mean-field fit, and are trained alike. Every line is written as soon as it is known (``--lines``), so
that an interrupted run is not lost; one seed settles the lines of one kind of chain, each longer one of which goes on
from the shorter. Seconds are wall-clock of training and of 64 · 64 evaluation paths, and mean something only on a
machine that does nothing else. ``--figure PATH.png`` draws the lines that are reported.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parent / "atlas"))
import targets
from _common import pyplot, save_figure
from annealed import (
    KINDS,
    TRUTHS,
    Row,
    Score,
    Target,
    Training,
    classification,
    diabetes,
    draw_gaps,
    scored,
    standard_normal,
    warm_started,
)
from torch import Tensor
from torch.nn import functional as F

TRUTH = {**TRUTHS, "seeds": -73.406}
"""log p(y); that of seeds as in docs/atlas.md."""

ITERATIONS = {8: 30, 64: 20, 256: 4}
"""Of training, by steps, for each coefficient: the drifts of MCD and CMCD have a matrix of them."""

RATES = {8: 0.02, 64: 0.005, 256: 0.002}
"""Adam's highest, by steps: a longer chain begins where a shorter one has arrived."""


def target_of(path: Path, name: str) -> Target:
    """A classification, or the random effects of the germinating seeds."""
    if name != "seeds":
        return classification(path, name)
    with np.load(path) as data:
        found = {key: targets.double(data[key]) for key in data if key.startswith("seeds")}
    reference, log_density = targets.seeds(found), seeds(found)
    z = torch.randn(16, 26)
    torch.testing.assert_close(log_density(z).double(), reference.log_density(z.double()), rtol=1e-4, atol=1e-3)
    return Target(name, len(reference.start), log_density, TRUTH[name])


def seeds(data: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The density of targets.seeds in single precision and few operations: it is called at every state."""
    r, n, x1, x2 = (data[f"seeds_{key}"].float() for key in ("r", "n", "x1", "x2"))
    x = torch.stack([torch.ones_like(x1), x1, x2, x1 * x2])
    choices = (torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)).sum().item()
    gamma = 0.01 * math.log(0.01) - math.lgamma(0.01)
    constant = choices + gamma - 25 / 2 * math.log(2 * math.pi) - 4 * math.log(10.0)

    def log_density(z: Tensor) -> Tensor:
        log_tau, a, u = z[..., 0], z[..., 1:5], z[..., 5:]
        logits = a @ x + u * (-0.5 * z[..., :1]).exp()
        prior = 0.01 * (log_tau - log_tau.exp()) - 0.005 * a.square().sum(-1) - 0.5 * u.square().sum(-1)
        return constant + prior + (r * logits - n * F.softplus(logits)).sum(-1)

    return log_density


def gate() -> None:
    """Refuse to report anything unless short chains stay below an evidence that is known, IWAE above the ELBO."""
    torch.manual_seed(0)
    target = warm_started(diabetes(), 400)
    for kind in KINDS:
        for row in Training(num_chains=8).rows(target, kind, [8], [20], [0.01]):
            if not row.score.elbo < row.score.iwae < target.truth + 4 * row.score.iwae_error:
                raise SystemExit(f"gate: {kind} gives {row} where log p(y) = {target.truth:.3f}")


def table(rows: list[Row]) -> str:
    """Markdown, in the order of the lines."""
    head = "| posterior | chain | iterations | gap of the ELBO | gap of IWAE-64 | s |\n|---|---|---|---|---|---|"
    lines = []
    for row in rows:
        truth, score = TRUTH[row.target], row.score
        name = f"{row.kind}, {row.num_steps} steps" if row.num_steps else row.kind
        lines.append(
            f"| {row.target} | {name} | {row.iterations or '—'} | {truth - score.elbo:.3f} ± {score.error:.3f} | "
            f"{truth - score.iwae:.3f} ± {score.iwae_error:.3f} | {row.seconds:.0f} |"
        )
    return "\n".join([head, *lines])


def figure(rows: list[Row], path: Path) -> None:
    """Gaps against the number of steps: a column for each posterior, ELBO above and IWAE below."""
    names = list(dict.fromkeys(row.target for row in rows))
    found, axes = pyplot().subplots(
        2, len(names), figsize=(3.2 * len(names) + 1, 6), layout="constrained", sharex="col", squeeze=False
    )
    for column, name in zip(axes.T, names, strict=True):
        of_target = [row for row in rows if row.target == name]
        draw_gaps(column, TRUTH[name], [row for row in of_target if row.num_steps])
        start = next(row for row in of_target if not row.num_steps)
        column[0].axhline(TRUTH[name] - start.score.elbo, color="black", linewidth=0.8, linestyle=":")
        column[0].set_title(f"{name}: ELBO", fontsize=10)
        column[0].set_xlabel("")
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    found.legend(lines, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save_figure(found, path)


def each(steps: list[int], given: list[Any] | None, usual: dict[int, Any]) -> list[Any]:
    """One value for each number of steps: those given, the only one that is, or the usual one of the nearest number."""
    if given is None:
        return [usual[min(usual, key=lambda known: abs(known - count))] for count in steps]
    if len(given) not in (1, len(steps)):
        raise SystemExit(f"expected one value, or one for each of {len(steps)} numbers of steps; got {given}")
    return given * len(steps) if len(given) == 1 else given


def read(path: Path) -> list[Row]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Row(**{**line, "score": Score(**line["score"])}) for line in lines]


def write(path: Path, row: Row) -> None:
    """One more line, at once."""
    with path.open("a") as file:
        file.write(json.dumps({**asdict(row), "score": row.score._asdict()}) + "\n")
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=["ionosphere", "sonar"], choices=TRUTH)
    parser.add_argument("--kinds", nargs="+", default=["CMCD", "MCD", "ULA", "DAIS", "AIS"], choices=KINDS)
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 64, 256])
    parser.add_argument("--chains", type=int, default=128, help="paths in each training step")
    parser.add_argument("--rates", type=float, nargs="+", help="Adam's highest: one, or each step's")
    parser.add_argument("--hidden", type=int, default=0, help="units of a network in the drift, beside a linear map")
    parser.add_argument("--iterations", type=int, nargs="+", help="one, or each step's; for all kinds alike")
    parser.add_argument("--groups", type=int, default=64, help="of 64 paths that measure each line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, default=Path("out") / "annealed.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of these lines")
    parser.add_argument("--figure", type=Path, help="draw the lines of --report")
    parser.add_argument("--no-gate", action="store_true", help="after a run that passed it")
    options = parser.parse_args()
    if options.report:
        rows = read(options.report)
        print(table(rows))
        if options.figure:
            figure(rows, options.figure)
        return
    torch.set_num_threads(1)
    if not options.no_gate:
        gate()
    options.lines.parent.mkdir(parents=True, exist_ok=True)
    training = Training(options.chains, options.groups, options.hidden)
    for name in options.targets:
        torch.manual_seed(options.seed)
        target = warm_started(target_of(options.data, name))
        start = scored(target, standard_normal(target.dims), options.groups)
        write(options.lines, Row(name, "mean field", 0, 0, start, 0.0))
        usual = {steps: count * target.dims for steps, count in ITERATIONS.items()}
        counts = each(options.steps, options.iterations, usual)
        rates = each(options.steps, options.rates, RATES)
        for kind in options.kinds:
            torch.manual_seed(options.seed)
            for row in training.rows(target, kind, options.steps, counts, rates):
                write(options.lines, row)


if __name__ == "__main__":
    main()
