"""The test NLL of a VAE by U-MLMC for the decoder and DReG of IWAE for the encoder, against IWAE at equal cost.

    python benchmarks/umlmc.py [--quick] [--figure out/umlmc.png]

Runs examples/recipes/unbiased_training.py from several seeds: a VAE 64-100-10 of scikit-learn's digits, every fourth of
which is kept for the test. The cost is the number of samples drawn for each image of a batch. NLL in nats, by IWAE of
200 samples.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from common import arguments, pyplot, save_figure, table
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "examples" / "recipes"))
import unbiased_training as recipe

BUDGET, LOOKS = 20_000, 10


def plot(curves: dict[str, Tensor], path: Path) -> None:
    """Each seed's curve thin, their mean thick."""
    from iwbounds.plots.style import BLUE, VERMILION, plain

    figure, axis = pyplot().subplots(figsize=(6, 3.6), layout="constrained")
    for (name, found), colour in zip(curves.items(), (VERMILION, BLUE), strict=True):
        cost = torch.arange(1, found.shape[1] + 1) * BUDGET / LOOKS
        for curve in found:
            axis.plot(cost, curve, color=colour, linewidth=0.6, alpha=0.6)
        axis.plot(cost, found.mean(0), color=colour, marker="o", markersize=4, label=name)
    plain(axis, "Digits: a decoder trained without bias", "samples for each image of a batch", "test NLL, nats")
    axis.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds = range(1 if options.quick else options.seeds)
    runs = [recipe.main(options.quick, seed, BUDGET, LOOKS) for seed in seeds]
    curves = {name: torch.tensor([run[name] for run in runs]) for name in recipe.CASES}
    rows = [
        [name, *(f"{nll:.2f}" for nll in found.mean(0)[1::2]), f"{found[:, -1].min():.2f} to {found[:, -1].max():.2f}"]
        for name, found in curves.items()
    ]
    shown = [f"{BUDGET * (i + 1) // LOOKS}" for i in range(1, LOOKS, 2)] if not options.quick else ["end"]
    print(table(["mean test NLL", *shown, "the seeds' last"], rows))
    if options.figure and not options.quick:
        plot(curves, options.figure)


if __name__ == "__main__":
    main()
