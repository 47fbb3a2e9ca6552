"""Log-densities summed over the event, Bernoulli from logits and diagonal Gaussian, and their gradients.

Arguments are ``(S, B, D)``, expanded (stride 0) where shared by the samples. Forward, a program owns rows (s, b) and
walks over the events. The Gaussian's backward owns a tile of the (B, D) plane and walks over the samples, so that sums
of shared arguments stay in registers.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from iwbounds.kernels.triton_tiles import Tiling, accumulator, launch, log1p

__all__ = ["launch_bernoulli", "launch_bernoulli_backward", "launch_gaussian", "launch_gaussian_backward"]

ROWS = 4
WIDTH = 512
HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)


@triton.jit
def rows_and_events(rows, block_k: tl.constexpr, block_b: tl.constexpr):
    """Row indices of this program and the first event indices, with which rows exist; S · B · D may need 64 bits."""
    r = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    d = tl.arange(0, block_k).to(tl.int64)
    return r, d, r < rows


@triton.jit
def _bernoulli(
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
        # Both terms are ≤ 0, so nothing cancels for confident logits.
        size = tl.abs(logit)
        term = (target - 0.5) * logit - 0.5 * size - log1p(tl.exp(-size))
        found += tl.sum(tl.where(inside, term, 0.0), 1)
    tl.store(out + r, found, mask=exists)


@triton.jit
def _bernoulli_backward(
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
    # The exponential of −|l| cannot overflow.
    small = tl.exp(-tl.abs(logit))
    sigmoid = tl.where(logit < 0.0, small, 1.0) / (1.0 + small)
    tl.store(out + r[:, None] * events + d[None, :], g[:, None] * (target - sigmoid), mask=inside)


@triton.jit
def _gaussian(
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
def _gaussian_backward(
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


def launch_bernoulli(logits, x, out) -> None:
    """Fill ``out`` ``(S, B)`` from ``logits`` and ``x``, each ``(S, B, D)`` (expanded where shared)."""
    samples, batch, events = logits.shape
    tiles, sizes = _tiles(samples * batch, events, across=False), (samples * batch, batch, events)
    launch(_bernoulli, tiles, logits, x, out, *sizes, *logits.stride(), *x.stride(), acc=accumulator(logits))


def launch_bernoulli_backward(grad, logits, x, out) -> None:
    """Fill ``out`` ``(S, B, D)`` with the gradient of the logits."""
    samples, batch, events = logits.shape
    tiles, sizes = _tiles(samples * batch, events, across=True), (samples * batch, batch, events)
    strides = (*grad.stride(), *logits.stride(), *x.stride())
    launch(_bernoulli_backward, tiles, grad, logits, x, out, *sizes, *strides, acc=accumulator(logits))


def launch_gaussian(arguments, out) -> None:
    """Fill ``out`` ``(S, B)`` from z, mean and log_scale, each ``(S, B, D)``, expanded where shared."""
    z, mean, log_scale = arguments
    samples, batch, events = z.shape
    strides = (*z.stride(), *mean.stride(), *log_scale.stride())
    tiles = _tiles(samples * batch, events, across=False)
    launch(_gaussian, tiles, z, mean, log_scale, out, samples * batch, batch, events, *strides, acc=accumulator(z))


def launch_gaussian_backward(grad, arguments, outputs) -> None:
    """Fill ``outputs``, the gradients of z, mean and log_scale: ``(S, B, D)``, or ``(B, D)`` where summed over S."""
    z, mean, log_scale = arguments
    samples, batch, events = z.shape
    strides = (*grad.stride(), *z.stride(), *mean.stride(), *log_scale.stride())
    each = dict(zip(("each_z", "each_mean", "each_scale"), (out.ndim == 3 for out in outputs), strict=True))
    tiles = _tiles(batch, events, across=True)
    launch(
        _gaussian_backward, tiles, grad, z, mean, log_scale, *outputs, samples, batch, events, *strides,
        **each, acc=accumulator(z),
    )  # fmt: skip


def _tiles(rows, events, across) -> Tiling:
    """Tiles of rows and events; ``across``: the events are cut over programs, and not walked over by one."""
    width = min(WIDTH, triton.next_power_of_2(max(events, 1)))
    return Tiling(width, ROWS, -(-events // width) if across else 1, -(-rows // ROWS))
