r"""Arithmetic mean of log-weights and log of power means, with the gradients that dead weights call for.

A mean, or a power mean of negative power, needs *every* weight to be alive: one −inf makes the value −inf, and then the
gradient is 0 (a gradient of 1/K would meet 0·inf inside the log-density that is −inf).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iwbounds.logspace.leave_one_out import plain_leave_one_out
from iwbounds.logspace.mean import finite_maximum, normalized_weights, plain_log_mean_exp, promoted

__all__ = [
    "log_power_mean",
    "power_mean_replacing_each",
    "power_weights",
    "sample_mean",
    "uniform_weights",
]


def _any_dead(x: Tensor, dim: int) -> Tensor:
    return x.detach().isneginf().any(dim, keepdim=True)


def sample_mean(x: Tensor, dim: int = 0) -> Tensor:
    """Arithmetic mean, taken about the maximum; −inf with gradient 0 where any entry is −inf."""
    x = promoted(x, dim)
    shift, dead = finite_maximum(x, dim), _any_dead(x, dim)
    mean = shift + (x - shift).masked_fill(dead, 0.0).mean(dim, keepdim=True)
    return mean.masked_fill(dead, -torch.inf).squeeze(dim)


def uniform_weights(x: Tensor, dim: int = 0) -> Tensor:
    """Gradient of :func:`sample_mean`: 1/K, and 0 throughout a row with a dead weight."""
    x = promoted(x, dim)
    return torch.full_like(x, 1.0 / x.shape[dim]).masked_fill(_any_dead(x, dim), 0.0)


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
        return x.amax(dim) if power > 0 else x.amin(dim)
    shift = finite_maximum(x, dim)
    scaled = power * (x - shift)
    if power > 0:
        return shift.squeeze(dim) + plain_log_mean_exp(scaled, dim) / power
    dead = _any_dead(x, dim)
    mean = shift.squeeze(dim) + plain_log_mean_exp(scaled.masked_fill(dead, 0.0), dim) / power
    return mean.masked_fill(dead.squeeze(dim), -torch.inf)


def power_weights(x: Tensor, power: float, dim: int = 0) -> Tensor:
    r"""Gradient of :func:`log_power_mean` for a finite power: the softmax of :math:`p x`, or 0 in a dead row."""
    if power == 0:
        return uniform_weights(x, dim)
    x = promoted(x, dim)
    weights = normalized_weights(power * (x - finite_maximum(x, dim)), dim)
    return weights if power > 0 else weights.masked_fill(_any_dead(x, dim), 0.0)


def power_mean_replacing_each(x: Tensor, fill: Tensor, power: float) -> Tensor:
    """:func:`log_power_mean` along axis 0 with x_k replaced by ``fill[k]``, for every k in O(K); finite power."""
    x, count = promoted(x), x.shape[0]
    others = plain_leave_one_out(power * x) + math.log(count - 1)
    return (torch.logaddexp(others, power * fill) - math.log(count)) / power
