"""What the bound's kernels carry about some of a datum's log-weights, and how parts are put together.

A *state* is nine numbers per datum; a single log-weight is a state, and :func:`merge` reduces any number of states to
one. The derivation is in the README beside this file.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from iwbounds.logspace.kernels.triton_math import expm1, finite, log_mean

__all__ = ["STATE_SIZE", "merge", "state_of", "summarize", "weigh"]

STATE_SIZE = 9


@triton.jit
def merge(top, total, squares, ref, power_total, excess, spread, dead, count, order):
    """Reduce the leading axis of a tile of states to one state per column."""
    none = -float("inf")
    new_top, new_ref = tl.max(top, 0), tl.max(ref, 0)
    d = top - finite(new_top)[None, :]
    u = order * (ref - finite(new_ref)[None, :])
    scale = tl.where(top == none, 0.0, tl.exp(d))
    power_scale = tl.where(ref == none, 0.0, tl.exp(u))
    gap = tl.where(ref == none, -1.0, expm1(u))
    return (
        new_top,
        tl.sum(total * scale, 0),
        tl.sum(squares * scale * scale, 0),
        new_ref,
        tl.sum(power_total * power_scale, 0),
        tl.sum(excess * power_scale + count * gap, 0),
        tl.sum(tl.where(count > 0.0, spread + count * d, 0.0), 0),
        tl.sum(dead, 0),
        tl.sum(count, 0),
    )


@triton.jit
def _single(x, valid, sign):
    """The state of each log-weight by itself; entries that are not ``valid`` count nothing."""
    none = -float("inf")
    one = tl.where(valid, 1.0, 0.0).to(x.dtype)
    zero = one * 0.0
    dead = tl.where(valid & (x == none), 1.0, 0.0).to(x.dtype)
    top, ref = tl.where(valid, x, none), tl.where(valid, sign * x, none)
    return top, one, one, ref, one, zero, zero, dead, one


@triton.jit
def state_of(x, valid, sign, order):
    """One state per column of a tile of log-weights."""
    top, total, squares, ref, power_total, excess, spread, dead, count = _single(x, valid, sign)
    return merge(top, total, squares, ref, power_total, excess, spread, dead, count, order)


@triton.jit
def summarize(top, total, squares, ref, power_total, excess, spread, dead, count, sign, order, share):
    """Value and effective sample size of each datum, and whether its coefficients vanish (it needs a dead weight)."""
    void = (dead > 0.0) & ((share > 0.0) | (sign < 0.0))
    mean = finite(top) + spread / count
    power_mean = sign * (ref + log_mean(power_total, excess, count) / order)
    value = tl.where(share > 0.0, share * mean, 0.0) + tl.where(share < 1.0, (1.0 - share) * power_mean, 0.0)
    ess = tl.where(total == 0.0, 0.0, total * total / squares)
    return tl.where(void, -float("inf"), value), ess, void


@triton.jit
def weigh(x, ref, power_total, count, void, sign, order, share):
    """c and c − h of each log-weight in a tile, from the state of its datum."""
    bottom = tl.where(power_total < 0.5, 0.5, power_total)
    v = tl.exp(order * (sign * x - finite(ref)[None, :])) / bottom[None, :]
    power = sign * order
    uniform, rest = share / count, 1.0 - share
    c = uniform[None, :] + tl.where(rest > 0.0, rest * v, 0.0)
    b = uniform[None, :] + tl.where(rest > 0.0, rest * v * ((1.0 - power) + power * v), 0.0)
    return tl.where(void[None, :], 0.0, c), tl.where(void[None, :], 0.0, b)
