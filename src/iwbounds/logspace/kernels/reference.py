"""What each kernel computes, in plain torch: what the kernels are tested against, and the path on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from iwbounds.logspace.leave_one_out import leave_one_out_mean, plain_leave_one_out
from iwbounds.logspace.mean import finite_maximum, normalized_weights, plain_log_mean_exp, promoted, shifted_exp
from iwbounds.logspace.power import log_power_mean, power_mean_replacing_each, power_weights, sample_mean

__all__ = [
    "FusedBound",
    "FusedNested",
    "FusedVIMCO",
    "bound",
    "leave_one_out_backward",
    "mean_pieces",
    "nested",
    "softmax_backward",
    "vimco",
]


class FusedBound(NamedTuple):
    """What a bound gives for ``(K, *batch)`` log-densities; all detached, in at least float32."""

    value: Tensor
    """``(*batch)`` nats."""
    ess: Tensor
    """``(*batch)`` effective sample sizes."""
    log_weights: Tensor
    """``(K, *batch)``, log p − log q."""
    model: Tensor
    """c, the coefficient of the reparameterised gradient and of STL, and of every model."""
    path: Tensor
    """c − h, the path coefficient of DReG; ``model`` itself where it was not asked for."""


class FusedVIMCO(NamedTuple):
    """IWAE and VIMCO's coefficients for ``(K, *batch)`` log-densities; all detached, in at least float32."""

    value: Tensor
    ess: Tensor
    log_weights: Tensor
    model: Tensor
    """The normalised weights."""
    score: Tensor
    """(L − L₋ₖ) − c, 0 where it would be infinite."""


class FusedNested(NamedTuple):
    """A bound over M samples whose log-proposals are log-mean-exps; all detached, in at least float32."""

    value: Tensor
    ess: Tensor
    log_weights: Tensor
    """``(M, *batch)``, log p − U."""
    model: Tensor
    """c of the outer bound, its gradient in log p."""
    path: Tensor
    """c − h of the outer bound."""
    inner: Tensor
    """``(M, J, *batch)``, the gradient in the inner log-weights: −c ṽ."""
    inner_path: Tensor
    """Gradient minus curvature in the inner log-weights: −(c + h) ṽ²."""


def bound(log_p: Tensor, log_q: Tensor | None, power: float, share: float) -> FusedBound:
    """``share`` of the mean of the log-weights, the rest a log power mean; 0 coefficients where it needs a dead one."""
    x = promoted(log_p) if log_q is None else promoted(log_p) - promoted(log_q)
    void = x.isneginf().any(0) & (share > 0 or power < 0)
    mean = sample_mean(x) if share == 1 else log_power_mean(x, power)
    if 0 < share < 1:
        mean = share * sample_mean(x) + (1 - share) * mean
    v = torch.zeros_like(x) if share == 1 else power_weights(x, power)
    c = share / x.shape[0] + (1 - share) * v
    b = share / x.shape[0] + (1 - share) * v * ((1 - power) + power * v)
    value = mean.masked_fill(void, -torch.inf)
    return FusedBound(value, _ess(x), x, c.masked_fill(void, 0.0), b.masked_fill(void, 0.0))


def vimco(log_p: Tensor, log_q: Tensor | None, geometric: bool) -> FusedVIMCO:
    """Arithmetic or geometric VIMCO for IWAE, K ≥ 2."""
    x = promoted(log_p) if log_q is None else promoted(log_p) - promoted(log_q)
    y = x - finite_maximum(x, 0)
    without = power_mean_replacing_each(y, leave_one_out_mean(y), 1.0) if geometric else plain_leave_one_out(y)
    w = normalized_weights(y)
    advantage = plain_log_mean_exp(y) - without
    dead = x.isneginf().all(0)
    score = (advantage - w).masked_fill(dead, 0.0).nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0)
    return FusedVIMCO(plain_log_mean_exp(x), _ess(x), x, w, score)


def nested(log_p: Tensor, inner: Tensor, power: float, share: float) -> FusedNested:
    """The outer bound of log p − log-mean-exp(inner), with the gradient in both."""
    outer = bound(log_p, plain_log_mean_exp(inner, 1), power, share)
    w = normalized_weights(inner, 1)
    gradient = -outer.model.unsqueeze(1) * w
    path = (outer.path - 2 * outer.model).unsqueeze(1) * w * w
    return FusedNested(*outer, gradient, path)


def mean_pieces(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mean-exp along axis 0, and the maximum and scaled sum that its backward needs."""
    pieces = shifted_exp(promoted(x), 0)
    return plain_log_mean_exp(x), pieces.maximum.squeeze(0).clone(), pieces.total.squeeze(0)


def softmax_backward(grad: Tensor, x: Tensor, maximum: Tensor, total: Tensor) -> Tensor:
    """Gradient of ``x`` from that of its log-mean-exp."""
    shift = maximum.nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0)
    return (grad * (promoted(x) - shift).exp() / total.clamp_min(0.5)).to(x.dtype)


def leave_one_out_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``x`` ``(K, *batch)`` from that of its leave-one-out log-mean-exp, in O(K) without cancellation.

    The arg-max and the others are kept apart: each term then has a sum of exponentials that is at least 1 below it.
    """
    y, grad = promoted(x), promoted(grad)
    is_top = torch.zeros_like(y, dtype=torch.bool).scatter(0, y.argmax(0, keepdim=True), True)
    e = (y - finite_maximum(y, 0)).exp()
    _, rest, total, _ = shifted_exp(y.masked_fill(is_top, -torch.inf), 0)
    others = e.masked_fill(is_top, 0.0)
    ratio = (grad / (1 + (others.sum(0) - others).clamp_min(0.0))).masked_fill(is_top, 0.0)
    of_top = (grad.masked_fill(~is_top, 0.0).sum(0) * rest / total).masked_fill(is_top, 0.0)
    found = e * (ratio.sum(0) - ratio) + of_top
    return found.masked_fill(y.isneginf().all(0), 0.0).to(x.dtype)


def _ess(x: Tensor) -> Tensor:
    squares = normalized_weights(x).square().sum(0)
    return torch.where(squares == 0, 0.0, 1 / squares)
