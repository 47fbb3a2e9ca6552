"""Diagonal-Gaussian log-density summed over the event, and its three gradients with shared arguments summed inside."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from iwbounds.logspace.kernels.launch import Tiling, accumulator, launch
from iwbounds.logspace.kernels.triton_bernoulli import ROWS, WIDTH, rows_and_events

__all__ = ["launch_gaussian", "launch_gaussian_backward"]

HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)


@triton.jit
def _forward(
    z, mean, log_scale, out, rows, batch, events, zs, zb, zd, ms, mb, md, ss, sb, sd,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    r, d, exists = rows_and_events(rows, block_k, block_b)
    s, b = (r // batch)[:, None], (r % batch)[:, None]
    found = tl.zeros((block_b,), acc)
    for start in range(0, events, block_k):
        e = start + d[None, :]
        inside = exists[:, None] & (e < events)
        value = tl.load(z + s * zs + b * zb + e * zd, mask=inside, other=0.0).to(acc)
        centre = tl.load(mean + s * ms + b * mb + e * md, mask=inside, other=0.0).to(acc)
        width = tl.load(log_scale + s * ss + b * sb + e * sd, mask=inside, other=0.0).to(acc)
        residual = (value - centre) * tl.exp(-width)
        term = -0.5 * residual * residual - width - HALF_LOG_TWO_PI
        found += tl.sum(tl.where(inside, term, 0.0), 1)
    tl.store(out + r, found, mask=exists)


@triton.jit
def _backward(
    grad, z, mean, log_scale, to_z, to_mean, to_scale, samples, batch, events,
    gs, gb, zs, zb, zd, ms, mb, md, ss, sb, sd,
    each_z: tl.constexpr, each_mean: tl.constexpr, each_scale: tl.constexpr,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    b, d, exists = rows_and_events(batch, block_k, block_b)
    e = (d + tl.program_id(1).to(tl.int64) * block_k)[None, :]
    inside = exists[:, None] & (e < events)
    g_at, b = grad + b * gb, b[:, None]
    at, step = b * events + e, tl.cast(batch, tl.int64) * events
    slope_sum = tl.zeros((block_b, block_k), acc)
    scale_sum = tl.zeros((block_b, block_k), acc)
    for sample in range(samples):
        s = tl.cast(sample, tl.int64)
        value = tl.load(z + s * zs + b * zb + e * zd, mask=inside, other=0.0).to(acc)
        centre = tl.load(mean + s * ms + b * mb + e * md, mask=inside, other=0.0).to(acc)
        width = tl.load(log_scale + s * ss + b * sb + e * sd, mask=inside, other=0.0).to(acc)
        g = tl.load(g_at + s * gs, mask=exists, other=0.0).to(acc)[:, None]
        precision = tl.exp(-width)
        residual = (value - centre) * precision
        slope, stretch = g * residual * precision, g * (residual * residual - 1.0)
        if each_z:
            tl.store(to_z + s * step + at, -slope, mask=inside)
        if each_mean:
            tl.store(to_mean + s * step + at, slope, mask=inside)
        if each_scale:
            tl.store(to_scale + s * step + at, stretch, mask=inside)
        slope_sum += slope
        scale_sum += stretch
    if not each_z:
        tl.store(to_z + at, -slope_sum, mask=inside)
    if not each_mean:
        tl.store(to_mean + at, slope_sum, mask=inside)
    if not each_scale:
        tl.store(to_scale + at, scale_sum, mask=inside)


def _tiles(rows, events, across) -> Tiling:
    width = min(WIDTH, triton.next_power_of_2(max(events, 1)))
    return Tiling(width, ROWS, -(-events // width) if across else 1, -(-rows // ROWS))


def launch_gaussian(arguments, out) -> None:
    """Fill ``out`` ``(S, B)`` from z, mean and log_scale, each ``(S, B, D)``, expanded where shared."""
    z, mean, log_scale = arguments
    samples, batch, events = z.shape
    strides = (*z.stride(), *mean.stride(), *log_scale.stride())
    tiles = _tiles(samples * batch, events, across=False)
    launch(_forward, tiles, z, mean, log_scale, out, samples * batch, batch, events, *strides, acc=accumulator(z))


def launch_gaussian_backward(grad, arguments, outputs) -> None:
    """Fill ``outputs``, the gradients of z, mean and log_scale: ``(S, B, D)``, or ``(B, D)`` where summed over S."""
    z, mean, log_scale = arguments
    samples, batch, events = z.shape
    strides = (*grad.stride(), *z.stride(), *mean.stride(), *log_scale.stride())
    each = dict(zip(("each_z", "each_mean", "each_scale"), (out.ndim == 3 for out in outputs), strict=True))
    tiles = _tiles(batch, events, across=True)
    launch(
        _backward, tiles, grad, z, mean, log_scale, *outputs, samples, batch, events, *strides,
        **each, acc=accumulator(z),
    )  # fmt: skip
