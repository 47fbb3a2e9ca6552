r"""The only autograd code: how three coefficients per sample reach three kinds of parameters in one backward pass.

* **gate**: the log-joint is called on latents whose backward multiplies the incoming gradient by b/a. The gradient that
  arrives at log p is a, so its parameters get a and its latents get b, from one forward and one backward.
* **linearise**: the proposal's parameters must not be seen by the path part of −log q, for any callable. Its gradient
  with respect to the latents is taken at detached copies of them, and attached to the latents themselves.
* **attach**: one tensor whose value is the bound and whose backward sends each coefficient down its channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iwbounds.latents import Latents, latent_leaves, map_latents

__all__ = ["Gate", "Linearized", "attach", "pullback"]


def _over_events(per_sample: Tensor, like: Tensor) -> Tensor:
    """View a ``(K, *batch)`` (or ``(*batch)``) tensor so that it multiplies ``(K, *batch, *event)``."""
    return per_sample.reshape(per_sample.shape + (1,) * (like.ndim - per_sample.ndim))


class _Attach(torch.autograd.Function):
    """Identity on the bound's value; backward gives each tensor the value's gradient times its multiplier."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *pairs: Tensor) -> Tensor:
        tensors, multipliers = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        ctx.save_for_backward(*multipliers)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        multipliers = ctx.saved_tensors
        grads = [
            (_over_events(grad.unsqueeze(0), multiplier) * multiplier).to(dtype)
            for multiplier, dtype in zip(multipliers, ctx.dtypes, strict=True)
        ]
        return None, *grads, *(None for _ in multipliers)


def attach(value: Tensor, channels: Iterable[tuple[Tensor | None, Tensor | None]]) -> Tensor:
    """``value``, with a backward that sends ``multiplier`` times its gradient to each tensor in ``channels``.

    Pairs with a None, or with a tensor outside every graph, are dropped. A second differentiation raises: the
    multipliers are constants, so it would be silently wrong.
    """
    live = [(t, m) for t, m in channels if t is not None and m is not None and t.requires_grad]
    if not live:
        return value
    tensors, multipliers = zip(*live, strict=True)
    return _Attach.apply(value, *tensors, *multipliers)  # type: ignore[no-any-return, no-untyped-call]


class Gate:
    """Passes latents through unchanged, and scales what flows back by a ratio that is set once it is known."""

    def __init__(self) -> None:
        self.ratio: Tensor | None = None

    def __call__(self, latents: Latents) -> Latents:
        """The latents that the log-joint is called on; integer and graph-free parts pass as they are."""
        return map_latents(lambda z: _GateFunction.apply(z, self) if z.requires_grad else z, latents)  # type: ignore[no-untyped-call]

    def open(self, model: Tensor, path: Tensor) -> Tensor:
        """Set the ratio b/a, and return the a to attach to log p.

        Where a vanishes and b does not, a is raised to 1e-18 |b|: the model's gradient changes by far less than its
        rounding, and the product a · (b/a) is b again.
        """
        if path is model:
            return model
        floor = 1e-18 * path.abs()
        model = torch.where(model.abs() < floor, floor, model)
        self.ratio = torch.where(model == 0, 0.0, path / model)
        return model


class _GateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, gate: Gate) -> Tensor:
        ctx.gate = gate
        return z.view_as(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ratio = ctx.gate.ratio
        return grad if ratio is None else (grad * _over_events(ratio, grad)).to(grad.dtype), None


class Linearized:
    """A log-proposal at detached copies of the latents, so that its path to them and its own parameters separate.

    ``value`` is the log-density, in the graph of the parameters alone; ``path`` has the same value, and a backward to
    the latents alone.
    """

    def __init__(self, log_prob: Callable[[Latents], Tensor], latents: Latents) -> None:
        copies = map_latents(lambda z: z.detach().requires_grad_() if z.requires_grad else z, latents)
        self._copies = [z for z in latent_leaves(copies) if z.requires_grad]
        self.value = log_prob(copies)
        self.keep_graph = False
        self.path: Tensor | None = None
        if self._copies and self.value.requires_grad:
            live = [z for z in latent_leaves(latents) if z.requires_grad]
            self.path = _LinearizedFunction.apply(self.value.detach(), self, *live)  # type: ignore[no-untyped-call]

    def slopes(self, upstream: Tensor) -> Sequence[Tensor | None]:
        """upstream · ∂log q/∂z. Sample k of datum i enters row (k, i) alone: one call gives every row."""
        return torch.autograd.grad(self.value, self._copies, upstream, retain_graph=self.keep_graph, allow_unused=True)


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

    The functional form of a gate and of a linearisation, which ``torch.compile`` can trace into one graph. Gradients
    come for the latents that require grad, in order.
    """
    live = [z.detach() for z in latent_leaves(latents) if z.requires_grad]
    if not live:
        return density(latents), lambda _: []

    def of_live(*leaves: Tensor) -> Tensor:
        left = iter(leaves)
        return density(map_latents(lambda z: next(left) if z.requires_grad else z, latents))

    value, vjp = torch.func.vjp(of_live, *live)  # type: ignore[misc]
    return value, lambda multipliers: [grad.detach() for grad in vjp(multipliers.to(value.dtype))]
