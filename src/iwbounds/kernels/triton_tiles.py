"""What all kernels share: tiles of a ``(K, batch)`` problem, the one place of a launch, and precise exp and log.

The device functions do without libdevice, on purpose: the same arithmetic then runs in Triton's interpreter, and in
float32 and float64.
"""

# mypy: ignore-errors

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl

__all__ = ["COMBINED", "Tiling", "accumulator", "expm1", "finite", "launch", "load", "log1p", "log_mean", "place",
           "tiling"]  # fmt: skip

LARGEST = 8192
"""Entries of the largest tile: a datum's samples are reduced in one launch while a tile holds them."""
USUAL = 4096
"""Entries of a tile where the samples are cut into parts."""
COMBINED = 256
"""Parts that one program combines."""
MOST_PARTS = 65535
"""CUDA's limit on the second axis of a grid."""


class Tiling(NamedTuple):
    """A grid of programs, each with a tile of ``block_k`` samples of ``block_b`` data."""

    block_k: int
    block_b: int
    parts: int
    columns: int


def tiling(count: int, batch: int, most: int | None = None) -> Tiling:
    """Tiles for ``count`` samples of ``batch`` data: 128-byte rows where the batch has them, all samples if they fit.

    Args:
        count: K.
        batch: number of data.
        most: at most that many samples in a tile, in place of as many as fit.
    """
    rows, columns = triton.next_power_of_2(count), min(triton.next_power_of_2(max(batch, 1)), 32)
    # Rows of 16 entries (64 bytes) are still read at full speed; narrower ones are worse than cutting the samples.
    if most is None and rows * min(columns, 16) <= LARGEST:
        columns = max(1, min(columns, LARGEST // rows))
        return Tiling(rows, columns, 1, -(-batch // columns))
    columns = min(columns, max(1, USUAL // (most or 1)))
    rows = min(rows, most or max(1, USUAL // columns))
    if count > rows * MOST_PARTS:
        rows = triton.next_power_of_2(-(-count // MOST_PARTS))
        columns = min(columns, max(1, LARGEST // rows))
    return Tiling(rows, columns, -(-count // rows), -(-batch // columns))


def accumulator(x):
    """The Triton type that sums are kept in: float64 for float64, else float32."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def launch(kernel, tiles, *arguments, **constants) -> None:
    """Run ``kernel`` on its tensors' device, one program per tile; an empty batch launches nothing."""
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    if tiles.columns == 0:
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(tiles.columns, tiles.parts)](
            *arguments,
            block_k=tiles.block_k,
            block_b=tiles.block_b,
            # About 16 entries of a tile for each thread, so that they stay in its registers.
            num_warps=max(4, min(16, tiles.block_k * tiles.block_b // 512)),
            enable_fp_fusion=True,
            **constants,
        )


@triton.jit
def place(count, batch, block_k: tl.constexpr, block_b: tl.constexpr):
    """Sample and datum indices of this program's tile, and which of its entries exist."""
    # 64 bits: K times the batch may pass 2^31.
    k = tl.program_id(1).to(tl.int64) * block_k + tl.arange(0, block_k)
    i = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    return k, i, (k[:, None] < count) & (i[None, :] < batch)


@triton.jit
def load(x, k, i, valid, xk, xi, acc: tl.constexpr):
    """A tile of ``x`` (strides ``xk``, ``xi``) in the accumulator's type."""
    return tl.load(x + k[:, None] * xk + i[None, :] * xi, mask=valid, other=0.0).to(acc)


@triton.jit
def finite(maximum):
    """A maximum that can be subtracted: ±inf become 0 (inf − inf is NaN), NaN stays."""
    return tl.where((maximum == float("inf")) | (maximum == -float("inf")), 0.0, maximum)


@triton.jit
def expm1(u):
    """exp(u) − 1 for u ≤ 0 (or +inf, NaN): Taylor's series in Horner's form down to −1/2, the difference below."""
    terms: tl.constexpr = 15 if u.dtype == tl.float64 else 9
    near = tl.where(u > -0.5, u, 0.0)
    series = near * 0.0 + 1.0
    for i in tl.static_range(terms - 1):
        series = 1.0 + series * near / (terms - i)
    return tl.where(u > -0.5, tl.where(u == float("inf"), u, near * series), tl.exp(u) - 1.0)


@triton.jit
def log1p(r):
    """log(1 + r) for r ≥ −1/2: 2 artanh(r / (2 + r)) as a series up to r = 1, the logarithm above."""
    terms: tl.constexpr = 17 if r.dtype == tl.float64 else 8
    near = tl.where(r <= 1.0, r, 0.0)
    s = near / (2.0 + near)
    square = s * s
    series = square * 0.0 + 1.0 / (2 * terms + 1)
    for i in tl.static_range(terms):
        series = series * square + 1.0 / (2 * (terms - i) - 1)
    return tl.where(r <= 1.0, 2.0 * s * series, tl.log(1.0 + r))


@triton.jit
def log_mean(total, excess, count):
    """log(total / count) where total = Σ exp(u), excess = Σ expm1(u) and u ≤ 0: precise relative to its own size."""
    mean = total / count
    # Near 1 the rounded mean has lost what distinguishes nearly equal weights; the excess still has it.
    near_one = (mean > 0.5) & (mean < 2.0)
    return tl.where(near_one, log1p(tl.where(near_one, excess / count, 0.0)), tl.log(mean))
