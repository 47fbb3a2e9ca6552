"""Table 1 of Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.

    PYTHONPATH=benchmarks python -m papers.table1                                    # CPU form: 3 runs, minutes
    PYTHONPATH=benchmarks python -m papers.table1 --full --data mnist --samples 50   # 3280 epochs: a GPU, or nights

The CPU form: fixed binarisation, 20 epochs, batches of 100, VAE, IWAE-5 and DReG-5, 1000 test images with 1000 samples,
Adam's rate falling from 1e-3 to 1e-4 on a straight line. --decay has other ways there, which are worth nats.
--full is the paper's: pixels drawn anew in each epoch, batches of 20, eight stages, 10 000 test images, 5000 samples.
Both go on from their checkpoints; --max-seconds ends a visit, --stages the schedule early.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from common import table
from papers.data import NAMES, load
from papers.expected import Figure, parser, report
from papers.training import DECAYS, OBJECTIVES, Settings, keep, measure, paper_rates, train

CPU_FORM = (("VAE", 1), ("IWAE", 5), ("DReG", 5))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    found = parser(__doc__, "table1.json")
    found.add_argument("--full", action="store_true", help="the paper's schedule, batch size and evaluation")
    found.add_argument("--data", choices=NAMES, default="binarized")
    found.add_argument("--objectives", nargs="+", choices=OBJECTIVES, help="with --samples; default: the CPU form's")
    found.add_argument("--samples", type=int, nargs="+", help="K for each objective")
    found.add_argument("--layers", type=int, choices=(1, 2), default=1, help="stochastic layers")
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--epochs", type=int, default=20, help="of the CPU form")
    found.add_argument("--decay", choices=DECAYS, default="linear", help="of the learning rate in the CPU form")
    found.add_argument("--first-rate", type=float, default=1e-3, help="of the CPU form")
    found.add_argument("--last-rate", type=float, default=1e-4, help="of the CPU form")
    found.add_argument("--batch-size", type=int, help="default: 100, or 20 with --full")
    found.add_argument("--stages", type=int, default=8, help="of the full form")
    found.add_argument(
        "--max-seconds", type=float, default=float("inf"), help="of training in this visit, for each run"
    )
    found.add_argument("--evaluation-samples", type=int, help="default: 1000, or 5000 with --full")
    found.add_argument("--test-images", type=int, help="default: 1000, or 10 000 with --full")
    found.add_argument("--hidden", type=int, default=200)
    found.add_argument("--epsilon", type=float, default=1e-4, help="of Adam: the paper's")
    found.add_argument("--latent", type=int, default=50)
    options = found.parse_args(argv)
    if options.layers == 1 and "GDReG" in (options.objectives or ()):
        found.error("GDReG reparameterises a learned prior, which --layers 2 has. With one layer it is DReG.")
    return options


def runs(options: argparse.Namespace) -> list[Settings]:
    if options.objectives is None and options.samples is None:
        pairs = list(CPU_FORM)
    else:
        usual = [name for name in OBJECTIVES if name != "GDReG" or options.layers == 2]
        names, counts = options.objectives or usual, options.samples or [1, 5, 50]
        # With one sample the three are the same bound, and the IWAE's gradients that of the ELBO.
        pairs = [(name, k) for name in names for k in counts if k > 1 or name == "VAE"]
    short_rates = DECAYS[options.decay](options.epochs, options.first_rate, options.last_rate)
    return [
        Settings(
            options.data,
            name,
            count,
            options.layers,
            seed,
            # A batch of 20 makes five times the steps of an epoch: more than the short form can afford.
            batch_size=options.batch_size or (20 if options.full else 100),
            rates=paper_rates(options.stages) if options.full else short_rates,
            hidden=options.hidden,
            latent=options.latent,
            epsilon=options.epsilon,
        )
        for seed in options.seeds
        for name, count in pairs
    ]


# Options that settle what a run is, beside those that Settings.name has.
FORM = ("decay", "first_rate", "last_rate", "epochs", "stages", "batch_size", "hidden", "latent", "epsilon")


def key(settings: Settings, options: argparse.Namespace) -> str:
    """The settings' name, and each option that is not the form's default: results of two forms have two names."""
    usual = parse(["--full"] if options.full else [])
    other = [f"{name}-{getattr(options, name)}" for name in FORM if getattr(options, name) != getattr(usual, name)]
    return "-".join([settings.name, *(["full"] if options.full else []), *other])


def row(name: str, found: dict[str, Any]) -> list[str]:
    units = " + ".join(map(str, found["active_units"]))
    epochs = f"{found['epochs']} of {found['of_epochs']}"
    return [name, f"{found['nll']:.2f} ± {found['standard_error']:.2f}", units, epochs, f"{found['seconds']}"]


def expected(results: dict[str, dict[str, Any]]) -> list[Figure]:
    """Of the CPU form: a reference run of one seed each, so within a nat; and DReG no worse than the plain gradient."""
    nll = {(r["settings"]["objective"], r["settings"]["samples"]): r["nll"] for r in results.values()}
    vae, iwae, dreg = (nll[key] for key in CPU_FORM)
    return [
        Figure.near("NLL, VAE", vae, 98.5, 1.0),
        Figure.near("NLL, IWAE, K = 5", iwae, 96.5, 1.0),
        # Other seeds move an NLL of this length by 0.1 to 0.2.
        Figure("NLL, DReG minus IWAE, K = 5", dreg - iwae, -2.0, 0.2),
        Figure("NLL, VAE minus IWAE, K = 5", vae - iwae, 0.5, 4.0),
    ]


def main(argv: Sequence[str] | None = None) -> bool:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    test_images = options.test_images or (10_000 if options.full else 1000)
    data = load(options.data, options.folder, test_images)
    results = {}
    for settings in runs(options):
        state = train(settings, data, options.checkpoints, options.max_seconds)
        found = measure(state, data, options.evaluation_samples or (5000 if options.full else 1000))
        results[key(settings, options)] = found
        # after each run, so that an interruption loses none
        keep({key(settings, options): found}, options.results)
    print(table(["run", "test NLL", "active", "epochs", "s"], [row(name, r) for name, r in results.items()]))
    # Figures were found for one form; with any other options there is nothing to hold the result against.
    if runs(options) == runs(parse(["--seeds", str(options.seeds[0])])):
        return report(expected(results))
    print("No expected figures for these options; docs/papers.md has the papers'.")
    return True


if __name__ == "__main__":
    raise SystemExit(not main())
