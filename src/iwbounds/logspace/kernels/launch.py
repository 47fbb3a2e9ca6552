"""How a ``(K, batch)`` problem is cut into tiles, and the one place where a kernel is launched."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["COMBINED", "Tiling", "accumulator", "launch", "tiling"]

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


def tiling(count: int, batch: int, most: int | None = None, width: int = 1) -> Tiling:
    """Tiles for ``count`` samples of ``batch`` data: 128-byte rows where the batch has them, all samples if they fit.

    Args:
        count: K.
        batch: number of data.
        most: at most that many samples in a tile, in place of as many as fit.
        width: entries of a further axis that lies in the tile whole.
    """
    rows, columns = _power_of_two(count), min(_power_of_two(batch), 32)
    narrow = max(1, min(columns, LARGEST // (rows * width)))
    if most is None and rows * width * min(columns, 16) <= LARGEST:
        return Tiling(rows, narrow, 1, -(-batch // narrow))
    columns = min(columns, max(1, USUAL // (width * (most or 1))))
    rows = min(rows, most or max(1, USUAL // (width * columns)))
    if count > rows * MOST_PARTS:
        rows = _power_of_two(-(-count // MOST_PARTS))
        columns = min(columns, max(1, LARGEST // (width * rows)))
    return Tiling(rows, columns, -(-count // rows), -(-batch // columns))


def accumulator(x: Tensor) -> Any:
    """The Triton type that sums are kept in: float64 for float64, else float32."""
    language = importlib.import_module("triton.language")
    return language.float64 if x.dtype == torch.float64 else language.float32


def launch(kernel: Any, tiles: Tiling, *arguments: Any, **constants: Any) -> None:
    """Run ``kernel`` on its tensors' device, one program per tile; an empty batch launches nothing."""
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if tiles.columns == 0:
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(tiles.columns, tiles.parts)](
            *arguments,
            block_k=tiles.block_k,
            block_b=tiles.block_b,
            num_warps=_warps(tiles.block_k * tiles.block_b * constants.get("block_j", 1)),
            enable_fp_fusion=True,
            **constants,
        )


def _warps(entries: int) -> int:
    """About 16 entries of a tile for each thread, so that they stay in its registers."""
    return max(4, min(16, entries // 512))


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()
