"""Latents whose backward multiplies the incoming gradient by a ratio: two coefficients from one evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iwbounds.checks import full_precision
from iwbounds.latents import Latents, map_latents

__all__ = ["Gate", "TracedGate", "gate"]


def gate() -> Gate:
    """A gate of the kind that can be used now."""
    return TracedGate() if torch.compiler.is_compiling() else Gate()


class Gate:
    """Passes latents through unchanged, and scales what flows back by a ratio that is set once it is known."""

    def __init__(self) -> None:
        self.ratio: Tensor | None = None

    def __call__(self, latents: Latents) -> Latents:
        """The latents that the log-joint is called on; integer and graph-free parts pass as they are."""
        return map_latents(self._gated, latents)

    def _gated(self, z: Tensor) -> Tensor:
        if not z.requires_grad:
            return z
        gated = z.view_as(z)
        gated.register_hook(self._scale)  # type: ignore[no-untyped-call]
        return gated

    def _scale(self, grad: Tensor) -> Tensor | None:
        return None if self.ratio is None else (grad * _per_event(self.ratio, grad)).to(grad.dtype)

    def channel(self, density: Tensor, model: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """Set the ratio b/a, and return what to attach: the density evaluated behind the gate, and the a it gets.

        Where a vanishes and b does not, the ratio has to be finite: a is raised by 1e-18 b. That changes the model's
        gradient by far less than its rounding, and the product a · (b/a) is b again. Where both vanish the ratio is 0.
        """
        if path is model:
            return density, model
        model = torch.add(model, path, alpha=1e-18)
        self.ratio = (path / model).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return density, model


def _per_event(ratio: Tensor, z: Tensor) -> Tensor:
    """``(K, *batch)`` with as many axes as ``z``."""
    return ratio.reshape(ratio.shape + (1,) * (z.ndim - ratio.ndim))


class TracedGate(Gate):
    """The same for ``torch.compile``, which cannot trace a ratio that is set later.

    The ratio travels backward: each gated tensor leaves its gate with an ear, zeros whose gradient is the ratio.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ears: list[Tensor] = []

    def _gated(self, z: Tensor) -> Tensor:
        if not z.requires_grad:
            return z
        gated, ear = _Gated.apply(z)  # type: ignore[no-untyped-call]
        self._ears.append(ear)
        return gated  # type: ignore[no-any-return]

    def channel(self, density: Tensor, model: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        _, model = super().channel(density, model, path)
        ratio = torch.ones_like(model) if self.ratio is None else self.ratio
        told = [_per_event(ratio, ear).expand_as(ear) for ear in self._ears]
        return _Telling.apply(density, *self._ears, *told), model  # type: ignore[no-untyped-call]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.view_as(z), torch.zeros_like(z, dtype=full_precision(z.dtype))

    @staticmethod
    def backward(_ctx: Any, grad: Tensor, ratio: Tensor) -> Tensor:
        return (grad * ratio).to(grad.dtype)


class _Telling(torch.autograd.Function):
    """Passes a density on, and its gradient back; the second half of the other tensors is the first half's gradient."""

    @staticmethod
    def forward(ctx: Any, density: Tensor, *ears_and_ratios: Tensor) -> Tensor:
        ctx.save_for_backward(*ears_and_ratios[len(ears_and_ratios) // 2 :])
        return density.view_as(density)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *ctx.saved_tensors, *(None for _ in ctx.saved_tensors)
