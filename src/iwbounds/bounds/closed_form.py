"""Bounds whose value and derivatives come in closed form from one shared computation, in float64 inside."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Derivatives
from iwbounds.logspace.log_sums import LogSums
from iwbounds.logspace.mean import finite_maximum

__all__ = ["ClosedForm"]


class ClosedForm(Bound):
    """A bound that is a combination of logs of sums of weights, in which dead data are found by subclasses."""

    @abstractmethod
    def combination(self, x: Tensor) -> LogSums:
        """The shared computation at ``(K, batch)`` float64 log-weights of living data, the largest 0."""

    @abstractmethod
    def dead(self, x: Tensor) -> Tensor:
        """``(batch)``: where log-weights that the bound needs are −inf, so that it is −inf with gradient 0."""

    @property
    def traceable(self) -> bool:
        """Whether ``torch.compile`` can follow the combination: no loop or plan in it depends on values."""
        return False

    def __call__(self, log_w: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not self.traceable:
            # Not repr(self): the compiler cannot trace a dataclass's, and would raise an error of its own instead.
            raise RuntimeError(
                f"iwbounds: torch.compile cannot trace {type(self).__name__}, whose steps depend on the weights. "
                "Call it outside the compiled function, or use IncompleteUStatistic or Jackknife(1)."
            )
        # A Function, rather than autograd through the combination: its intermediate tensors are many times the weights.
        value: Tensor = _ValueWithGradient.apply(self.checked(log_w), self)[0]  # type: ignore[no-untyped-call]
        return value

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        at = self._at(self.checked(log_w).detach())
        # All three from one combination, whose constructor does the work that they share.
        return Derivatives(at.value(), at.gradient(), at.path() if path else None)

    def _at(self, log_w: Tensor) -> _Shaped:
        # Many samples or large coefficients cancel: float64 whatever comes in.
        # One batch axis. numel and not −1, which torch refuses for an empty batch.
        x = log_w.double().reshape(len(log_w), log_w[0].numel())
        dead = self.dead(x.detach())
        x = x.masked_fill(dead, 0.0)  # filled before any reduction, so that a dead datum gets no gradient from it
        shift = finite_maximum(x, 0)
        # The bound is shift-equivariant: its combination may take the largest weight for 1, and overflow nowhere.
        return _Shaped(self.combination(x - shift), shift, dead, log_w)


class _Shaped(NamedTuple):
    """A combination in the shape and dtype of the log-weights it came from."""

    combination: LogSums
    shift: Tensor
    dead: Tensor
    like: Tensor

    def value(self) -> Tensor:
        value = (self.shift[0] + self.combination.value()).masked_fill(self.dead, -torch.inf)
        return value.reshape(self.like.shape[1:]).to(self.like.dtype)

    def gradient(self) -> Tensor:
        return self._per_sample(self.combination.gradient())

    def path(self) -> Tensor:
        return self._per_sample(self.combination.path())

    def _per_sample(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.dead, 0.0).reshape(self.like.shape).to(self.like.dtype)


class _ValueWithGradient(torch.autograd.Function):
    """The value with its closed-form gradient, made together; differentiated again, the gradient is made afresh."""

    @staticmethod
    def forward(log_w: Tensor, bound: ClosedForm) -> tuple[Tensor, Tensor | None]:
        at = bound._at(log_w)
        return at.value(), at.gradient() if log_w.requires_grad else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ClosedForm], output: tuple[Tensor, Tensor | None]) -> None:
        (log_w, ctx.bound), (_, c) = inputs, output
        ctx.save_for_backward(log_w, c)
        ctx.save_for_forward(log_w)
        if c is not None:
            # c leaves the forward as an output so that functorch sees it; its own derivative is taken by the backward
            # anew.
            ctx.mark_non_differentiable(c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        log_w, c = ctx.saved_tensors
        if c is None or torch.is_grad_enabled():  # the saved gradient has no graph of its own
            c = ctx.bound._at(log_w).gradient()
        return grad * c, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, None]:
        (log_w,) = ctx.saved_tensors
        return (ctx.bound._at(log_w).gradient() * tangent).sum(0), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], log_w: Tensor, bound: ClosedForm
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[int, int | None]]:
        """A mapped axis is one more axis of the batch, whose data do not interact."""
        dim, _ = in_dims
        last = log_w.unsqueeze(-1).expand(*log_w.shape, info.batch_size) if dim is None else log_w.movedim(dim, -1)
        # The mapped axis goes last, as the first is that of the samples.
        value, c = _ValueWithGradient.apply(last, bound)  # type: ignore[no-untyped-call]
        return (value, c), (value.ndim - 1, None if c is None else c.ndim - 1)
