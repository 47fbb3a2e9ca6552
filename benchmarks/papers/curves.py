"""Training curves of runs that `papers.table1` has kept, under the paper's figures: how far a short run is from them.

    PYTHONPATH=benchmarks python -m papers.curves mnist-1-VAE-1-seed0 mnist-1-VAE-1-seed0-decay-stepped

Each curve is minus the mean training bound of an epoch, with the K of its objective; its last point, a diamond, is the
test NLL. The dashed lines are the paper's test NLLs after 3280 epochs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from papers.expected import RESULTS

PAPER = {"VAE, k = 1": 86.76, "IWAE, k = 50": 84.78}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("runs", nargs="+", help="names in the results")
    found.add_argument("--results", type=Path, default=RESULTS / "table1.json")
    found.add_argument("--out", type=Path, default=Path("out") / "table1_curves.png", help="where the figure goes")
    return found.parse_args(argv)


def label(run: dict[str, Any]) -> str:
    of = run["settings"]
    return f"{of['objective']}, K = {of['samples']}, batches of {of['batch_size']}: {run['nll']:.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    kept = json.loads(options.results.read_text())
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    from iwbounds.plots.style import plain

    figure, axis = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    for number, name in enumerate(options.runs):
        run, colour = kept[name], f"C{number}"
        losses = [-bound for bound in run["curve"]]
        axis.plot(range(1, len(losses) + 1), losses, "o-", color=colour, markersize=2, linewidth=1, label=label(run))
        axis.plot(len(losses), run["nll"], "D", color=colour)
    for number, (name, nll) in enumerate(PAPER.items()):
        axis.axhline(nll, color="0.5", linestyle="--", linewidth=1)
        # one above its line and one below: they are two nats apart
        axis.annotate(f"paper, {name}: {nll}", (1, nll), fontsize=9, va=("bottom", "top")[number])
    axis.set(xscale="log", ylim=(82, 130))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    plain(axis, "Training (lines) and test NLL at the end (diamonds)", "epochs", "minus the training bound, nats")
    axis.legend(fontsize=9, frameon=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=100)
    pyplot.close(figure)
    print(f"Figure: {options.out}")


if __name__ == "__main__":
    main()
