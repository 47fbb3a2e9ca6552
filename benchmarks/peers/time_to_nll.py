"""Training seconds to a given test NLL: iwbounds against Pyro's RenyiELBO, each at its best setting.

    PYTHONPATH=benchmarks python -m peers.time_to_nll --threads 1                          # scikit-learn's digits
    PYTHONPATH=benchmarks python -m peers.time_to_nll --data mnist.npz --epochs 4 8 --targets 100 98

Both sides start from the same parameters and see the same batches, binarised anew in each epoch, under torch's Adam
with a cosine schedule. Learning rate and length are searched for each side on a seed of its own, by the time to the
lowest target; the runs that count have other seeds. The clock runs during training alone, not the evaluation; with one
thread it is the processor's. One evaluator serves all: the IWAE bound of a fixed binarisation of the test images.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import VAE, Fused, arguments, table
from peers.sides import FusedLikelihood, Side, iwbounds_side, pyro_side
from torch import Tensor
from tqdm import tqdm

import iwbounds as iw

FAMILIES = {"torch": VAE, "likelihood": FusedLikelihood, "all": Fused}
GRADIENTS = {"dreg": iw.DReG(), "reparam": iw.Reparameterized()}
TUNING_SEED = 1000
OURS_HELP = "each gradient-K-backward_samples-densities: dreg-64-8-likelihood, or dreg-64-64-torch for a full backward"


@dataclass(frozen=True)
class Images:
    """Grey levels to train on, drawn anew as 0 or 1 whenever they are used, and binary test images."""

    train: Tensor
    test: Tensor

    def batches(self, size: int) -> Iterator[Tensor]:
        for rows in torch.randperm(len(self.train)).split(size):
            yield torch.bernoulli(self.train[rows])

    def model(self, seed: int, hidden: int, latent: int) -> VAE:
        torch.manual_seed(seed)
        model = VAE(self.train.shape[1], hidden, latent)
        model.decoder[-1].bias.data = self.train.mean(0).clamp(0.01, 0.99).logit()
        return model


def load(path: Path | None, test_images: int) -> Images:
    """MNIST from an ``.npz`` with ``train_images`` and ``test_images``, (N, 28, 28) uint8; else the digits."""
    if path is None:
        from sklearn.datasets import load_digits

        grey = torch.from_numpy(load_digits().data).float() / 16
        held_out = torch.arange(len(grey)) % 4 == 0
        train, test = grey[~held_out], grey[held_out]
    else:
        import numpy as np

        with np.load(path) as data:
            train, test = (torch.from_numpy(data[k]).flatten(1).float() / 255 for k in ("train_images", "test_images"))
    test = test[:test_images]
    return Images(train, (torch.rand(test.shape, generator=torch.Generator().manual_seed(0)) < test).float())


@torch.no_grad()
def test_nll(model: VAE, x: Tensor, num_samples: int) -> float:
    """From the same noise whenever it is called; the training's random numbers go on as if it had not been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = [iw.estimate(*model(part), iw.IWAE(), num_samples=num_samples).value for part in x.split(50)]
    return -torch.cat(values).mean().item()


@dataclass(frozen=True)
class Schedule:
    learning_rate: float
    epochs: int


@dataclass(frozen=True)
class Curve:
    seconds: list[float]
    steps: list[int]
    nll: list[float]

    def time_to(self, target: float) -> float:
        return self._first(target, self.seconds)

    def steps_to(self, target: float) -> float:
        """What a machine that other work shares leaves as it is."""
        return self._first(target, self.steps)

    def _first(self, target: float, along: Sequence[float]) -> float:
        """Interpolated between evaluations; infinite where it is not reached."""
        points = list(zip(along, self.nll, strict=True))
        for (t0, n0), (t1, n1) in itertools.pairwise(points):
            if n1 <= target:
                return t0 + (t1 - t0) * (n0 - target) / (n0 - n1)
        return math.inf


def train(make: Callable[[VAE], Side], schedule: Schedule, seed: int, options: argparse.Namespace) -> Curve:
    images = options.images
    model = images.model(seed, options.hidden, options.latent)
    side = make(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=schedule.learning_rate)
    total = schedule.epochs * math.ceil(len(images.train) / options.batch_size)
    annealed = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, eta_min=schedule.learning_rate / 20)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    marks = {round(total * i / options.evaluations) for i in range(1, options.evaluations + 1)}
    curve = Curve([0.0], [0], [test_nll(model, images.test, options.evaluation_samples)])
    batches = itertools.chain.from_iterable(images.batches(options.batch_size) for _ in itertools.count())
    spent, start = 0.0, clock()
    for step, x in enumerate(itertools.islice(batches, total), 1):
        side(x)
        optimizer.step()
        annealed.step()
        if step in marks:
            spent += clock() - start
            curve.seconds.append(spent)
            curve.steps.append(step)
            curve.nll.append(test_nll(model, images.test, options.evaluation_samples))
            start = clock()
    return curve


