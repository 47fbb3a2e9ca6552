r"""Log-density of a Gaussian with a diagonal covariance.

With the residual :math:`r = (z-\mu)e^{-\log\sigma}`, the gradients are :math:`-g\,r\,e^{-\log\sigma}` in z, its
opposite in the mean, and :math:`g(r^2-1)` in log σ. They are made block by block from the arguments, which are all that
is kept, and summed over the samples inside where an argument is shared by them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from iwbounds.checks import full_precision
from iwbounds.densities.events import add_block, arrange, block_of, blocks
from iwbounds.kernels.dispatch import plain_only, runs_kernel
from iwbounds.kernels.functions import gradients_with_graph

__all__ = ["diagonal_gaussian"]


def diagonal_gaussian(
    z: Tensor, mean: Tensor | float, log_scale: Tensor | float, event_dims: int = 1, *, kernel: bool | None = None
) -> Tensor:
    r"""Log-density of independent Gaussian variables, summed over the event.

    .. math:: \log p(z) = -\tfrac12\sum_d \bigl((z_d-\mu_d)e^{-\log\sigma_d}\bigr)^2
                          - \sum_d\log\sigma_d - \tfrac D2\log 2\pi

    As ``Independent(Normal(mean, log_scale.exp()), event_dims).log_prob(z)`` without its temporaries. Differentiable in
    all three arguments, to any order. A Triton kernel on CUDA tensors.

    Args:
        z: ``(K, *batch, *event)``; or, for a Gaussian likelihood, data ``(*batch, *event)``.
        mean: any trailing part of the largest argument's shape, or a number.
        log_scale: log σ, as ``mean``.
        event_dims: how many trailing axes to sum over.
        kernel: as in :func:`bernoulli_logits`.

    Returns:
        ``(K, *batch)`` nats, in at least float32.

    Raises:
        TypeError: float32 among float64.
        ValueError: shapes that do not match; ``event_dims`` out of range.
        RuntimeError: ``kernel=True`` where none can run.

    >>> diagonal_gaussian(torch.zeros(5, 2, 3), 0.0, torch.zeros(2, 3))[0]
    tensor([-2.7568, -2.7568])
    """
    # A number takes z's precision; a tensor keeps its own, so that float32 among float64 is found and refused.
    mean, log_scale = (torch.as_tensor(t, dtype=_number(t, z), device=z.device) for t in (mean, log_scale))
    arguments, lead = arrange(event_dims, z=z, mean=mean, log_scale=log_scale)
    if plain_only(*arguments) and not kernel:
        return _plain(*arguments).reshape(lead)
    found: Tensor = _Gaussian.apply(*arguments, runs_kernel(z, kernel))  # type: ignore[no-untyped-call]
    return found.reshape(lead)


def _number(argument: Tensor | float, z: Tensor) -> torch.dtype:
    return argument.dtype if isinstance(argument, Tensor) else full_precision(z.dtype)


def _log_norm(events: int) -> float:
    return 0.5 * events * math.log(2 * math.pi)


def _plain(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The same in transparent torch code."""
    dtype = full_precision(z.dtype)
    z, mean, log_scale = z.to(dtype), mean.to(dtype), log_scale.to(dtype)
    residual = (z - mean) * torch.exp(-log_scale)
    found = -0.5 * residual.square().sum(-1) - log_scale.sum(-1) - _log_norm(z.shape[-1])
    return found if found.ndim == 2 else found.unsqueeze(0)


class _Gaussian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mean: Tensor, log_scale: Tensor, kernel: bool) -> Tensor:
        ctx.save_for_backward(z, mean, log_scale)
        ctx.kernel = kernel
        arguments, (batch, events) = (z, mean, log_scale), z.shape[-2:]
        # At least one argument has the sample axis: if none had, all would be shared and the plain form had served.
        samples = max(t.shape[0] if t.ndim == 3 else 0 for t in arguments)
        out = z.new_empty((samples, batch), dtype=full_precision(z.dtype))
        if kernel:
            from iwbounds.kernels.triton_densities import launch_gaussian

            launch_gaussian([t.expand(samples, -1, -1) for t in arguments], out)
            return out
        for s, b in blocks(samples, batch, events):
            value, centre, width = (block_of(t, s, b, out.dtype) for t in arguments)
            # In place from here on: the pass is bound by memory, and every temporary is one more trip.
            squares = ((value - centre) * torch.exp(-width)).square_().sum(-1)
            out[s, b] = squares.mul_(-0.5).sub_(width.sum(-1)).sub_(_log_norm(events))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            # A second derivative is asked for: the blocks below are written in place, and have no graph.
            return *gradients_with_graph(_plain, inputs, needed, grad), None
        found = _kernel_gradients(inputs, grad) if ctx.kernel else _gradients(inputs, grad, needed)
        # Summed in float32 at least, and handed back in the argument's own type.
        pairs = zip(found, inputs, needed, strict=True)
        return *(slope.to(t.dtype) if need and slope is not None else None for slope, t, need in pairs), None


def _gradients(arguments: tuple[Tensor, ...], grad: Tensor, needed: tuple[bool, ...]) -> list[Tensor | None]:
    totals = [_total(t, grad) if need else None for t, need in zip(arguments, needed, strict=True)]
    to_z, to_mean, to_scale = totals
    for s, b in blocks(grad.shape[0], grad.shape[1], arguments[0].shape[-1]):
        value, centre, width = (block_of(t, s, b, grad.dtype) for t in arguments)
        g, precision = grad[s, b].unsqueeze(-1), torch.exp(-width)
        # The order saves two temporaries: log σ's gradient takes the memory of the residual, which nothing needs after
        # it; the mean's is made in that of the slope, and z's, its opposite, in the same.
        residual = (value - centre) * precision
        slope = residual * g
        if to_scale is not None:
            add_block(to_scale, s, b, residual.mul_(slope).sub_(g))
        slope.mul_(precision)
        if to_mean is not None:
            add_block(to_mean, s, b, slope)
        if to_z is not None:
            add_block(to_z, s, b, slope.neg_())
    return totals


def _total(argument: Tensor, grad: Tensor) -> Tensor:
    """Room for a gradient: written once for each sample, or summed over them."""
    make = torch.empty if argument.ndim == 3 else torch.zeros
    return make(argument.shape, dtype=grad.dtype, device=grad.device)


def _kernel_gradients(arguments: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    from iwbounds.kernels.triton_densities import launch_gaussian_backward

    totals = [torch.empty(t.shape, dtype=grad.dtype, device=grad.device) for t in arguments]
    launch_gaussian_backward(grad, [t.expand(grad.shape[0], -1, -1) for t in arguments], totals)
    return totals
