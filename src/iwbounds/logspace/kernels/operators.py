"""Log-mean-exp and its leave-one-out form as ``torch.library`` operators, for graphs, fake tensors and autograd.

Each operator says in its schema which path it takes (``kernel``), has a fake implementation (shapes only), a backward
that is an operator too, a batching rule, and derivatives of higher order through the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iwbounds.logspace.kernels import reference
from iwbounds.logspace.kernels.dispatch import plain_only, runs_kernel
from iwbounds.logspace.leave_one_out import plain_leave_one_out as loo_reference
from iwbounds.logspace.mean import plain_log_mean_exp as mean_reference
from iwbounds.logspace.mean import promoted

__all__ = ["fused_leave_one_out_log_mean_exp", "fused_log_mean_exp"]


def fused_log_mean_exp(x: Tensor, dim: int = 0, *, kernel: bool | None = None) -> Tensor:
    """:func:`iwbounds.log_mean_exp` as an operator: one launch forward, one backward.

    Works in CUDA graphs and with reverse-mode autograd of any order. ``torch.compile``, ``torch.func`` transforms and
    forward-mode AD take the reference, unless ``kernel`` (as in :func:`fused_bound`) is given: then the operator is one
    node of the compiled graph, and ``vmap`` works.

    >>> fused_log_mean_exp(torch.zeros(3, 2))
    tensor([0., 0.])
    """
    full = promoted(x, dim)
    if kernel is None and plain_only():
        return mean_reference(x, dim)
    x = x.movedim(dim, 0)
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    value: Tensor = _mean(flat, runs_kernel(full, kernel))[0]
    return value.reshape(x.shape[1:])


def fused_leave_one_out_log_mean_exp(x: Tensor, dim: int = 0, *, kernel: bool | None = None) -> Tensor:
    """:func:`iwbounds.leave_one_out_log_mean_exp` as an operator: the top-2 algorithm in one launch.

    >>> fused_leave_one_out_log_mean_exp(torch.tensor([0.0, 0.0, 1000.0]))
    tensor([999.3068, 999.3068,   0.0000])
    """
    full = promoted(x, dim)
    if x.shape[dim] < 2:
        raise ValueError(f"expected at least 2 samples along axis {dim} to leave one out; got shape {tuple(x.shape)}.")
    if kernel is None and plain_only():
        return loo_reference(x, dim)
    x = x.movedim(dim, 0)
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    value: Tensor = _leave_one_out(flat, runs_kernel(full, kernel))
    return value.reshape(x.shape).movedim(0, dim)


def _full(x: Tensor, *shape: int) -> Tensor:
    """An empty tensor in the precision that reductions of ``x`` are kept in."""
    return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


@torch.library.custom_op(
    "iwbounds::log_mean_exp", mutates_args=(), schema="(Tensor x, bool kernel) -> (Tensor, Tensor, Tensor)"
)
def _mean(x, kernel):  # type: ignore[no-untyped-def]
    if not kernel:
        return reference.mean_pieces(x)
    from iwbounds.logspace.kernels.triton_mean import launch_mean

    pieces = tuple(_full(x, x.shape[1]) for _ in range(3))
    launch_mean(x, *pieces)
    return pieces


@torch.library.custom_op(
    "iwbounds::log_mean_exp_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor maximum, Tensor total, bool kernel) -> Tensor",
)
def _mean_backward(grad, x, maximum, total, kernel):  # type: ignore[no-untyped-def]
    if not kernel:
        return reference.softmax_backward(grad, x, maximum, total)
    from iwbounds.logspace.kernels.triton_mean import launch_mean_backward

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch_mean_backward(grad, x, maximum, total, out)
    return out


@torch.library.custom_op(
    "iwbounds::leave_one_out_log_mean_exp", mutates_args=(), schema="(Tensor x, bool kernel) -> Tensor"
)
def _leave_one_out(x, kernel):  # type: ignore[no-untyped-def]
    if not kernel:
        return loo_reference(x).contiguous()
    from iwbounds.logspace.kernels.triton_leave_one_out import launch_leave_one_out

    out = _full(x, *x.shape)
    launch_leave_one_out(x, out)
    return out


@torch.library.custom_op(
    "iwbounds::leave_one_out_log_mean_exp_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, bool kernel) -> Tensor",
)
def _leave_one_out_backward(grad, x, kernel):  # type: ignore[no-untyped-def]
    if not kernel:
        return reference.leave_one_out_backward(grad, x)
    from iwbounds.logspace.kernels.triton_leave_one_out import launch_leave_one_out_backward

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch_leave_one_out_backward(grad, x, out)
    return out


def _again(function: Callable[[Tensor], Tensor], grad: Tensor, x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Second-order gradients of ``grad`` and ``x``, differentiable in their turn."""
    with torch.enable_grad():
        inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in (grad, x)]
        (first,) = torch.autograd.grad(function(inputs[1]), inputs[1], inputs[0], create_graph=True)
        return torch.autograd.grad(first, inputs, upstream, create_graph=True, allow_unused=True)


def _register() -> None:
    """Attach fakes, autograd formulas and batching rules to the operators."""
    _mean.register_fake(lambda x, _kernel: tuple(_full(x, x.shape[1]) for _ in range(3)))
    _mean_backward.register_fake(lambda _grad, x, _maximum, _total, _kernel: x.new_empty(x.shape))
    _leave_one_out.register_fake(lambda x, _kernel: _full(x, *x.shape))
    _leave_one_out_backward.register_fake(lambda _grad, x, _kernel: x.new_empty(x.shape))
    _mean.register_autograd(_backward_of_mean, setup_context=_save_mean)
    _mean_backward.register_autograd(_backward_again(mean_reference, 3), setup_context=_save_first_two)
    _leave_one_out.register_autograd(_backward_of_leave_one_out, setup_context=_save_leave_one_out)
    _leave_one_out_backward.register_autograd(_backward_again(loo_reference, 1), setup_context=_save_first_two)
    for operator, tensors in ((_mean, 1), (_mean_backward, 4), (_leave_one_out, 1), (_leave_one_out_backward, 2)):
        operator.register_vmap(_batched(operator, tensors))


def _save_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.kernel = inputs
    ctx.save_for_backward(x, *output[1:])


def _backward_of_mean(ctx: Any, grad: Tensor, _maximum: Tensor, _total: Tensor) -> tuple[Tensor, None]:
    x, maximum, total = ctx.saved_tensors
    return _mean_backward(grad, x, maximum.detach(), total.detach(), ctx.kernel), None


def _save_leave_one_out(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, ctx.kernel = inputs
    ctx.save_for_backward(x)


def _backward_of_leave_one_out(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _leave_one_out_backward(grad, *ctx.saved_tensors, ctx.kernel), None


def _save_first_two(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])


def _backward_again(function: Callable[[Tensor], Tensor], others: int) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        return *_again(function, grad, x, upstream), *[None] * others

    return backward


def _batched(operator: Any, tensors: int) -> Callable[..., tuple[Any, Any]]:
    """A batching rule: the operators reduce axis 0 of ``(K, batch)`` alone, so a further axis joins the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        wide = [
            (x.movedim(d, -1) if d is not None else x.unsqueeze(-1).expand(*x.shape, size)).flatten(-2)
            for x, d in zip(arguments[:tensors], in_dims, strict=False)
        ]
        out = operator(*wide, *arguments[tensors:])
        if isinstance(out, tuple):
            return tuple(t.unflatten(-1, (-1, size)) for t in out), (-1,) * len(out)
        return out.unflatten(-1, (-1, size)), out.ndim

    return rule


_register()
