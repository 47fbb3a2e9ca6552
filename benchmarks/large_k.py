"""Thousands of samples: time and peak memory of one training step, against the naive one-graph step.

    python benchmarks/large_k.py                # K = 5000, batch 100, three allocator settings
    python benchmarks/large_k.py --one-datum    # K = 100 000 for one datum: peak memory

Times are medians of steps run in turn in one process. Peak memory is that of a process of its own for each method,
above what it held before the step: of the tensors that are alive, and of the resident memory, which the C library's
allocator adds to by fragmentation. The settings are glibc's default; one that never gives memory back, for the fastest
steps; and one that maps every buffer by itself, so that none is fragmented but each is paged in anew.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from functools import partial

import torch
from common import (
    VAE,
    arguments,
    binary_images,
    gate,
    hand_written_iwae,
    medians,
    peak_of_live_tensors,
    step_of,
    table,
)

import iwbounds as iw

ALLOCATORS = {
    "default": {},
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"},
    "mapped": {"MALLOC_MMAP_THRESHOLD_": "1000000"},
}


def steps_of(model: VAE, x: torch.Tensor, num_samples: int):
    """The same gradient four ways; draws are the naive step's only where the batch is not split."""

    def step(loss_of):
        return partial(step_of(model, loss_of), x)

    def engine(**options):
        options |= {"gradient": iw.Reparameterized(), "num_samples": num_samples}
        return step(lambda x: -iw.estimate(*model(x), **options).value.mean())

    def accumulated(**options):
        def step():
            model.zero_grad()
            iw.accumulate(model, x, gradient=iw.Reparameterized(), num_samples=num_samples, **options)

        return step

    return {
        "naive": step(lambda x: hand_written_iwae(model, x, num_samples)),
        "iw.estimate": engine(),
        "iw.estimate, chunk_size=50": engine(chunk_size=50),
        "iw.accumulate": accumulated(),
        "iw.accumulate, chunk_size=50": accumulated(chunk_size=50),
    }


def noise_as_data(model: VAE):
    """A model whose noise is part of the data, so that a split batch has the draws of the whole."""

    def with_noise(data):
        x, noise = data
        log_joint, q = model(x)
        base = q.base_dist
        return log_joint, iw.Proposal(lambda _: base.loc + base.scale * noise.movedim(1, 0), q.log_prob)

    return with_noise


def check(model: VAE, x: torch.Tensor) -> None:
    """Every method gives the naive gradient from the same draws (at K = 200, to keep the gate quick).

    With fewer than 100 data the rounding of log-densities around −540 in float32 alone is more than the limit.
    """
    steps = steps_of(model, x, 200)
    gate(model, steps["naive"], {"iw.estimate": steps["iw.estimate"]})
    chunked = {name: step for name, step in steps.items() if name.endswith("chunk_size=50")}
    gate(model, steps["iw.estimate"], chunked, tolerance=1e-5)
    data = (x, torch.randn(len(x), 200, model.latent))
    with_noise = noise_as_data(model)
    options = {"gradient": iw.Reparameterized(), "num_samples": 200}

    def whole():
        (-iw.estimate(*with_noise(data), **options).value.mean()).backward()

    split = {"iw.accumulate": lambda: iw.accumulate(with_noise, data, max_live_samples=400, **options)}
    gate(model, whole, split, tolerance=1e-5)


def resident() -> float:
    """Resident memory now, in MB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def peak_of(method: str, options) -> None:
    """Child process: one step of one method; prints the peaks above the memory before it."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, x = VAE(), binary_images(options.batch)
    steps_of(model, x[:1], 60)[method]()  # loads what PyTorch loads at the first checkpoint
    step = steps_of(model, x, options.samples)[method]
    if options.live:
        return print(json.dumps(peak_of_live_tensors(step)))
    before = resident()
    step()
    return print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024 - before))


def times_of(options) -> None:
    """Child process: medians of all methods, in turn."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, x = VAE(), binary_images(options.batch)
    check(model, binary_images(100))
    print(json.dumps(medians(steps_of(model, x, options.samples), options.repeats or 5, warm_up=1)))


def child(options, allocator: str, *words: str):
    command = [sys.executable, __file__, *words, "--threads", str(options.threads), "--samples", str(options.samples)]
    command += ["--batch", str(options.batch)] + (["--repeats", str(options.repeats)] if options.repeats else [])
    environment = os.environ | ALLOCATORS[allocator]
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--one-datum", action="store_true")
    parser.add_argument("--peak", help="(child process) the method to measure")
    parser.add_argument("--live", action="store_true", help="(child process) count tensors, not the process' memory")
    parser.add_argument("--times", action="store_true", help="(child process)")
    options = parser.parse_args()
    if options.peak:
        return peak_of(options.peak, options)
    if options.times:
        return times_of(options)
    if options.one_datum:
        options.samples, options.batch = 100_000, 1
        live, process = live_peak(options, "iw.accumulate"), resident_peak(options, "default", "iw.accumulate")
        return print(f"K = 100000, one datum, iw.accumulate: {live:.0f} MB of tensors, {process:.0f} MB resident")
    return compare(options)


def live_peak(options, method: str) -> float:
    """MB of live tensors."""
    return child(options, "default", "--peak", method, "--live")


def resident_peak(options, allocator: str, method: str) -> float:
    """MB of resident memory."""
    return child(options, allocator, "--peak", method)


def compare(options) -> None:
    header = ["allocator", "method", "s", "÷ naive", "tensors MB", "naive ÷", "resident MB", "naive ÷"]
    rows, live = [], {}
    for allocator in ALLOCATORS:
        seconds = child(options, allocator, "--times")
        live = live or {method: live_peak(options, method) for method in seconds}
        process = {method: resident_peak(options, allocator, method) for method in seconds}
        for method, time in seconds.items():
            memory = [
                cell for mb in (live, process) for cell in (f"{mb[method]:.0f}", f"{mb['naive'] / mb[method]:.0f}")
            ]
            rows.append([allocator, method, f"{time:.2f}", f"{time / seconds['naive']:.2f}", *memory])
            print(table(header, rows[-1:]), flush=True)
    print("\n" + table(header, rows))


if __name__ == "__main__":
    main()
