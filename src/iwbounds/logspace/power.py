r"""Means of log-weights, logs of power means and tempered means: values, gradients, and each weight replaced.

A mean, or a power mean of negative power, needs *every* weight to be alive: one −inf makes the value −inf, and then the
gradient is 0 (a gradient of 1/K would meet 0·inf inside the log-density that is −inf).

A tempered mean is :math:`S_\beta=\sum_k v_k x_k` with :math:`v=\operatorname{softmax}(\beta x)`, taken about the
maximum m, :math:`S_\beta = m + \sum_k v_k (x_k - m)`, so that nothing is lost to a large m and a spread of 1e-8 keeps
its digits. With :math:`g_k=\beta(x_k-S_\beta)`,

.. math:: \frac{\partial S_\beta}{\partial x_k} = v_k(1+g_k), \qquad
          \frac{\partial^2 S_\beta}{\partial x_k^2} = \beta v_k\bigl(1+(1-2v_k)(1+g_k)\bigr).

A dead weight has v = 0, and 0·(−inf) is 0, for β > 0; β = 0 is the plain mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iwbounds.logspace.leave_one_out import leave_one_out_mean, plain_leave_one_out
from iwbounds.logspace.mean import (
    finite_maximum,
    finite_or_zero,
    normalized_weights,
    plain_log_mean_exp,
    promoted,
)

__all__ = [
    "log_power_mean",
    "mean_replacing_each",
    "power_mean_replacing_each",
    "power_path_weights",
    "power_weights",
    "sample_mean",
    "tempered_derivatives",
    "tempered_mean",
    "tempered_mean_replacing_each",
    "uniform_weights",
]


def _any_dead(x: Tensor, dim: int) -> Tensor:
    return x.detach().isneginf().any(dim, keepdim=True)


def sample_mean(x: Tensor, dim: int = 0) -> Tensor:
    """Arithmetic mean, taken about the maximum; −inf with gradient 0 where any entry is −inf."""
    x = promoted(x, dim)
    shift, dead = finite_maximum(x, dim), _any_dead(x, dim)
    # About the maximum: the mean of 1e7 ± 1e-3 in float32 would otherwise keep none of the spread. Filled before the
    # mean, as its gradient would be 1/K even in a dead row.
    mean = shift + (x - shift).masked_fill(dead, 0.0).mean(dim, keepdim=True)
    return mean.masked_fill(dead, -torch.inf).squeeze(dim)


def uniform_weights(x: Tensor, dim: int = 0) -> Tensor:
    """Gradient of :func:`sample_mean`: 1/K, and 0 throughout a row with a dead weight."""
    x = promoted(x, dim)
    return torch.full_like(x, 1.0 / x.shape[dim]).masked_fill(_any_dead(x, dim), 0.0)


def mean_replacing_each(x: Tensor, fill: Tensor) -> Tensor:
    """:func:`sample_mean` along axis 0 with x_k replaced by ``fill[k]``, for every k in O(K)."""
    count = x.shape[0]
    # Not mean + (fill − x)/K, where x = −inf would meet −inf.
    return leave_one_out_mean(x) * ((count - 1) / count) + fill / count


def log_power_mean(x: Tensor, power: float, dim: int = 0) -> Tensor:
    r"""Logarithm of the power mean of :math:`w = e^x`.

    .. math:: \frac1p \log\frac1K\sum_k e^{p x_k}

    Power 0 is the limit, the mean of ``x``; ±infinity are the maximum and the minimum. Nothing is lost for powers near
    0, where a logarithm near 0 is divided by ``power``: :func:`plain_log_mean_exp` is precise relative to the spread.
    """
    if power == 0:
        return sample_mean(x, dim)
    x = promoted(x, dim)
    if math.isinf(power):
        # Autograd spreads the gradient of ties evenly, which is one of the subgradients.
        return x.amax(dim) if power > 0 else x.amin(dim)
    scaled, shift, power, dead = _scaled(x, power, dim)
    # The plain one, as its residual correction is what keeps the digits when divided by a power near 0.
    mean = shift.squeeze(dim) + plain_log_mean_exp(scaled, dim) / power
    return mean if dead is None else mean.masked_fill(dead.squeeze(dim), -torch.inf)


def power_weights(x: Tensor, power: float, dim: int = 0) -> Tensor:
    r"""Gradient of :func:`log_power_mean` for a finite power: the softmax of :math:`p x`, or 0 in a dead row."""
    if power == 0:
        return uniform_weights(x, dim)
    scaled, _, _, dead = _scaled(promoted(x, dim), power, dim)
    weights = normalized_weights(scaled, dim)
    return weights if dead is None else weights.masked_fill(dead, 0.0)


def _scaled(x: Tensor, power: float, dim: int) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """p (x − shift), at most 0 with the shift where p x is largest; the shift; p as ``x`` can hold it; the dead rows.

    The largest of the p x has to be 0, so that those of a huge power overflow to −inf alone, whose weight is right.
    """
    power = _representable(power, x.dtype)
    if power > 0:
        shift = finite_maximum(x, dim)
        return power * (x - shift), shift, power, None
    dead = _any_dead(x, dim)
    x = x.masked_fill(dead, 0.0)  # filled before the reductions, so that none of them gives a dead row a gradient
    shift = finite_or_zero(x.detach().amin(dim, keepdim=True))
    return power * (x - shift), shift, power, dead


def _representable(power: float, dtype: torch.dtype) -> float:
    """``power`` within the range of ``dtype``: beyond it the power mean is the extreme, and p · 0 would be NaN."""
    largest = torch.finfo(dtype).max / 16  # its inverse, a factor of the derivative, must not be subnormal
    return max(-largest, min(power, largest))


def power_path_weights(v: Tensor, power: float) -> Tensor:
    """:func:`power_weights` less the curvature, v (1 − p (1 − v)): what DReG puts on the path.

    In the form below it is 1 at v = 1 and v² at p = 1 to the last digit.
    """
    if power == 0:
        return v
    # Not c less h: at p = 1 that is v − v(1 − v), which rounds to 0 for v² below an ulp of v.
    return v * v if power == 1 else v * (v + (1 - _representable(power, v.dtype)) * (1 - v))


def power_mean_replacing_each(x: Tensor, fill: Tensor, power: float) -> Tensor:
    r"""Log power mean along axis 0 with x_k replaced by ``fill[k]``, for every k in O(K); finite power, K ≥ 2.

    With m the extreme of the x, and :math:`e_j=\operatorname{expm1}(p(x_j-m))`, it is

    .. math:: m+\frac1p\operatorname{log1p}\frac{\sum_j e_j-e_k+\operatorname{expm1}(p(f_k-m))}{K},

    which keeps its digits for p near 0, where the logarithm of a sum, divided by p, would lose them all. Where that
    mean is far from 0, or a weight is dead, the logarithm of the sum is far from 0 too, and safe.
    """
    if power == 0:
        return mean_replacing_each(x, fill)
    x, count = promoted(x), x.shape[0]
    power, dead, dead_fill = _representable(power, x.dtype), x.isneginf(), fill.isneginf()
    # The extreme that the power mean tends to, among the living: all p (x − m) are then at most 0.
    shift = finite_or_zero(x.amax(0) if power > 0 else x.masked_fill(dead, torch.inf).amin(0))
    x, fill = power * (x - shift), power * (fill - shift)
    changes = torch.expm1(x).masked_fill(dead, 0.0)
    mean_change = (changes.sum(0) - changes + torch.expm1(fill)) / count
    # A sum of the others, from their mean.
    others = plain_leave_one_out(x) + math.log(count - 1)
    log_mean = torch.logaddexp(others, fill) - math.log(count)
    # Of the others and of the fill: x_k itself is replaced, and may be dead.
    all_alive = (dead.sum(0) - dead.to(torch.int64) == 0) & ~dead_fill
    return shift + torch.where(all_alive & (mean_change.abs() <= 0.5), mean_change.log1p(), log_mean) / power


def _tempered(x: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """v, x − m with 0 for dead weights, and Σ v (x − m)."""
    shifted, dead = x - finite_maximum(x, 0), x.detach().isneginf()
    alive = shifted.masked_fill(dead, 0.0)  # 0·(−inf) would be NaN, in the value and in its derivative
    # Killed again after the product: β · 0 would give a dead weight the weight of the largest.
    v = normalized_weights((beta * alive).masked_fill(dead, -torch.inf))
    return v, alive, (v * alive).sum(0)


def tempered_mean(x: Tensor, beta: float) -> Tensor:
    """``S_β − max x`` along axis 0; over the living weights alone (0 where none lives)."""
    return _tempered(promoted(x), beta)[2]


def tempered_derivatives(x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Gradient c of S_β, and c − h without cancellation, each of the shape of ``x``."""
    v, alive, mean = _tempered(promoted(x), beta)
    # 1 + g_k; c − h is v (tilt (1 − β + 2 β v) − β), collected so that β = 1, v = 1 gives exactly 1.
    tilt = 1.0 + beta * (alive - mean)
    return v * tilt, v * (tilt * ((1.0 - beta) + 2.0 * beta * v) - beta)


