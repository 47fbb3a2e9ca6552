r"""Leave-one-out log-mean-exp of every element in O(K), without the cancellation of ``log(total - e_k)``.

With ``m`` the maximum and ``R = sum of exp(x_j - m)`` over all j but the arg-max, leaving out any k but the arg-max
leaves ``1 + (R - e_k)``, a sum that is at least one: ``m + log1p(R - e_k)`` is well conditioned. Leaving out the
arg-max leaves a log-sum-exp of the rest, taken about *its* maximum. The textbook ``log(total - e_k)`` is infinite or
NaN as soon as one weight dominates.

Means of the others' log-weights (the geometric version) are sums of finite entries, with the dead ones counted apart.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from iwbounds.logspace import mean
from iwbounds.logspace.mean import finite_or_zero, plain_log_mean_exp, promoted, shifted_exp

__all__ = ["Complements", "leave_one_out_log_mean_exp", "leave_one_out_mean", "plain_leave_one_out", "weights_and_rest"]


def leave_one_out_log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    r"""Log-mean-exp of all the other elements, for every element; on a GPU by a fused kernel where Triton is installed.

    .. math:: \operatorname{loo}_k(x) = \log\frac1{K-1}\sum_{j\ne k} e^{x_j}

    Time and memory O(K); differentiable to any order.

    Args:
        x: log-weights in nats, any shape, with at least two along ``dim``.
        dim: the axis to reduce.

    Returns:
        The shape of ``x``, in at least float32.

    Edge cases: −inf where all others are −inf (gradient 0), +inf where another is +inf; NaN stays in its own row.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: fewer than two elements along ``dim``.

    >>> import torch
    >>> leave_one_out_log_mean_exp(torch.tensor([0.0, 0.0, 1000.0]))
    tensor([999.3068, 999.3068,   0.0000])
    """
    x = promoted(x, dim)
    if x.shape[dim] < 2:
        raise ValueError(f"expected at least 2 samples along axis {dim} to leave one out; got shape {tuple(x.shape)}.")
    if mean.served_by_kernel(x):
        from iwbounds.kernels.functions import fused_leave_one_out_log_mean_exp

        return fused_leave_one_out_log_mean_exp(x, dim)
    return plain_leave_one_out(x, dim)


def plain_leave_one_out(x: Tensor, dim: int = 0) -> Tensor:
    """:func:`iwbounds.leave_one_out_log_mean_exp` in plain torch code, whatever the device: the kernels' reference."""
    x = promoted(x, dim)
    count = x.shape[dim]
    if count == 2:
        return x.masked_fill(x.isneginf(), -torch.inf).flip(dim)  # filled, so that a dead one gets no gradient
    top = x.detach().argmax(dim, keepdim=True)
    is_top = torch.zeros_like(x, dtype=torch.bool).scatter(dim, top, True)
    # By index, not by value: of equal largest weights just one is the top, and the others stay in the rest.
    rest = x.masked_fill(is_top, -torch.inf)
    # The mean counts the removed entry as a weight of 0: K/(K − 1) corrects the count.
    without_top = plain_log_mean_exp(rest, dim).unsqueeze(dim) + math.log(count / (count - 1))
    with_top = _log_sum_exp_with_top(x.gather(dim, top), rest, dim) - math.log(count - 1)
    return torch.where(is_top, without_top, with_top)


def _log_sum_exp_with_top(top: Tensor, rest: Tensor, dim: int) -> Tensor:
    """``m + log1p(R - e_k)`` for every k but the arg-max, whose entry of ``rest`` is −inf.

    ``top`` enters as ``expm1(top - m)``: zero in value, one in derivative. The clamp is active in dead rows only.
    """
    maximum = top.detach()
    shift = finite_or_zero(maximum)
    # Where the top is +inf the shift is 0, and the rest may overflow; the result is +inf whatever they are.
    exp = (rest - shift).masked_fill(maximum.isposinf(), -torch.inf).exp()
    # Rounding may leave a negative zero's worth: the true sum is no less than 0.
    others = (exp.sum(dim, keepdim=True) - exp).clamp_min(0.0)
    return maximum + (others + torch.expm1(top - shift)).clamp_min(-0.5).log1p()


def leave_one_out_mean(x: Tensor, dim: int = 0) -> Tensor:
    """Mean of all the other elements along ``dim``, for every element; −inf where another is −inf."""
    x = promoted(x, dim)
    dead = x.isneginf()
    alive = x.masked_fill(dead, 0.0)  # a total of −inf less a −inf would be NaN: the dead ones are counted instead
    means = (alive.sum(dim, keepdim=True) - alive) / (x.shape[dim] - 1)
    # A sample that is itself dead does not count among its others.
    others_dead = dead.sum(dim, keepdim=True) - dead.to(torch.int64)
    return means.masked_fill(others_dead > 0, -torch.inf)


class Complements(NamedTuple):
    """Each sample's part of the total weight, and what it leaves to the others; detached, for coefficients."""

    weights: Tensor
    """w̃, ``(K, *batch)``."""
    log_rest: Tensor
    """log(1 − w̃), precise where w̃ is within rounding of 1: −1000 if a weight dominates by 1000 nats."""
    dead: Tensor
    """``(1, *batch)``: where every weight is dead, and weights and their logs are 0."""


def weights_and_rest(log_w: Tensor) -> Complements:
    """Normalised weights along axis 0 and the logs of their complements, in O(K).

    log1p(−w̃) is well conditioned but for a weight above 1/2, which only the largest can be: what that one leaves is
    summed on its own.
    """
    parts = shifted_exp(promoted(log_w).detach(), 0)
    weights = parts.exp / parts.total
    top = parts.shifted.argmax(0, keepdim=True)
    log_others = parts.shifted.scatter(0, top, -torch.inf).logsumexp(0, keepdim=True)
    # Right for weights up to 1/2, which all but the largest are.
    log_rest = weights.neg().log1p_()
    of_top = torch.where(weights.gather(0, top) > 0.5, log_others - parts.total.log(), log_rest.gather(0, top))
    log_rest.scatter_(0, top, of_top)
    log_rest += parts.total - parts.total  # 0, and NaN where a weight is +inf: nothing can be said of what it leaves
    return Complements(weights, log_rest, parts.maximum.isneginf())
