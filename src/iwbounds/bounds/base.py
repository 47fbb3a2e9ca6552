"""What a bound is: a function of K log-weights, its first two derivatives, and a direction."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iwbounds.logspace import finite_maximum, leave_one_out_log_mean_exp, leave_one_out_mean, promoted

__all__ = ["Bound", "Direction"]


class Direction(enum.Enum):
    """What the expectation of an estimate is to the quantity estimated.

    ``LOWER``: never above it. ``UPPER``: never below it. ``NONE``: neither is guaranteed at finite K.

    >>> -Direction.LOWER
    <Direction.UPPER: 'upper'>
    """

    LOWER = "lower"
    UPPER = "upper"
    NONE = "none"
    EXACT = "exact"

    def __neg__(self) -> Direction:
        flipped = {Direction.LOWER: Direction.UPPER, Direction.UPPER: Direction.LOWER, self.EXACT: self.EXACT}
        return flipped.get(self, Direction.NONE)

    def __and__(self, other: Direction) -> Direction:
        """Direction of a sum, or of a monotone composition, of two estimates: kept only where they agree."""
        if Direction.EXACT in (self, other):
            return other if self is Direction.EXACT else self
        return self if self is other else Direction.NONE


class Derivatives(NamedTuple):
    """Value, c, and c − h where it was asked for; all detached."""

    value: Tensor
    gradient: Tensor
    path: Tensor | None = None


_CLOSED_FORMS = {
    "advantages",
    "derivatives",
    "evaluate",
    "evaluate_path",
    "gradient",
    "leave_one_out",
    "path_weights",
    "power_mean",
    "replace_each",
}


class Bound(ABC):
    r"""A function of K log-weights per datum that estimates a log-evidence, in nats.

    Subclass it and write ``__call__``: differentiable torch code from ``(K, *batch)`` to ``(*batch)``. Every gradient
    estimator (doubly reparameterised included), leave-one-out, chunking and sharding then work, through autograd.
    Override :meth:`gradient` and :meth:`derivatives` where a closed form is faster, and state the class attributes.

    A bound must be shift-equivariant, :math:`L(\ell + a) = L(\ell) + a`, as every estimate of a log-evidence is.

    With :math:`\ell_k = \log w_k`, a bound :math:`L(\ell_1,…,\ell_K)` has the gradient
    :math:`c_k = \partial L/\partial \ell_k` and the curvature :math:`h_k = \partial^2 L/\partial \ell_k^2`; these two
    vectors are all that any gradient estimator needs.

    >>> class Half(Bound):
    ...     def __call__(self, log_w):
    ...         return 0.5 * (log_w.mean(0) + log_w.logsumexp(0))
    >>> c, h = Half().derivatives(torch.zeros(4, 1))
    >>> c.squeeze(1), h.squeeze(1)
    (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor([0.0938, 0.0938, 0.0938, 0.0938]))
    """

    direction: Direction = Direction.NONE
    """What the expected value is to log p(x)."""
    smooth: bool = True
    """Whether the gradient is absolutely continuous in every log-weight. False for a maximum or a median: there the
    c − h rule of :class:`iwbounds.DReG` misses the jumps, and DReG refuses the bound."""
    min_samples: int = 1
    """The fewest samples for which the bound is defined."""
    bounded_ratio: bool = False
    power_mean: tuple[float, float] | None = None
    """(p, s) where the bound is (1 − s) times the log of a power mean plus s times the ELBO: on a GPU one kernel then
    makes value and coefficients. None where it is not."""

    def __init_subclass__(cls, **options: Any) -> None:
        """A class that redefines the value inherits no closed form of the one it replaces: back to autograd."""
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            for name in _CLOSED_FORMS - vars(cls).keys():
                setattr(cls, name, vars(Bound)[name])

    @abstractmethod
    def __call__(self, log_w: Tensor) -> Tensor:
        """The bound of each datum: ``(K, *batch)`` log-weights to ``(*batch)`` nats, differentiable."""

    def gradient(self, log_w: Tensor) -> Tensor:
        """c = ∂L/∂log w, ``(K, *batch)``, detached. Default: reverse-mode autograd of ``__call__``."""
        leaf = log_w.detach().requires_grad_()
        with torch.enable_grad():
            (c,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return c

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """c and h = ∂²L/∂(log w)² (the Hessian's diagonal), each ``(K, *batch)``, detached.

        Default: autograd, one extra backward pass per sample, O(K²) time.
        """
        leaf = log_w.detach().requires_grad_()
        with torch.enable_grad():
            (c,) = torch.autograd.grad(self(leaf).sum(), leaf, create_graph=True)
            if not c.requires_grad:
                return c, torch.zeros_like(c)
            rows = [torch.autograd.grad(row.sum(), leaf, retain_graph=True)[0][k] for k, row in enumerate(c)]
        return c.detach(), torch.stack(rows)

    def path_weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """c and c − h, the path coefficient of DReG. Override where the difference of the two would cancel."""
        c, h = self.derivatives(log_w)
        return c, c - h

    def evaluate(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """L and c, detached. Override where the two share work."""
        return self(log_w.detach()), self.gradient(log_w)

    def evaluate_path(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L, c and c − h, detached. Override where the three share work."""
        return self(log_w.detach()), *self.path_weights(log_w)

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        """The value, c, and c − h if ``path``, detached."""
        return Derivatives(*(self.evaluate_path(log_w) if path else self.evaluate(log_w)))

    def frozen(self, log_w: Tensor) -> Bound:  # noqa: ARG002
        """The bound to use for one estimate at log-weights of this shape; another only where the bound is random."""
        return self

    def leave_one_out(self, log_w: Tensor, geometric: bool = False) -> Tensor:
        """L with log w_k replaced by the mean of the others, for every k: ``(K, *batch)``, detached, K >= 2.

        The mean is arithmetic (of the weights) or ``geometric`` (of their logs). It is what VIMCO compares L with.
        """
        fill = leave_one_out_mean(log_w) if geometric else leave_one_out_log_mean_exp(log_w)
        return self.replace_each(log_w, fill)

    def advantages(self, log_w: Tensor, geometric: bool = False) -> tuple[Tensor, Tensor]:
        """c, and how much L exceeds :meth:`leave_one_out`, for every k: −inf where L is −inf; detached.

        Override where the two share work.
        """
        shifted = log_w - finite_maximum(log_w, 0)  # a difference of bounds: keep both small
        value, c = self.evaluate(shifted)
        return c, (value - self.leave_one_out(shifted, geometric)).masked_fill(value.isneginf(), -torch.inf)

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        """L with log w_k replaced by ``fill[k]``, for every k. Default: K evaluations, O(K²) time, O(K) memory."""
        values = []
        for k in range(log_w.shape[0]):
            replaced = log_w.clone()
            replaced[k] = fill[k]
            values.append(self(replaced))
        return torch.stack(values)

    def checked(self, log_w: Tensor) -> Tensor:
        """``log_w`` in at least float32, once it is known to hold the samples that the bound needs.

        Raises:
            ValueError: fewer than ``min_samples`` samples; the message says how to get more.
        """
        log_w = promoted(log_w)
        self.check_count(log_w.shape[0])
        return log_w

    def check_count(self, num_samples: int) -> None:
        """Raise ValueError where ``num_samples`` does not suit the bound, saying what would."""
        if num_samples < self.min_samples:
            raise ValueError(
                f"{self!r} needs at least {self.min_samples} samples; got {num_samples}. Raise num_samples to "
                f"{self.min_samples} or more."
            )
