"""The fused kernels on a GPU: time against eager torch, torch.compile and the bytes they must move.

python benchmarks/kernels.py                # the gate, then the timings; needs a CUDA device
python benchmarks/kernels.py --save         # the same, kept under benchmarks/results/ with date and device
python benchmarks/kernels.py --interpret    # the gate alone, on the CPU in Triton's interpreter

Targets: at least 3 times as fast as eager, 1.2 times as fast as compiled, and 80 % of the measured copy bandwidth at
the large sizes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pathlib
import statistics

import torch
from common import table

SIZES = [(64, 1024), (64, 65536), (5000, 1024), (1_000_000, 1)]
RESULTS = pathlib.Path(__file__).parent / "results"


def eager(log_w):
    """Value and both coefficients of IWAE with DReG, from torch's own reductions."""
    value = log_w.logsumexp(0) - math.log(log_w.shape[0])
    w = log_w.softmax(0)
    return value, w, w * w


def fused(log_w):
    from iwbounds.kernels import fused_bound

    return tuple(fused_bound(log_w, kernel=True))


def log_weights(count, batch, device, dtype=torch.float32):
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(count, batch, generator=generator, device=device, dtype=dtype) * 4


def gate(device, sizes):
    """Refuse to go on unless every kernel agrees with the reference in float64."""
    from iwbounds.kernels import fused_bound, fused_vimco

    for count, batch in sizes:
        for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
            x = log_weights(count, batch, device, dtype)
            cases = {
                "bound": [fused_bound(t, 0.7, 0.2, kernel=k) for t, k in ((x, True), (x.double(), False))],
                "vimco": [fused_vimco(t, kernel=k) for t, k in ((x, True), (x.double(), False))],
            }
            for name, (found, expected) in cases.items():
                for field, got, want in zip(found._fields, found, expected, strict=True):
                    error = ((got.double() - want).abs() / (1 + want.abs())).max().item()
                    if not error < limit:
                        raise SystemExit(f"gate: {name}.{field} at {(count, batch)}, {dtype}: off by {error:.1e}")
    print(f"gate: passed on {device} for (K, batch) in {sizes}")


def microseconds(function, repeats=50):
    """Median device time of one call."""
    for _ in range(5):
        function()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth():
    """Bytes per second that a large copy reads and writes."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / (microseconds(lambda: target.copy_(source)) * 1e-6)


def measure(count, batch, bandwidth):
    """One row: microseconds of each way, ratios to the kernel, and the fraction of the copy bandwidth."""
    x = log_weights(count, batch, "cuda")
    compiled = torch.compile(eager, dynamic=False)
    found = {name: microseconds(lambda f=f: f(x)) for name, f in
             (("eager", eager), ("compiled", compiled), ("fused", fused))}  # fmt: skip
    floor = 3 * count * batch * 4 / bandwidth * 1e6  # log-weights read, two coefficients written
    return {"K": count, "batch": batch, **found, "floor": floor,
            "eager / fused": found["eager"] / found["fused"],
            "compiled / fused": found["compiled"] / found["fused"],
            "of copy bandwidth": floor / found["fused"]}  # fmt: skip


def save(rows, bandwidth):
    RESULTS.mkdir(exist_ok=True)
    today, device = datetime.date.today().isoformat(), torch.cuda.get_device_name()
    record = {"date": today, "device": device, "torch": torch.__version__, "copy GB/s": bandwidth / 1e9, "rows": rows}
    path = RESULTS / f"kernels-{today}-{device.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--interpret", action="store_true")
    options = parser.parse_args()
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
        return gate("cpu", [(8, 3), (63, 5), (2000, 9)])
    if not torch.cuda.is_available():
        return print("No CUDA device: nothing is timed. --interpret checks the kernels on the CPU.")
    gate("cuda", SIZES)
    bandwidth = copy_bandwidth()
    rows = [measure(*size, bandwidth) for size in SIZES]
    print(f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e9:.0f} GB/s; microseconds")
    print(table(list(rows[0]), [[v if isinstance(v, int) else f"{v:.2f}" for v in row.values()] for row in rows]))
    return save(rows, bandwidth) if options.save else None


if __name__ == "__main__":
    main()
