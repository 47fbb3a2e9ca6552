"""A step of IWAE with its samples over 2 processes against one process, in one run, and what crosses between them.

``python benchmarks/ranks.py``: gloo on the CPU, one thread per process; a VAE 784-200-200-50, K = 512, batch 20.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import VAE
from torch import Tensor

import iwbounds as iw


def step(model: VAE, x: Tensor, count: int, group: dist.ProcessGroup | None) -> None:
    model.zero_grad()
    value = iw.estimate(*model(x), num_samples=count, process_group=group).value
    (-value.mean()).backward()
    if group is not None:
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        dist.all_reduce(flat, group=group)


def timed(function: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Milliseconds by the clock and of this process's CPU: the second stands still while it waits for others."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        function()
    return 1000 * (time.perf_counter() - wall) / repeats, 1000 * (time.process_time() - cpu) / repeats


def measure(rank: int, size: int, store: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    torch.manual_seed(0)
    group, model = dist.group.WORLD, VAE()
    x = (torch.rand(options.batch, 784, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    found: dict[str, list[float]] = collections.defaultdict(list)
    log_w = torch.randn(options.samples, options.batch)
    header = torch.zeros(4, dtype=torch.int64)
    weights = torch.zeros(options.samples // size, options.batch)
    gradient = torch.zeros(sum(p.numel() for p in model.parameters()))

    def gathered(tensor: Tensor) -> None:
        dist.all_gather([torch.empty_like(tensor) for _ in range(size)], tensor)

    for repeat in range(options.repeats + 1):
        dist.barrier()
        one = timed(lambda: step(model, x, options.samples, None)) if rank == 0 else (0.0, 0.0)
        dist.barrier()  # the others have waited
        times = {
            "one": one,
            "shared": timed(lambda: step(model, x, options.samples, group)),
            "coefficients": timed(lambda: iw.DReG().evaluate(iw.IWAE(), log_w), 20),
            "header": timed(lambda: gathered(header), 20),
            "weights": timed(lambda: gathered(weights), 20),
            "gradients": timed(lambda: dist.all_reduce(gradient), 5),
        }
        for name, (wall, cpu) in times.items() if repeat else ():  # the first round warms up
            found[name].append(wall)
            found[f"{name}_cpu"].append(cpu)
    if rank == 0:
        report(found, gradient.numel(), options)
    dist.destroy_process_group()


def report(found: dict[str, list[float]], parameters: int, options: argparse.Namespace) -> None:
    medians = {f"{name}_ms": round(statistics.median(times), 3) for name, times in found.items()}
    ratio = statistics.median(a / b for a, b in zip(found["one"], found["shared"], strict=True))
    sizes = {"samples": options.samples, "batch": options.batch, "processes": 2, "parameters": parameters}
    settings = {"torch": torch.__version__, "weights_bytes": options.samples * options.batch * 4}
    json.dump(sizes | settings | medians | {"one_over_shared": round(ratio, 2)}, sys.stdout, indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (2, str(Path(folder) / "store"), options), nprocs=2)


if __name__ == "__main__":
    main()
