"""How three coefficients per sample reach three kinds of parameters in one backward pass.

* **gate** (:mod:`iwbounds.engine.gates`): the log-joint is called on latents whose backward multiplies the incoming
  gradient by b/a. The gradient that arrives at log p is a, so its parameters get a and its latents get b, from one
  forward and one backward.
* **linearise**: the proposal's parameters must not be seen by the path part of −log q, for any callable. Its gradient
  with respect to the latents is taken at detached copies of them, and attached to the latents themselves.
* **attach**: one tensor whose value is the bound and whose backward sends each coefficient down its channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge

from iwbounds.latents import Latents, latent_leaves, map_latents

__all__ = ["Channel", "Linearized", "attach", "pullback"]

Channel: TypeAlias = tuple[Tensor | None, Tensor | None]
"""A tensor in the graph, and the multiplier that its gradient gets."""


def attach(value: Tensor, channels: Iterable[Channel]) -> Tensor:
    """``value``, with a backward that sends ``multiplier`` times its gradient to each tensor in ``channels``.

    Pairs with a None, or with a tensor outside every graph, are dropped. What is returned is the sum of tensors times
    multipliers, whose backward is just that and never reads the sum: hence its value can be overwritten by ``value``.
    (Adding a difference of two such sums instead would meet inf − inf where a log-density is −inf. A Function of its
    own would hide from a compiler that the value depends on the tensors: their random numbers were then drawn twice,
    once for each of its two graphs.)
    """
    live = [(t, m) for t, m in channels if t is not None and m is not None and t.requires_grad]
    if not live:
        return value
    carrier = _per_datum(live[0][0] * live[0][1], value.ndim)
    for tensor, multiplier in live[1:]:
        carrier = carrier + _per_datum(tensor * multiplier, value.ndim)
    carrier.detach().copy_(value)
    if not torch.compiler.is_compiling():
        carrier.register_hook(lambda grad: _refuse_second(grad, [t for t, _ in live]))  # type: ignore[no-untyped-call]
    return carrier


def _per_datum(product: Tensor, batch_ndim: int) -> Tensor:
    """Sum over samples, and over events where there are any: ``(K, *batch, *event)`` to ``(*batch)``."""
    total = product.sum(0)
    return total if total.ndim == batch_ndim else total.flatten(batch_ndim).sum(-1)


def _refuse_second(grad: Tensor, tensors: list[Tensor]) -> Tensor | None:
    """With ``create_graph``, make any further derivative raise: the multipliers are constants, so it would be wrong."""
    if not torch.is_grad_enabled():
        return None
    return _DifferentiableOnce.apply(grad, *tensors)  # type: ignore[no-any-return, no-untyped-call]


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, grad: Tensor, *_tensors: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> None:
        raise RuntimeError(
            "the value of iwbounds.estimate can be differentiated once: its backward is an estimator with constant "
            "coefficients, and has no second derivative. Differentiate bound(log_weights) itself instead."
        )


class Linearized:
    """A log-proposal at detached copies of the latents, so that its path to them and its own parameters separate.

    ``value`` is the log-density, in the graph of the parameters alone; :meth:`path` has the same value, and a backward
    to the latents alone.
    """

    def __init__(self, log_prob: Callable[[Latents], Tensor], latents: Latents) -> None:
        copies = map_latents(_cut, latents)
        self._copies = [GradientEdge(z.grad_fn, 0) for z in latent_leaves(copies) if z.grad_fn is not None]
        self.value = log_prob(copies)
        self.keep_graph = False

    def path(self, latents: Latents) -> Tensor | None:
        """The log-density in the graph of the latents; None where it depends on none. (Not kept: it keeps this.)"""
        if not (self._copies and self.value.requires_grad):
            return None
        live = [z for z in latent_leaves(latents) if z.requires_grad]
        return _LinearizedFunction.apply(self.value.detach(), self, *live)  # type: ignore[no-any-return, no-untyped-call]

    def slopes(self, upstream: Tensor) -> Sequence[Tensor | None]:
        """upstream · ∂log q/∂z. Sample k of datum i enters row (k, i) alone: one call gives every row."""
        return torch.autograd.grad(self.value, self._copies, upstream, retain_graph=self.keep_graph, allow_unused=True)


def _cut(z: Tensor) -> Tensor:
    return _Cut.apply(z) if z.requires_grad else z  # type: ignore[no-untyped-call]


class _Cut(torch.autograd.Function):
    """The same latents, from which no gradient flows back. An edge of the graph stands for them: it holds no values."""

    @staticmethod
    def forward(_ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> None:
        return None


class _LinearizedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, linearized: Linearized, *_latents: Tensor) -> Tensor:
        ctx.linearized = linearized
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.linearized.slopes(grad)


def pullback(density: Callable[[Latents], Tensor], latents: Latents) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """``density(latents)`` with the latents held fixed, and the function from multipliers to gradients of the latents.

    The functional form of a linearisation, which ``torch.compile`` can trace into one graph. Gradients come for the
    latents that require grad, in order.
    """
    live = [z.detach() for z in latent_leaves(latents) if z.requires_grad]
    if not live:
        return density(latents), lambda _: []

    def of_live(*leaves: Tensor) -> Tensor:
        left = iter(leaves)
        return density(map_latents(lambda z: next(left) if z.requires_grad else z, latents))

    value, vjp = torch.func.vjp(of_live, *live)  # type: ignore[misc]
    return value, lambda multipliers: [grad.detach() for grad in vjp(multipliers.to(value.dtype))]