@dataclass(frozen=True)
class Contender:
    """A way to train, and what was found for it."""

    make: Callable[[VAE], Side]
    schedule: Schedule
    curves: list[Curve]

    def times(self, target: float) -> list[float]:
        return [curve.time_to(target) for curve in self.curves]


def contend(name: str, make: Callable[[VAE], Side], options: argparse.Namespace) -> Contender:
    """Search the schedule on the tuning seed, then train from the others."""
    grid = [Schedule(rate, epochs) for epochs in options.epochs for rate in options.learning_rates]
    target = min(options.targets)

    def merit(schedule: Schedule) -> tuple[float, float]:
        curve = train(make, schedule, TUNING_SEED, options)
        found = curve.time_to(target), min(curve.nll)
        tqdm.write(
            f"{name}, tuning: learning rate {schedule.learning_rate:g}, {schedule.epochs} epochs, "
            f"{curve.seconds[-1]:.1f} s: {found[0]:.1f} s to {target:g}, lowest NLL {found[1]:.2f}"
        )
        return found

    best = min(tqdm(grid, desc=f"{name}, tuning", leave=False), key=merit)
    seeds = tqdm(range(options.seeds), desc=f"{name}, seeds", leave=False)
    return Contender(make, best, [train(make, best, seed, options) for seed in seeds])


def ours(spec: str) -> Callable[[VAE], Side]:
    """From what ``--ours`` takes."""
    gradient, samples, few, family = spec.split("-")
    return lambda model: iwbounds_side(
        model, int(samples), GRADIENTS[gradient], FAMILIES[family], None if few == samples else int(few)
    )


def contenders(options: argparse.Namespace) -> dict[str, Callable[[VAE], Side]]:
    found: dict[str, Callable[[VAE], Side]] = {
        f"Pyro, K = {count}": lambda model, count=count: pyro_side(model, count) for count in options.pyro_samples
    }
    return found | {f"iwbounds, {spec}": ours(spec) for spec in options.ours}


def report(found: dict[str, Contender], targets: Sequence[float]) -> None:
    """Medians over the seeds: seconds, steps, and how many times as fast as the fastest of Pyro's rows."""
    columns = [_column(found, target) for target in targets]
    rows = []
    for name, contender in found.items():
        how = f"{contender.schedule.learning_rate:g}, {contender.schedule.epochs}"
        final = statistics.median(curve.nll[-1] for curve in contender.curves)
        rows.append([name, how, *(cell for column in columns for cell in column[name]), f"{final:.2f}"])
    header = [h for t in targets for h in (f"s to {t:g}", "steps", "speed")]
    print(table(["side", "rate, epochs", *header, "last NLL"], rows))
    print("speed: the fastest row of Pyro for that target = 1; 0 where a side does not get there")


def _column(found: dict[str, Contender], target: float) -> dict[str, tuple[str, str, str]]:
    times = {name: contender.times(target) for name, contender in found.items()}
    peers = [t for name, t in times.items() if name.startswith("Pyro")]
    base = min(peers, key=statistics.median)

    def speed(seconds: list[float]) -> str:
        return f"{statistics.median(b / t if t < math.inf else 0.0 for b, t in zip(base, seconds, strict=True)):.2f}"

    def steps(contender: Contender) -> str:
        return f"{statistics.median(curve.steps_to(target) for curve in contender.curves):.0f}"

    return {name: (f"{statistics.median(t):.1f}", steps(found[name]), speed(t)) for name, t in times.items()}


def plot(found: dict[str, Contender], options: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, contender) in enumerate(found.items()):
        for first, curve in enumerate(contender.curves):
            axes.plot(curve.seconds[1:], curve.nll[1:], color=f"C{number}", label=None if first else name)
    for target in options.targets:
        axes.axhline(target, color="0.8", zorder=0)
    axes.set(xlabel="seconds of training", ylabel="test NLL, nats", xscale="log")
    axes.set_ylim(min(options.targets) - 0.5, max(options.targets) + 2.5)
    axes.legend()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(f"Figure: {options.out}")


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="an .npz of MNIST; default: scikit-learn's digits")
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--targets", type=float, nargs="+", default=[22.8, 22.6, 22.5])
    parser.add_argument("--epochs", type=int, nargs="+", default=[30, 60], help="lengths to search")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[8e-3, 1.6e-2, 3.2e-2], help="rates to search"
    )
    parser.add_argument("--pyro-samples", type=int, nargs="+", default=[64, 16, 8], help="K of each of Pyro's rows")
    parser.add_argument("--ours", nargs="+", default=["dreg-16-4-torch", "dreg-8-8-torch"], help=ours.__doc__)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--latent", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=20, help="points of each curve")
    parser.add_argument("--evaluation-samples", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("out") / "time_to_nll.png")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    options.images = load(options.data, options.test_images)
    found = {name: contend(name, make, options) for name, make in contenders(options).items()}
    report(found, options.targets)
    plot(found, options)


if __name__ == "__main__":
    main()
