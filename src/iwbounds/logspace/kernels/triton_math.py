"""Device functions shared by the kernels: logarithms and exponentials that stay precise near 0 and 1.

Without libdevice, on purpose: the same code runs under the Triton interpreter, in float32 and in float64.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["expm1", "finite", "log1p", "log_mean"]


@triton.jit
def finite(maximum):
    """A maximum that can be subtracted: ±inf become 0, NaN stays."""
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
    share = total / count
    near_one = (share > 0.5) & (share < 2.0)
    return tl.where(near_one, log1p(tl.where(near_one, excess / count, 0.0)), tl.log(share))
