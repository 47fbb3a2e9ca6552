"""Bounds whose value and derivatives come in closed form from one shared computation, in float64 inside."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound
from iwbounds.logspace import finite_maximum

__all__ = ["ClosedForm", "Sums"]


class Sums(Protocol):
    """What a closed form computes from ``(K, batch)`` float64 log-weights; the constructor does the shared work."""

    def value(self) -> Tensor:
        """``(batch)``: the bound; need not be differentiable."""

    def ratios(self, power: int) -> Tensor:
        """``(K, batch)``: power 1 is the gradient c, by differentiable operations; power 2 is c − h."""


class ClosedForm(Bound):
    """A bound that is an average of logs of sums of weights, for which c − h needs no subtraction.

    Each :math:`\\log S` has the gradient :math:`w_k/S` and the curvature :math:`w_k/S-(w_k/S)^2`. Subclasses say
    which data are dead, and give the :class:`Sums` of the others, shifted to a maximum of 0.
    """

    @abstractmethod
    def sums(self, x: Tensor) -> Sums:
        """The shared computation at ``(K, batch)`` float64 log-weights of living data, the largest 0."""

    @abstractmethod
    def dead(self, x: Tensor) -> Tensor:
        """``(batch)``: where log-weights that the bound needs are −inf, so that it is −inf with gradient 0."""

    def __call__(self, log_w: Tensor) -> Tensor:
        value: Tensor = _ValueWithGradient.apply(self.checked(log_w), self)[0]  # type: ignore[no-untyped-call]
        return value

    def gradient(self, log_w: Tensor) -> Tensor:
        return self._at(self.checked(log_w).detach(), 1)[0]

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        c, c_minus_h = self.path_weights(log_w)
        return c, c - c_minus_h

    def path_weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        c, c_minus_h = self._at(self.checked(log_w).detach(), 1, 2)
        return c, c_minus_h

    def evaluate(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        value, c = self._at(self.checked(log_w).detach(), 0, 1)
        return value, c

    def evaluate_path(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, c, c_minus_h = self._at(self.checked(log_w).detach(), 0, 1, 2)
        return value, c, c_minus_h

    def _at(self, log_w: Tensor, *powers: int) -> list[Tensor]:
        """For power 0 the value, for 1 the gradient c (differentiable), for 2 c − h, in the dtype of ``log_w``."""
        x = log_w.double().reshape(len(log_w), log_w[0].numel())
        dead = self.dead(x.detach())
        x = x.masked_fill(dead, 0.0)
        shift = finite_maximum(x, 0)
        sums = self.sums(x - shift)

        def result(power: int) -> Tensor:
            if power == 0:
                return (shift[0] + sums.value()).masked_fill(dead, -torch.inf).reshape(log_w.shape[1:])
            return sums.ratios(power).masked_fill(dead, 0.0).reshape(log_w.shape)

        return [result(power).to(log_w.dtype) for power in powers]


class _ValueWithGradient(torch.autograd.Function):
    """The value with its closed-form gradient, made together; differentiated again, the gradient is made afresh."""

    @staticmethod
    def forward(log_w: Tensor, bound: ClosedForm) -> tuple[Tensor, Tensor | None]:
        if not log_w.requires_grad:
            return bound._at(log_w, 0)[0], None
        value, c = bound._at(log_w, 0, 1)
        return value, c

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ClosedForm], output: tuple[Tensor, Tensor | None]) -> None:
        (log_w, ctx.bound), (_, c) = inputs, output
        ctx.save_for_backward(log_w, c)
        if c is not None:
            ctx.mark_non_differentiable(c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        log_w, c = ctx.saved_tensors
        if c is None or torch.is_grad_enabled():
            (c,) = ctx.bound._at(log_w, 1)
        return grad * c, None
