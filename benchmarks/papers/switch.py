"""Table 2 of Burda et al. (2016): what happens to active units when the objective is switched after training.

    PYTHONPATH=benchmarks python -m papers.switch                                 # short form: the digits, 3 seeds
    PYTHONPATH=benchmarks python -m papers.switch --data binarized --samples 5    # MNIST, tens of minutes
    PYTHONPATH=benchmarks python -m papers.switch --full --data mnist             # the paper's: eight stages, then one

A network is trained as a VAE and goes on as an IWAE, and the reverse. In the paper the first gains units and likelihood
and the second loses both: what a unit is used for is a matter of the objective, not of how training began. The short
form is not at its optimum when the switch comes, so each is held against a control that goes on as it was.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import table
from papers.data import NAMES, Data, load
from papers.expected import Figure, parser, report
from papers.training import Settings, geometric_rates, keep, measure, paper_rates, train

ORDERS = (("VAE", "VAE"), ("VAE", "IWAE"), ("IWAE", "IWAE"), ("IWAE", "VAE"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    found = parser(__doc__, "table2.json")
    found.add_argument("--full", action="store_true", help="the paper's schedule, and one more stage after the switch")
    found.add_argument("--data", choices=NAMES, default="digits")
    found.add_argument("--samples", type=int, help="K of the IWAE; default: 20, or 50 with --full")
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--epochs", type=int, help="before the switch; default: 40 for the digits, else 20")
    found.add_argument("--more-epochs", type=int, help="after it; default: as many as before")
    found.add_argument(
        "--max-seconds", type=float, default=float("inf"), help="of training in this visit, for each run"
    )
    found.add_argument("--evaluation-samples", type=int, help="default: 1000, or 5000 with --full")
    found.add_argument("--hidden", type=int, help="default: 100 for the digits, else 200")
    found.add_argument("--latent", type=int, help="default: 20 for the digits, else 50")
    return found.parse_args(argv)


def settings_of(options: argparse.Namespace, first: str, then: str, seed: int) -> Settings:
    small = options.data == "digits"
    epochs = options.epochs or (40 if small else 20)
    # The digits are few: their epoch has 14 steps, and larger ones do no harm.
    steps = (4e-3, 4e-4) if small else (1e-3, 1e-4)
    before = paper_rates() if options.full else geometric_rates(epochs, *steps)
    after = ((3**7, 1e-4),) if options.full else geometric_rates(options.more_epochs or epochs, *steps)
    return Settings(
        options.data,
        first,
        options.samples or (50 if options.full else 20),
        seed=seed,
        batch_size=20 if options.full else 100,
        rates=before,
        then=then,
        then_rates=after,
        hidden=options.hidden or (100 if small else 200),
        latent=options.latent or (20 if small else 50),
    )


def results_of(options: argparse.Namespace, data: Data) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """For each order, a result per seed. A VAE has as many samples as the IWAE: the same bound, with less noise."""
    count = options.evaluation_samples or (5000 if options.full else 1000)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {order: [] for order in ORDERS}
    # Seeds outside: an interrupted run has whole comparisons of the first seeds.
    for seed in options.seeds:
        for order in ORDERS:
            settings = settings_of(options, *order, seed)
            state = train(settings, data, options.checkpoints, options.max_seconds)
            found[order].append(measure(state, data, count))
            keep({settings.name: found[order][-1]}, Path(options.results))
    return found


def difference(results: dict[Any, list[dict[str, Any]]], a: Any, b: Any, key: str) -> list[float]:
    """Of each seed, a minus b."""

    def value(result: dict[str, Any]) -> float:
        # a number of units per layer
        return sum(result[key]) if key == "active_units" else result[key]

    return [value(x) - value(y) for x, y in zip(results[a], results[b], strict=True)]


def expected(results: dict[tuple[str, str], list[dict[str, Any]]]) -> list[Figure]:
    """The paper's direction in every seed: the smallest gain and the smallest loss are above zero."""
    gain, loss = (("VAE", "IWAE"), ("VAE", "VAE")), (("IWAE", "VAE"), ("IWAE", "IWAE"))
    inf = float("inf")
    return [
        Figure("units gained, VAE → IWAE, least", min(difference(results, *gain, "active_units")), 1, inf),
        Figure("nats gained, VAE → IWAE, least", -max(difference(results, *gain, "nll")), 0.05, inf),
        Figure("units lost, IWAE → VAE, least", -max(difference(results, *loss, "active_units")), 1, inf),
        Figure("nats lost, IWAE → VAE, least", min(difference(results, *loss, "nll")), 0.05, inf),
    ]


def main(argv: Sequence[str] | None = None) -> bool:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    results = results_of(options, load(options.data, options.folder, 10_000 if options.full else 1000))
    rows = []
    for (first, then), found in results.items():
        nll, units = [r["nll"] for r in found], [sum(r["active_units"]) for r in found]
        spread = statistics.stdev(nll) if len(nll) > 1 else float("nan")  # one seed has none
        rows.append([f"{first} → {then}", f"{statistics.mean(nll):.2f} ± {spread:.2f}", ", ".join(map(str, units))])
    print(table(["objectives", "test NLL", "active units by seed"], rows))
    return report(expected(results))


if __name__ == "__main__":
    raise SystemExit(not main())
