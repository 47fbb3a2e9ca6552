"""The public reductions: a fused operator on CUDA tensors where Triton is, plain torch elsewhere."""

from __future__ import annotations

from torch import Tensor

from iwbounds.logspace.leave_one_out import plain_leave_one_out
from iwbounds.logspace.mean import plain_log_mean_exp, promoted

__all__ = ["leave_one_out_log_mean_exp", "log_mean_exp"]


def log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    r"""Logarithm of the mean of exponentials along one axis.

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
        from iwbounds.kernels import fused_log_mean_exp

        return fused_log_mean_exp(x, dim)
    return plain_log_mean_exp(x, dim)


def leave_one_out_log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    r"""Log-mean-exp of all the other elements, for every element.

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
    count = x.shape[dim]
    if count < 2:
        raise ValueError(f"expected at least 2 samples along axis {dim} to leave one out; got shape {tuple(x.shape)}.")
    if served_by_kernel(x):
        from iwbounds.kernels import fused_leave_one_out_log_mean_exp

        return fused_leave_one_out_log_mean_exp(x, dim)
    return plain_leave_one_out(x, dim)


def served_by_kernel(x: Tensor) -> bool:
    """Whether ``x`` is where the fused kernels serve by themselves: on a GPU, where Triton is, in eager code."""
    if not x.is_cuda:
        return False
    from iwbounds.kernels import runs_kernel

    return runs_kernel(x)
