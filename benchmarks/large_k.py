"""Thousands of samples: time and peak memory of one training step, against the naive one-graph step.

    python benchmarks/large_k.py                # K = 5000, batch 100, both allocator settings
    python benchmarks/large_k.py --one-datum    # K = 100 000 for one datum: peak memory

Times are medians of steps run in turn in one process. Peak memory is that of a process of its own for each method,
above what it held before the step: of the tensors that are alive, and of the resident memory, which the C library's
allocator adds to by fragmentation.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import torch
from common import VAE, arguments, binary_images, gate, hand_written_iwae, medians, peak_of_live_tensors, table

import iwbounds as iw

ALLOCATORS = {
    "default": {},
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"},
}


def steps_of(model: VAE, x: torch.Tensor, num_samples: int):
    """The same gradient four ways; draws are the naive step's only where the batch is not split."""

    def naive():
        model.zero_grad()
        hand_written_iwae(model, x, num_samples).backward()

    def engine(**options):
        def step():
            model.zero_grad()
            value = iw.estimate(*model(x), gradient=iw.Reparameterized(), num_samples=num_samples, **options).value
            (-value.mean()).backward()

        return step

    def accumulated():
        model.zero_grad()
        iw.accumulate(model, x, gradient=iw.Reparameterized(), num_samples=num_samples)

    return {
        "naive": naive,
        "iw.estimate": engine(),
        "chunk_size=50": engine(chunk_size=50),
        "iw.accumulate": accumulated,
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
    """Every method gives the naive gradient from the same draws (at K = 200, to keep the gate quick)."""
    steps = steps_of(model, x, 200)
    gate(model, steps["naive"], {"iw.estimate": steps["iw.estimate"]})
    gate(model, steps["iw.estimate"], {"chunk_size=50": steps["chunk_size=50"]}, tolerance=1e-5)
    data = (x, torch.randn(len(x), 200, model.latent))
    with_noise = noise_as_data(model)
    options = {"gradient": iw.Reparameterized(), "num_samples": 200}

    def whole():
        (-iw.estimate(*with_noise(data), **options).value.mean()).backward()

    gate(
        model, whole, {"iw.accumulate": lambda: iw.accumulate(with_noise, data, max_live_samples=400, **options)}, 1e-5
    )


def resident() -> float:
    """Resident memory now, in MB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def peak_of(method: str, options) -> None:
    """Child process: one step of one method; prints the peaks above the memory before it."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, x = VAE(), binary_images(options.batch)
    steps_of(model, x[:1], 2)[method]()
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
    check(model, x)
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
        live, process = peaks(options, "default", "iw.accumulate")
        return print(f"K = 100000, one datum, iw.accumulate: {live:.0f} MB of tensors, {process:.0f} MB resident")
    return compare(options)


def peaks(options, allocator: str, method: str) -> tuple[float, float]:
    """MB of live tensors, and resident."""
    return child(options, allocator, "--peak", method, "--live"), child(options, allocator, "--peak", method)


def compare(options) -> None:
    header = ["allocator", "method", "s", "÷ naive", "tensors MB", "naive ÷", "resident MB", "naive ÷"]
    rows = []
    for allocator in ALLOCATORS:
        seconds = child(options, allocator, "--times")
        naive = peaks(options, allocator, "naive")
        for method in seconds:
            found = naive if method == "naive" else peaks(options, allocator, method)
            memory = [cell for mb, most in zip(found, naive, strict=True) for cell in (f"{mb:.0f}", f"{most / mb:.0f}")]
            rows.append(
                [allocator, method, f"{seconds[method]:.2f}", f"{seconds[method] / seconds['naive']:.2f}", *memory]
            )
            print(table(header, rows[-1:]), flush=True)
    print("\n" + table(header, rows))


if __name__ == "__main__":
    main()
