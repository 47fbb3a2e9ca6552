"""One training step, forward and backward, of iwbounds against Pyro's RenyiELBO and pythae's IWAE, as ratios.

From the repository's root, after `python -m pip install -e . -r benchmarks/peers/requirements.txt -c constraints.txt`:

    PYTHONPATH=benchmarks python -m peers.step_time --threads 1     # batch 20 and 100, K = 5, 50, 500; then K = 64
    PYTHONPATH=benchmarks python -m peers.step_time --batch 20 --num-samples 5 50

"compiled" is the same step under torch.compile, for which there must be a C++ compiler. The peers run as they are:
pythae's outputs cannot be traced, and Pyro's step compiles in pieces and takes half as long again. The VAE is
784-200-200-50 with the same parameters on every side. Nothing is timed before it gives the hand-written gradient from
the same noise or, where the estimator or the order of the noise is another one, in expectation. The sides take turns of
a few steps each, the first of them not counted; a ratio is the median over the turns. One thread is timed by the
processor's clock, which other processes do not advance.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import VAE, Fused, arguments, binary_images, table
from peers.gates import check_expectation, check_same_noise
from peers.sides import FusedLikelihood, Side, hand_written, iwbounds_side, pyro_side, pythae_side
from torch import Tensor
from tqdm import tqdm

import iwbounds as iw

OURS: dict[str, tuple[iw.Gradient, type[VAE]]] = {
    "reparam": (iw.Reparameterized(), VAE),
    "reparam, fused likelihood": (iw.Reparameterized(), FusedLikelihood),
    "reparam, all fused": (iw.Reparameterized(), Fused),
    "reparam, compiled": (iw.Reparameterized(), VAE),
    "DReG": (iw.DReG(), VAE),
    "DReG, fused likelihood": (iw.DReG(), FusedLikelihood),
    "DReG, all fused": (iw.DReG(), Fused),
    "DReG, compiled": (iw.DReG(), VAE),
}
HAND, COMPILED = "hand-written", "compiled"
PEERS = {"Pyro": pyro_side, "pythae": pythae_side}
FEW, MANY = 8, 64


@dataclass(frozen=True)
class Cell:
    """A batch size, a number of samples, and each side's seconds per step, turn by turn."""

    batch: int
    num_samples: int
    seconds: dict[str, list[float]]

    def ratio(self, side: str, base: str) -> str:
        pairs = zip(self.seconds[side], self.seconds[base], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.2f}"

    def row(self, sides: list[str], base: str, inverse: bool) -> list[object]:
        ratios = [self.ratio(base, s) if inverse else self.ratio(s, base) for s in sides]
        return [self.batch, self.num_samples, *ratios]


def sides_of(model: VAE, num_samples: int, backward_samples: int | None = None) -> dict[str, Side]:
    """``backward_samples`` is for ours alone. A compiled step draws its noise in its own order."""
    torch.compiler.reset()
    sides = {HAND: hand_written(model, num_samples)}
    sides[f"{HAND}, {COMPILED}"] = hand_written(model, num_samples, compiled=True)
    sides |= {name: make(model, num_samples) for name, make in PEERS.items()}
    return sides | {
        name: iwbounds_side(model, num_samples, *how, backward_samples, compiled=name.endswith(COMPILED))
        for name, how in OURS.items()
    }


def check(model: VAE) -> None:
    """The gate, on a small batch."""
    x = binary_images(20, seed=1)
    full, few = sides_of(model, 5), sides_of(model, MANY, FEW)
    same = {name for name in full if name.startswith(("Pyro", "reparam")) and not name.endswith(COMPILED)}
    check_same_noise(model, x, 5, {name: full[name] for name in same})
    check_same_noise(model, x, 5, {"pythae": full["pythae"]}, batch_first=True)
    found = check_expectation(model, x, 5, {name: full[name] for name in full if name not in {HAND, *PEERS, *same}})
    found |= check_expectation(model, x, MANY, {f"{name}, {FEW} of {MANY}": few[name] for name in OURS}, draws=100)
    for name, (z, error) in found.items():
        print(f"gate: {name}: largest |z| {z:.1f}, standard error at most {error:.1%} of the mean gradient")


def timed(
    model: VAE, batch: int, num_samples: int, options: argparse.Namespace, backward_samples: int | None = None
) -> Cell:
    x, sides = binary_images(batch), sides_of(model, num_samples, backward_samples)
    size = batch * num_samples
    turns = options.repeats or (7 if size > 10_000 else 15 if size > 1000 else 40)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in tqdm(range(turns + 1), desc=f"batch {batch}, K = {num_samples}", leave=False):
        for name, side in sides.items():
            found = _turn(side, x, max(1, min(5, 3000 // size)), clock)
            if turn:
                seconds[name].append(found)
    return Cell(batch, num_samples, seconds)


def _turn(side: Side, x: Tensor, steps: int, clock: Callable[[], float]) -> float:
    """Seconds per step of ``steps`` in a row, after one that warms the caches which the side before left cold."""
    side(x)
    start = clock()
    for _ in range(steps):
        side(x)
    return (clock() - start) / steps


def report(cells: list[Cell]) -> None:
    names = [n for n in cells[0].seconds if n != HAND]
    rows = [[*c.row(names, HAND, False), f"{1e3 * statistics.median(c.seconds[HAND]):.1f}"] for c in cells]
    print("\nTime, hand-written = 1\n" + table(["batch", "K", *names, "hand-written ms"], rows))
    for peer in PEERS:
        rows = [c.row(list(OURS), peer, True) for c in cells]
        print(f"\n{peer} ÷ iwbounds\n" + table(["batch", "K", *OURS], rows), flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--num-samples", type=int, nargs="*", default=[5, 50, 500])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = VAE()
    check(model)
    if options.num_samples:
        report([timed(model, batch, count, options) for count in options.num_samples for batch in options.batch])
    few = [timed(model, batch, MANY, options, FEW) for batch in options.batch]
    print(f"\nOurs with backward_samples={FEW}, the peers with all {MANY}")
    report(few)


if __name__ == "__main__":
    main()
