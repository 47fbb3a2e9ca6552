"""Chains at equal numbers of slopes on real posteriors: the full form of examples/annealed.py.

python benchmarks/annealed.py --data targets.npz --targets ionosphere sonar seeds --steps 8 64
python benchmarks/annealed.py --data targets.npz --report lines.jsonl       # the table of runs made before

Every line is written as soon as it is known (``--lines``), so that an interrupted run is not lost. One seed settles
each line by itself. Seconds are wall-clock of training and of 16 · 64 evaluation paths, and mean something only on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parent / "atlas"))
import targets
from annealed import KINDS, TRUTHS, Row, Target, classification, measured, warm_started

TRUTH = {**TRUTHS, "seeds": -73.45}
"""log p(y); that of seeds is known to ± 0.03."""

ITERATIONS = {8: 1000, 64: 500}
"""Of training, by steps; others take the nearest."""


def iterations_of(kind: str, steps: int) -> int:
    """Networks are trained for twice as long as what has a few hundred numbers to learn."""
    nearest = min(ITERATIONS, key=lambda known: abs(known - steps))
    return ITERATIONS[nearest] if "MCD" in kind else ITERATIONS[nearest] // 2


def target_of(path: Path, name: str) -> Target:
    """A classification, or the random effects of the germinating seeds, whose density is computed in double."""
    if name != "seeds":
        return classification(path, name)
    with np.load(path) as data:
        seeds = targets.seeds({key: targets.double(data[key]) for key in data if key.startswith("seeds")})
    return Target(name, len(seeds.start), lambda z: seeds.log_density(z.double()).float(), TRUTH[name])


def gate() -> None:
    """Refuse to report anything unless short chains stay below an evidence that is known, IWAE above the ELBO."""
    from annealed import diabetes

    torch.manual_seed(0)
    target = warm_started(diabetes(), 400)
    for kind in KINDS:
        row = measured(target, kind, 8, 20, 8, 0.01)
        if not row.elbo < row.iwae < target.truth + 0.5:
            raise SystemExit(f"gate: {kind} gives {row} where log p(y) = {target.truth:.3f}")


def table(lines: list[dict]) -> str:
    """Markdown, in the order of the lines."""
    head = "| posterior | chain | gap of the ELBO | gap of IWAE-64 | s |\n|---|---|---|---|---|"
    rows = []
    for line in lines:
        truth = TRUTH[line["target"]]
        gap, tight = truth - line["elbo"], truth - line["iwae"]
        name = f"{line['kind']}, {line['num_steps']} steps" if line["num_steps"] else line["kind"]
        rows.append(
            f"| {line['target']} | {name} | {gap:.3f} ± {line['error']:.3f} | {tight:.3f} | {line['seconds']:.0f} |"
        )
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=["ionosphere", "sonar"], choices=TRUTH)
    parser.add_argument("--kinds", nargs="+", default=["CMCD", "MCD", "ULA", "DAIS", "AIS"], choices=KINDS)
    parser.add_argument("--steps", nargs="+", type=int, default=[64, 8])
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--iterations", type=int, default=None, help="for all kinds and steps alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, default=Path("out") / "annealed.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of these lines")
    parser.add_argument("--no-gate", action="store_true", help="after a run that passed it")
    options = parser.parse_args()
    if options.report:
        print(table([json.loads(line) for line in options.report.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    if not options.no_gate:
        gate()
    options.lines.parent.mkdir(parents=True, exist_ok=True)
    for name in options.targets:
        torch.manual_seed(options.seed)
        target = warm_started(target_of(options.data, name))
        write(options.lines, Row(name, "mean field", 0, target.initial_elbo, float("nan"), 0.0, 0.0))
        for steps in options.steps:
            for kind in options.kinds:
                torch.manual_seed(options.seed)
                count = options.iterations or iterations_of(kind, steps)
                write(options.lines, measured(target, kind, steps, count, options.chains, options.rate))


def write(path: Path, row: Row) -> None:
    """One more line, at once."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")
    print(row, flush=True)


if __name__ == "__main__":
    main()