def tempered_mean_replacing_each(x: Tensor, fill: Tensor, beta: float) -> Tensor:
    """S_β with x_k replaced by ``fill[k]``, for every k in O(K); K ≥ 2. −inf where no weight then lives."""
    if beta == 0:
        return mean_replacing_each(x, fill)
    x = promoted(x)
    log_others = plain_leave_one_out(beta * x) + math.log(x.shape[0] - 1)
    # The weight of the fill beside the others': w^β/(w^β + Σ), as a sigmoid, which overflows on neither side.
    v = torch.sigmoid(beta * fill - log_others)  # NaN where both are −inf, and all is dead: the last line
    # A v of 0 or 1 may meet a mean that is −inf, and their product is 0.
    of_fill = torch.where(v == 0, 0.0, v * fill)
    of_others = torch.where(v == 1, 0.0, (1.0 - v) * _means_of_others(x, beta))
    return (of_fill + of_others).masked_fill(fill.isneginf() & log_others.isneginf(), -torch.inf)


def _means_of_others(x: Tensor, beta: float) -> Tensor:
    """S_β of all other samples, for every sample."""
    # Leaving out the largest would divide by 1 − v, which may be 0: that sample's others are summed on their own below.
    is_top = torch.zeros_like(x, dtype=torch.bool).scatter(0, x.argmax(0, keepdim=True), True)
    v, alive, mean = _tempered(x, beta)
    # Leaving out any but the largest keeps the largest, so what remains of the sum of weights is at least 1/K.
    kept = 1.0 - v.masked_fill(is_top, 0.0)
    with_top = finite_maximum(x, 0) + (mean - v * alive) / kept
    rest = x.masked_fill(is_top, -torch.inf)
    return torch.where(is_top, finite_maximum(rest, 0) + tempered_mean(rest, beta), with_top)
