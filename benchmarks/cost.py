"""What a training step costs against the number of samples and the batch: a table and a figure.

    python benchmarks/cost.py [--out out/cost.png]

DReG on a VAE 784-200-200-50, from K = 1 to 5000: in one graph, by iw.accumulate, with 8 samples in the backward, and by
hand-written PyTorch. Set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 for steady figures, and
OMP_NUM_THREADS to the threads that the machine has to spare.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from common import VAE, Step, arguments, binary_images, gate, hand_written_iwae, medians, step_of, table
from tqdm import tqdm

import iwbounds as iw

COUNTS, BATCHES = [1, 5, 50, 500, 5000], [1, 20, 100]
HAND_WRITTEN, ONE_GRAPH, ACCUMULATED, FEW = "hand-written", "iw.estimate", "iw.accumulate", "backward_samples=8"

Costs = dict[tuple[int, int], dict[str, float]]
"""Seconds by method, for each (batch, K)."""


def steps_of(model: VAE, x: torch.Tensor, count: int) -> dict[str, Step]:
    """Steps that leave DReG's gradient (the hand-written one: the plain one) in ``.grad``."""

    options = {"gradient": iw.DReG(), "num_samples": count}

    def one_graph(few: int | None) -> Step:
        loss_of = lambda x: -iw.estimate(*model(x), **options, backward_samples=few).value.mean()  # noqa: E731
        return partial(step_of(model, loss_of), x)

    def accumulated() -> None:
        model.zero_grad()
        iw.accumulate(model, x, **options)

    hand_written = partial(step_of(model, lambda x: hand_written_iwae(model, x, count)), x)
    steps = {HAND_WRITTEN: hand_written, ONE_GRAPH: one_graph(None), ACCUMULATED: accumulated}
    return steps | ({FEW: one_graph(8)} if count >= 50 else {})


def check(model: VAE) -> None:
    """The engine's plain gradient is the hand-written one."""
    x = binary_images(20)
    options = {"gradient": iw.Reparameterized(), "num_samples": 50}
    gate(
        model,
        lambda: hand_written_iwae(model, x, 50).backward(),
        {ONE_GRAPH: lambda: (-iw.estimate(*model(x), **options).value.mean()).backward()},
    )


def measure(model: VAE, counts: list[int], repeats: int | None) -> Costs:
    costs = {}
    for batch, count in tqdm([(batch, count) for batch in BATCHES for count in counts], desc="batch and K"):
        runs = repeats or min(100, max(3, 100_000 // (batch * count)))
        costs[batch, count] = medians(steps_of(model, binary_images(batch), count), runs, warm_up=1)
    return costs


def rows_of(costs: Costs) -> list[list[str]]:
    """Milliseconds of the hand-written step, the others' ratios to it."""
    rows = []
    for (batch, count), seconds in costs.items():
        base = seconds[HAND_WRITTEN]
        ratios = [f"{seconds[name] / base:.2f}" if name in seconds else "" for name in (ONE_GRAPH, ACCUMULATED, FEW)]
        rows.append([str(batch), str(count), f"{1e3 * base:.2f}", *ratios])
    return rows


def plot(costs: Costs, path: Path) -> None:
    """Milliseconds per step against K, a panel for each batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(BATCHES), figsize=(11, 3.6), sharey=True, layout="constrained")
    styles = {HAND_WRITTEN: "k--", ONE_GRAPH: "C0o-", ACCUMULATED: "C1s-", FEW: "C2^-"}
    for batch, axis in zip(BATCHES, axes, strict=True):
        for name, style in styles.items():
            points = [(k, 1e3 * s[name]) for (b, k), s in costs.items() if b == batch and name in s]
            axis.loglog(*zip(*points, strict=True), style, markersize=4, label=name)
        axis.set(title=f"batch {batch}", xlabel="K")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds per step")
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--largest", type=int, default=COUNTS[-1], help="K; 5000 takes 8 GB of memory at batch 100")
    parser.add_argument("--out", type=Path, default=Path("out/cost.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = VAE()
    check(model)
    costs = measure(model, [count for count in COUNTS if count <= options.largest], options.repeats)
    header = ["batch", "K", "hand-written ms", *(f"{name} ÷" for name in (ONE_GRAPH, ACCUMULATED, FEW))]
    print(table(header, rows_of(costs)))
    plot(costs, options.out)
    print(f"\nFigure: {options.out}")


if __name__ == "__main__":
    main()
