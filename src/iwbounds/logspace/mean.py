r"""Log-mean-exp and normalised weights, stable in value and in gradient.

For ``x`` with maximum ``m`` along the reduced axis of size ``K``,

.. math:: \log\frac1K\sum_k e^{x_k} = m + \log\frac1K\sum_k e^{x_k - m}.

``m`` is detached: the sum does not depend on it, so derivatives of every order are exact, and the first one,
``e^{x - m} / sum``, sums to one at any magnitude (``exp(x - logsumexp(x))`` is 65 % off at 1e7 in float32).
The logarithm is then corrected once by its own residual, ``log1p(mean(expm1(x - value)))``: without it, weights that
differ by 1e-8 would give a value that is wrong by 1e-7, above the maximum or below the mean.

Throughout the package a weight is *dead* if it is zero, its log-weight −inf, and a datum is dead if the weights that
its bound needs are: the value is then −inf, and every derivative 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "finite_maximum",
    "finite_or_zero",
    "log_mean_exp",
    "log_mean_exp_with_weights",
    "normalized_weights",
    "plain_log_mean_exp",
    "promoted",
    "served_by_kernel",
    "shifted_exp",
]


class ShiftedExp(NamedTuple):
    """The pieces that every reduction in log-space is made of; the reduced axis is kept with size 1."""

    shifted: Tensor
    """``x - m``, with infinite ``m`` taken as 0 so that dead rows stay free of NaN."""
    exp: Tensor
    """``exp(x - m)``."""
    total: Tensor
    """Sum of ``exp``; 0.5 without gradient where every entry is −inf (a living row's sum is at least 1)."""
    maximum: Tensor
    """``m`` itself, detached."""


def promoted(x: Tensor, dim: int = 0) -> Tensor:
    """``x`` in at least float32, after the checks that every log-space reduction makes on its argument.

    Raises:
        TypeError: ``x`` is not a tensor of a real floating dtype.
        ValueError: ``x`` has no axis ``dim``, or that axis has size 0 (a mean over nothing).
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"expected a floating-point tensor of log-weights; got {found}. Convert it with .float().")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"expected a tensor with an axis {dim} to reduce; got shape {tuple(x.shape)}.")
    if x.shape[dim] == 0:
        raise ValueError(f"expected at least one sample along axis {dim}; got shape {tuple(x.shape)}.")
    # A float16 sum of 1e5 weights overflows, and bfloat16 keeps 3 digits: reductions are in float32 or more.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def finite_or_zero(x: Tensor) -> Tensor:
    """``x`` with ±inf replaced by 0; NaN stays, so that a broken datum shows."""
    return x.nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0)


def finite_maximum(x: Tensor, dim: int) -> Tensor:
    """The detached maximum along ``dim`` (kept with size 1), 0 where it is infinite."""
    return finite_or_zero(x.detach().amax(dim, keepdim=True))


def shifted_exp(x: Tensor, dim: int) -> ShiftedExp:
    """Exponentials relative to the detached maximum along ``dim``, and their sum."""
    # Detached: in exact arithmetic the result does not depend on it, so neither does any derivative.
    maximum = x.detach().amax(dim, keepdim=True)
    shifted = x - finite_or_zero(maximum)  # a row of −inf minus its maximum would be NaN
    exp = shifted.exp()
    # A living row's sum is at least exp(0) = 1: the clamp acts on dead rows alone, whose 0 / 0.5 is a weight of 0.
    return ShiftedExp(shifted, exp, exp.sum(dim, keepdim=True).clamp_min(0.5), maximum)


def log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    r"""Logarithm of the mean of exponentials along one axis; on a GPU by a fused kernel where Triton is installed.

    .. math:: \operatorname{lme}(x) = \log\frac1K\sum_{k=1}^K e^{x_k}

    The gradient is :func:`normalized_weights`; derivatives of any order, forward-mode AD and ``torch.func`` transforms
    work. Empty batches are fine.

    Args:
        x: log-weights in nats, any shape; float16 and bfloat16 are computed and returned in float32.
        dim: the axis to reduce.

    Returns:
        ``x`` without axis ``dim``, in at least float32.

    Edge cases: a row of −inf gives −inf with gradient 0. A +inf entry gives +inf, and a NaN gradient for that entry,
    because a +inf log-weight is an error of the model. NaN stays in its own row.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: no axis ``dim``, or an axis of size 0.

    >>> import torch
    >>> log_mean_exp(torch.tensor([0.0, 0.0, 0.0]))
    tensor(0.)
    >>> log_mean_exp(torch.tensor([[1e7, -torch.inf], [1e7, -torch.inf]]))
    tensor([10000000.,       -inf])
    """
    x = promoted(x, dim)
    if served_by_kernel(x):
        # Here, not above: the import brings Triton along, 0.2 s that a CPU has no use for.
        from iwbounds.kernels.functions import fused_log_mean_exp

        return fused_log_mean_exp(x, dim)
    return plain_log_mean_exp(x, dim)


def served_by_kernel(x: Tensor) -> bool:
    """Whether ``x`` is where the fused kernels serve by themselves: on a GPU, where Triton is, in eager code."""
    if not x.is_cuda:
        return False
    from iwbounds.kernels.dispatch import runs_kernel

    return runs_kernel(x)


def plain_log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    """:func:`iwbounds.log_mean_exp` in plain torch code, whatever the device: the kernels' reference."""
    return _log_mean(shifted_exp(promoted(x, dim), dim), dim)


def log_mean_exp_with_weights(x: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Log-mean-exp and :func:`normalized_weights` from the same exponentials, for an ``x`` outside every graph."""
    x = promoted(x, dim)
    if x.dtype == torch.float32 and x.is_cpu:  # float64 is slow on most GPUs
        return _by_float64(x, dim)
    # As in log_mean_exp, so that value and weights agree with it to the last digit on a GPU and in float64.
    parts = shifted_exp(x, dim)
    return _log_mean(parts, dim), parts.exp / parts.total


def _by_float64(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """In place on a wider copy, which needs no correction: fewer operations and less memory than float32 takes."""
    exp = x.double()
    maximum = finite_maximum(exp, dim)
    # In place, on the copy: at K = 5000 three buffers of the weights' size are saved.
    total = exp.sub_(maximum).exp_().sum(dim, keepdim=True)
    value = (total / x.shape[dim]).log_().add_(maximum)  # before the clamp below: a dead row must give log 0
    return value.squeeze(dim).to(x.dtype), exp.div_(total.clamp_min_(0.5)).to(x.dtype)


def _log_mean(parts: ShiftedExp, dim: int) -> Tensor:
    """The log of the mean, corrected once by its own residual."""
    log_mean = (parts.total / parts.exp.shape[dim]).log()
    # Detached: the residual is a rounding error, and its derivative is not the derivative of anything.
    residual = torch.expm1(parts.shifted.detach() - log_mean.detach()).mean(dim, keepdim=True).log1p()
    # A dead row's log-mean is −inf and its residual NaN; there is nothing to correct.
    correction = residual.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return (parts.maximum + (log_mean + correction)).squeeze(dim)


def normalized_weights(log_w: Tensor, dim: int = 0) -> Tensor:
    r"""Self-normalised importance weights, a softmax that sums to one at any magnitude.

    .. math:: \tilde w_k = e^{\log w_k} / \sum_j e^{\log w_j}

    Args:
        log_w: log-weights in nats, any shape.
        dim: the axis that the weights sum to one along.

    Returns:
        Weights of the shape of ``log_w``, in at least float32.

    Edge cases: −inf has weight exactly 0; a row of −inf has all weights 0; +inf has weight NaN.

    Raises:
        TypeError, ValueError: as :func:`iwbounds.log_mean_exp`.

    >>> normalized_weights(torch.tensor([0.0, -torch.inf, 0.0]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    _, exp, total, _ = shifted_exp(promoted(log_w, dim), dim)
    return exp / total
