"""Bernoulli log-density from logits, summed over the event, and its gradient in the logits."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from iwbounds.logspace.kernels.launch import Tiling, accumulator, launch
from iwbounds.logspace.kernels.triton_math import log1p

__all__ = ["launch_bernoulli", "launch_bernoulli_backward"]

ROWS = 4
WIDTH = 512


@triton.jit
def rows_and_events(rows, block_k: tl.constexpr, block_b: tl.constexpr):
    """Row indices (64-bit) of this program and the first event indices, with which rows exist."""
    r = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    d = tl.arange(0, block_k).to(tl.int64)
    return r, d, r < rows


@triton.jit
def _forward(
    logits, x, out, rows, batch, events, ls, lb, ld, xs, xb, xd,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    r, d, exists = rows_and_events(rows, block_k, block_b)
    at_l = logits + ((r // batch) * ls + (r % batch) * lb)[:, None]
    at_x = x + ((r // batch) * xs + (r % batch) * xb)[:, None]
    found = tl.zeros((block_b,), acc)
    for start in range(0, events, block_k):
        inside = exists[:, None] & (start + d[None, :] < events)
        logit = tl.load(at_l + (start + d[None, :]) * ld, mask=inside, other=0.0).to(acc)
        target = tl.load(at_x + (start + d[None, :]) * xd, mask=inside, other=0.0).to(acc)
        size = tl.abs(logit)
        term = (target - 0.5) * logit - 0.5 * size - log1p(tl.exp(-size))
        found += tl.sum(tl.where(inside, term, 0.0), 1)
    tl.store(out + r, found, mask=exists)


@triton.jit
def _backward(
    grad, logits, x, out, rows, batch, events, gs, gb, ls, lb, ld, xs, xb, xd,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    r, d, exists = rows_and_events(rows, block_k, block_b)
    d += tl.program_id(1).to(tl.int64) * block_k
    s, b = r // batch, r % batch
    inside = exists[:, None] & (d[None, :] < events)
    logit = tl.load(logits + (s * ls + b * lb)[:, None] + d[None, :] * ld, mask=inside, other=0.0).to(acc)
    target = tl.load(x + (s * xs + b * xb)[:, None] + d[None, :] * xd, mask=inside, other=0.0).to(acc)
    g = tl.load(grad + s * gs + b * gb, mask=exists, other=0.0).to(acc)
    small = tl.exp(-tl.abs(logit))
    sigmoid = tl.where(logit < 0.0, small, 1.0) / (1.0 + small)
    tl.store(out + r[:, None] * events + d[None, :], g[:, None] * (target - sigmoid), mask=inside)


def launch_bernoulli(logits, x, out) -> None:
    """Fill ``out`` ``(S, B)`` from ``logits`` and ``x``, each ``(S, B, D)`` (expanded where shared)."""
    samples, batch, events = logits.shape
    rows, width = samples * batch, min(WIDTH, triton.next_power_of_2(max(events, 1)))
    tiles = Tiling(width, ROWS, 1, -(-rows // ROWS))
    launch(_forward, tiles, logits, x, out, rows, batch, events, *logits.stride(), *x.stride(), acc=accumulator(logits))


def launch_bernoulli_backward(grad, logits, x, out) -> None:
    """Fill ``out`` ``(S, B, D)`` with the gradient of the logits."""
    samples, batch, events = logits.shape
    rows, width = samples * batch, min(WIDTH, triton.next_power_of_2(max(events, 1)))
    tiles = Tiling(width, ROWS, -(-events // width), -(-rows // ROWS))
    launch(
        _backward, tiles, grad, logits, x, out, rows, batch, events, *grad.stride(), *logits.stride(), *x.stride(),
        acc=accumulator(logits),
    )  # fmt: skip
