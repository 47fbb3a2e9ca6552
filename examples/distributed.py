"""An importance-weighted autoencoder on handwritten digits, its samples or its data shared by several processes.

``torchrun --nproc-per-node 2 examples/distributed.py``, or plain ``python`` for one process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from _common import Images, digits, options_parser, print_table, pyplot, save_figure
from digits import Autoencoder
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import iwbounds as iw


@dataclass(frozen=True)
class Outcome:
    """What one way of sharing came to."""

    bounds: dict[int, float]
    report: iw.EvidenceReport
    active: int
    milliseconds: float
    """Of a step."""


def share_samples(model: DistributedDataParallel, x: Tensor, num_samples: int) -> Tensor:
    """Every process has the whole batch, and its part of each image's samples."""
    group = dist.group.WORLD
    estimate = iw.estimate(*model(x), num_samples=num_samples, process_group=group)
    # Each process's backward is its part of the gradient. The wrapped model takes the mean; the sum is the gradient.
    (-group.size() * estimate.value.mean()).backward()
    return estimate.value.detach().mean()


def share_data(model: DistributedDataParallel, x: Tensor, num_samples: int) -> Tensor:
    """Every process has some of the images, all samples of them, and as many backwards as its memory asks for."""
    group = dist.group.WORLD
    own = x.tensor_split(group.size())[group.rank()]
    values = iw.accumulate(model, own, num_samples=num_samples, process_group=group).value
    mean = values.sum() / len(x)
    dist.all_reduce(mean)  # a sum over images of all processes, not a mean of means
    return mean


WAYS: dict[str, Callable[[DistributedDataParallel, Tensor, int], Tensor]] = {
    "samples shared": share_samples,
    "data shared": share_data,
}


def train(name: str, images: Images, options: argparse.Namespace) -> Outcome:
    torch.manual_seed(options.seed)  # the same network on all processes, and one seed for all their draws
    model = Autoencoder(images, options.hidden, options.latent).to(options.device)
    shared = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs, options.learning_rate / 20)
    generator = torch.Generator().manual_seed(options.seed)  # the same batches on all processes
    bounds, steps, start = {}, 0, time.perf_counter()
    progress = tqdm(range(1, options.epochs + 1), desc=f"{name:<24}", unit="epoch", leave=False, disable=not first())
    for epoch in progress:
        values = []
        for x in images.batches(100, generator):
            optimizer.zero_grad()
            values.append(WAYS[name](shared, x, options.samples))
            optimizer.step()
            steps += 1
        schedule.step()
        bounds[epoch] = torch.stack(values).mean().item()
        progress.set_postfix(bound=f"{bounds[epoch]:.2f}")
    milliseconds = 1000 * (time.perf_counter() - start) / steps
    return examine(model, bounds, milliseconds, images, options)


def examine(
    model: Autoencoder, bounds: dict[int, float], milliseconds: float, images: Images, options: argparse.Namespace
) -> Outcome:
    group = dist.group.WORLD
    own = images.test.tensor_split(group.size())[group.rank()]
    settings = {"num_samples": options.evaluation_samples, "seed": options.seed, "progress": first()}
    report = iw.evaluate(model.eval(), own, process_group=group, **settings)
    with torch.no_grad():
        active = (model.posterior(images.test).mean.var(0) > 0.01).sum().item()
    return Outcome(bounds, report, active, milliseconds)


def first() -> bool:
    """Whether this process is the one that prints."""
    return dist.get_rank() == 0


def draw_figure(outcomes: dict[str, Outcome], options: argparse.Namespace) -> None:
    figure, axes = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for (name, outcome), style in zip(outcomes.items(), ("-", "--"), strict=True):
        axes.plot(list(outcome.bounds), list(outcome.bounds.values()), style, label=name)
    axes.set(title=f"Training bound, K = {options.samples}", xlabel="epoch", ylabel="nats")
    axes.grid(True, alpha=0.3)
    axes.legend()
    save_figure(figure, options.out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser(__doc__, "distributed.png")
    parser.add_argument("--epochs", type=int, default=70)
    parser.add_argument("--samples", type=int, default=50, help="K, over all processes")
    parser.add_argument("--latent", type=int, default=20, help="dimensions of z")
    parser.add_argument("--hidden", type=int, default=100, help="units in each of two layers")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--evaluation-samples", type=int, default=1000, help="samples for the test NLL")
    return parser.parse_args(argv)


def start(device: str) -> str:
    """Join the processes that torchrun has started, or be the only one; the device of this one."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if backend == "gloo":
        return device
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return "cuda"


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    options.device = start(options.device)
    try:
        images = digits(options.device)
        outcomes = {name: train(name, images, options) for name in WAYS}
        if first():
            show(outcomes, options)
    finally:
        dist.destroy_process_group()


def show(outcomes: dict[str, Outcome], options: argparse.Namespace) -> None:
    rows = [
        [
            name,
            f"{o.bounds[options.epochs]:.2f}",
            f"{o.report.nll:.2f} ± {o.report.standard_error:.2f}",
            f"{o.active} of {options.latent}",
            f"{o.report.ess.mean():.0f}",
        ]
        for name, o in outcomes.items()
    ]
    print_table(["DReG-IWAE", "training bound", "test NLL", "active units", "ESS"], rows)
    times = ", ".join(f"{name} {o.milliseconds:.1f}" for name, o in outcomes.items())
    count = dist.get_world_size()
    print(f"\n{count} {'process' if count == 1 else 'processes'}. Milliseconds of a step: {times}.")
    draw_figure(outcomes, options)


if __name__ == "__main__":
    main()
