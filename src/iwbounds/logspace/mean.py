r"""Log-mean-exp and normalised weights, stable in value and in gradient.

For ``x`` with maximum ``m`` along the reduced axis of size ``K``,

.. math:: \log\frac1K\sum_k e^{x_k} = m + \log\frac1K\sum_k e^{x_k - m}.

``m`` is detached: the sum does not depend on it, so derivatives of every order are exact, and the first one,
``e^{x - m} / sum``, sums to one at any magnitude (``exp(x - logsumexp(x))`` is 65 % off at 1e7 in float32).
The logarithm is then corrected once by its own residual, ``log1p(mean(expm1(x - value)))``: without it, weights that
differ by 1e-8 would give a value that is wrong by 1e-7, above the maximum or below the mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "finite_maximum",
    "finite_part",
    "log_mean_exp_with_weights",
    "normalized_weights",
    "plain_log_mean_exp",
    "promoted",
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
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def finite_part(maximum: Tensor) -> Tensor:
    """A maximum that can be subtracted: ±inf become 0, NaN stays."""
    return maximum.nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0)


def finite_maximum(x: Tensor, dim: int) -> Tensor:
    """The detached maximum along ``dim`` (kept with size 1), 0 where it is infinite."""
    return finite_part(x.detach().amax(dim, keepdim=True))


def shifted_exp(x: Tensor, dim: int) -> ShiftedExp:
    """Exponentials relative to the detached maximum along ``dim``, and their sum."""
    maximum = x.detach().amax(dim, keepdim=True)
    shifted = x - finite_part(maximum)
    exp = shifted.exp()
    return ShiftedExp(shifted, exp, exp.sum(dim, keepdim=True).clamp_min(0.5), maximum)


def plain_log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    """:func:`iwbounds.log_mean_exp` in plain torch code, whatever the device: the kernels' reference."""
    return _log_mean(shifted_exp(promoted(x, dim), dim), dim)


def log_mean_exp_with_weights(x: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Log-mean-exp and :func:`normalized_weights` from the same exponentials, for an ``x`` outside every graph."""
    x = promoted(x, dim)
    if x.dtype == torch.float32 and x.is_cpu:
        return _by_float64(x, dim)
    parts = shifted_exp(x, dim)
    return _log_mean(parts, dim), parts.exp / parts.total


def _by_float64(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """In place on a wider copy, which needs no correction: fewer operations and less memory than float32 takes."""
    exp = x.double()
    maximum = finite_maximum(exp, dim)
    total = exp.sub_(maximum).exp_().sum(dim, keepdim=True)
    value = (total / x.shape[dim]).log_().add_(maximum)
    return value.squeeze(dim).to(x.dtype), exp.div_(total.clamp_min_(0.5)).to(x.dtype)


def _log_mean(parts: ShiftedExp, dim: int) -> Tensor:
    """The log of the mean, corrected once by its own residual."""
    log_mean = (parts.total / parts.exp.shape[dim]).log()
    residual = torch.expm1(parts.shifted.detach() - log_mean.detach()).mean(dim, keepdim=True).log1p()
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
