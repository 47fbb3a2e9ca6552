r"""Bernoulli log-density from logits.

With :math:`y = 2x - 1` and :math:`a = |l|`,

.. math:: x\,l - \log(1+e^l) = \tfrac12(y\,l - a) - \log(1 + e^{-a}),

whose two terms are never positive for x in [0, 1]: nothing cancels, where :math:`x l - \operatorname{softplus}(l)`
loses all digits of a confident pixel. The gradient :math:`x - \sigma(l)` is recomputed from the logits: only the two
arguments are kept for the backward, and each pass runs over blocks that stay in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iwbounds.checks import full_precision
from iwbounds.densities.events import arrange, block_of, blocks
from iwbounds.kernels.dispatch import plain_only, runs_kernel
from iwbounds.kernels.functions import gradients_with_graph

__all__ = ["bernoulli_logits"]


def bernoulli_logits(logits: Tensor, x: Tensor, event_dims: int = 1, *, kernel: bool | None = None) -> Tensor:
    r"""Log-density of independent Bernoulli variables, summed over the event.

    .. math:: \log p(x) = \sum_d x_d\, l_d - \log(1 + e^{l_d})

    As ``Independent(Bernoulli(logits=logits), event_dims).log_prob(x)`` without its temporaries: time and memory go to
    the logits and their gradient. Differentiable in both arguments, to any order. A Triton kernel on CUDA tensors.

    Args:
        logits: ``(K, *batch, *event)``, or ``(*batch, *event)`` shared by all samples of ``x``.
        x: values in [0, 1] (soft ones too; not inspected), any dtype; ``(*batch, *event)`` shared by all samples, or
            with them. Leading axes alone may be lacking; it is not expanded.
        event_dims: how many trailing axes to sum over.
        kernel: None: a kernel on CUDA; True: a kernel or an error; False: plain torch.

    Returns:
        ``(K, *batch)`` nats, in at least float32.

    Edge cases: an empty event has log-density 0. Infinite logits give NaN.

    Raises:
        TypeError: float32 logits with float64 ``x``, or the reverse.
        ValueError: shapes that do not match; ``event_dims`` out of range.
        RuntimeError: ``kernel=True`` where none can run.

    >>> bernoulli_logits(torch.zeros(5, 2, 3), torch.ones(2, 3)).shape
    torch.Size([5, 2])
    """
    (logits, x), lead = arrange(event_dims, logits=logits, x=x)
    if plain_only(logits, x) and not kernel:
        return _plain(logits, x).reshape(lead)
    found: Tensor = _Bernoulli.apply(logits, x, runs_kernel(logits, kernel))  # type: ignore[no-untyped-call]
    return found.reshape(lead)


def _plain(logits: Tensor, x: Tensor) -> Tensor:
    """The same in transparent torch code, smooth at 0 for derivatives of any order."""
    dtype = full_precision(logits.dtype)
    logits, x = logits.to(dtype), x.to(dtype)
    # Not |l|, whose derivative at 0 is 0: the kink would show in second derivatives of an untrained decoder.
    found = (x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)).sum(-1)
    # Both arguments shared by all samples: one row, as the caller's shape has it.
    return found if found.ndim == 2 else found.unsqueeze(0)


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, kernel: bool) -> Tensor:
        # The arguments alone, which the caller holds anyway: the sigmoid is recomputed rather than kept.
        ctx.save_for_backward(logits, x)
        ctx.kernel = kernel
        batch, events = x.shape[-2:]
        samples = max(logits.shape[:-2] + x.shape[:-2])
        out = logits.new_empty((samples, batch), dtype=full_precision(logits.dtype))
        if kernel:
            from iwbounds.kernels.triton_densities import launch_bernoulli

            launch_bernoulli(logits.expand(samples, -1, -1), x.expand(samples, -1, -1), out)
            return out
        # Data that all samples share are converted once, not once in each block.
        sign = 2 * x.to(out.dtype) - 1 if x.ndim == 2 else None
        for s, b in blocks(samples, batch, events):
            y = 2 * block_of(x, s, b, out.dtype) - 1 if sign is None else sign[b]
            out[s, b] = _log_density(block_of(logits, s, b, out.dtype), y)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (logits, x), needed = ctx.saved_tensors, ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            # A second derivative is asked for (create_graph): rare enough to be served by autograd through the plain
            # form.
            return *gradients_with_graph(_plain, (logits, x), needed, grad), None
        to_logits = _grad_of_logits(logits, x, grad, ctx.kernel) if needed[0] else None
        return to_logits, _grad_of_x(logits, x, grad) if needed[1] else None, None


def _log_density(logits: Tensor, y: Tensor) -> Tensor:
    """With n = −|l|, the sum of (y l + n) / 2 + log(1 − σ(n)): the logistic is torch's cheapest exponential."""
    softening = logits.abs().neg_()
    # Fused and in place: the pass is bound by memory, and each temporary would be one more trip.
    twice = torch.addcmul(softening, logits, y)
    softening.sigmoid_().neg_().log1p_()
    return twice.add_(softening, alpha=2).sum(-1).mul_(0.5)


def _grad_of_logits(logits: Tensor, x: Tensor, grad: Tensor, kernel: bool) -> Tensor:
    """g (x − σ(l)), summed over the samples where the logits are shared by them."""
    if logits.ndim == 2:
        # Σ_s g x − σ(l) Σ_s g: the logits are shared, so the sigmoid is taken once and the samples only summed.
        of_x = torch.einsum("sb,sbd->bd", grad, x.to(grad.dtype)) if x.ndim == 3 else x * grad.sum(0).unsqueeze(-1)
        return (of_x - logits.to(grad.dtype).sigmoid() * grad.sum(0).unsqueeze(-1)).to(logits.dtype)
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if kernel:
        from iwbounds.kernels.triton_densities import launch_bernoulli_backward

        launch_bernoulli_backward(grad, logits, x.expand_as(logits), out)
        return out
    # Half types are computed in float32 and rounded at the end.
    in_place = out.dtype == grad.dtype
    for s, b in blocks(*logits.shape):
        block = block_of(logits, s, b, grad.dtype)
        slope = torch.sigmoid(block, out=out[s, b] if in_place else torch.empty_like(block))
        torch.sub(block_of(x, s, b, grad.dtype), slope, out=slope).mul_(grad[s, b].unsqueeze(-1))
        if not in_place:
            out[s, b] = slope
    return out


def _grad_of_x(logits: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """g l, summed over the samples where x is shared by them."""
    logits = logits.to(grad.dtype)
    if x.ndim == 3:
        return (grad.unsqueeze(-1) * logits).to(x.dtype)
    summed = torch.einsum("sb,sbd->bd", grad, logits) if logits.ndim == 3 else grad.sum(0).unsqueeze(-1) * logits
    return summed.to(x.dtype)
