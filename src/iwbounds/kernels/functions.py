"""Log-mean-exp and its leave-one-out form as autograd functions: a kernel forward, and a kernel backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iwbounds.kernels.dispatch import runs_kernel
from iwbounds.logspace.leave_one_out import plain_leave_one_out
from iwbounds.logspace.mean import plain_log_mean_exp, promoted

__all__ = ["fused_leave_one_out_log_mean_exp", "fused_log_mean_exp", "gradients_with_graph"]


def fused_log_mean_exp(x: Tensor, dim: int = 0, *, kernel: bool | None = None) -> Tensor:
    """:func:`iwbounds.log_mean_exp` with one launch forward and one backward.

    Works in CUDA graphs and with reverse-mode autograd of any order. ``torch.compile``, ``torch.func`` transforms and
    forward-mode AD get plain code; ``kernel`` is as in :func:`fused_bound`.

    >>> fused_log_mean_exp(torch.zeros(3, 2))
    tensor([0., 0.])
    """
    if not runs_kernel(promoted(x, dim), kernel):
        return plain_log_mean_exp(x, dim)
    first = x.movedim(dim, 0)
    value: Tensor = _LogMeanExp.apply(_flat(first))  # type: ignore[no-untyped-call]
    return value.reshape(first.shape[1:])


def fused_leave_one_out_log_mean_exp(x: Tensor, dim: int = 0, *, kernel: bool | None = None) -> Tensor:
    """:func:`iwbounds.leave_one_out_log_mean_exp` by the top-2 algorithm in one launch, and one backward.

    >>> fused_leave_one_out_log_mean_exp(torch.tensor([0.0, 0.0, 1000.0]))
    tensor([999.3068, 999.3068,   0.0000])
    """
    full = promoted(x, dim)
    if x.shape[dim] < 2:
        raise ValueError(f"expected at least 2 samples along axis {dim} to leave one out; got shape {tuple(x.shape)}.")
    if not runs_kernel(full, kernel):
        return plain_leave_one_out(x, dim)
    first = x.movedim(dim, 0)
    value: Tensor = _LeaveOneOut.apply(_flat(first))  # type: ignore[no-untyped-call]
    return value.reshape(first.shape).movedim(0, dim)


def gradients_with_graph(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of ``inputs`` that can be differentiated again, through the plain ``function``.

    What the backward of a kernel does under ``create_graph=True``: a kernel's own output has no graph.
    """
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    # The plain function is evaluated once more, at the saved inputs: only who asks for second derivatives pays.
    found = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]


class _LogMeanExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from iwbounds.kernels.triton_bound import launch_mean

        # Not filled: the kernel writes every entry, and a fill would be a launch of its own.
        value, maximum, total = (_full(x, x.shape[1]) for _ in range(3))
        launch_mean(x, value, maximum, total)
        # The weights are made of these two: e^(x − value) does not sum to one at large magnitudes.
        ctx.save_for_backward(x, maximum, total)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        x, maximum, total = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_with_graph(plain_log_mean_exp, (x,), (True,), grad)[0]
        from iwbounds.kernels.triton_bound import launch_mean_backward

        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        launch_mean_backward(grad, x, maximum, total, out)
        return out


class _LeaveOneOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from iwbounds.kernels.triton_leave_one_out import launch_leave_one_out

        out = _full(x, *x.shape)
        launch_leave_one_out(x, out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_with_graph(plain_leave_one_out, (x,), (True,), grad)[0]
        from iwbounds.kernels.triton_leave_one_out import launch_leave_one_out_backward

        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        # The backward finds the top two again: saving them would cost as much memory traffic as reading x.
        launch_leave_one_out_backward(grad, x, out)
        return out


def _flat(x: Tensor) -> Tensor:
    """``(K, *batch)`` as ``(K, batch)``; a size is counted, since -1 cannot be inferred in an empty batch."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _full(x: Tensor, *shape: int) -> Tensor:
    """An empty tensor in the precision that reductions of ``x`` are kept in."""
    return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
