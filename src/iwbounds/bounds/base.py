"""What a bound is: a function of K log-weights, its first two derivatives, and a direction."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iwbounds.logspace.leave_one_out import leave_one_out_log_mean_exp, leave_one_out_mean
from iwbounds.logspace.mean import promoted

__all__ = ["Bound", "Derivatives", "Direction", "refuse_final", "reset_shortcuts"]


class Direction(enum.Enum):
    """What the expectation of an estimate is to the quantity estimated.

    ``LOWER``: never above it. ``UPPER``: never below it. ``EXACT``: equal to it. ``NONE``: nothing is guaranteed at
    finite K. A nonlinear function of an exact estimate is not exact: ``NONE``, unless its curvature is known.

    >>> -Direction.LOWER, Direction.EXACT & Direction.UPPER
    (<Direction.UPPER: 'upper'>, <Direction.UPPER: 'upper'>)
    """

    LOWER = "lower"
    UPPER = "upper"
    EXACT = "exact"
    NONE = "none"

    def __neg__(self) -> Direction:
        return {Direction.LOWER: Direction.UPPER, Direction.UPPER: Direction.LOWER}.get(self, self)

    def __and__(self, other: Direction) -> Direction:
        """Direction of the sum of two estimates: kept where they agree, or where one of them is exact."""
        if self is Direction.EXACT:
            return other
        return self if other in (self, Direction.EXACT) else Direction.NONE


class Derivatives(NamedTuple):
    """A bound and its derivatives at given log-weights; detached."""

    value: Tensor
    """L, ``(*batch)``."""
    gradient: Tensor
    """c = ∂L/∂log w, ``(K, *batch)``."""
    path: Tensor | None
    """c − h, ``(K, *batch)``, the path coefficient of DReG; None where it was not asked for."""


class Bound(ABC):
    r"""A function of K log-weights per datum that estimates a log-evidence, in nats.

    Subclass it and write ``__call__``: differentiable torch code from ``(K, *batch)`` to ``(*batch)``. Every gradient
    estimator (doubly reparameterised included), leave-one-out, chunking and sharding then work, through autograd.
    Override :meth:`differentiate` where a closed form is faster, and state the class attributes. The bounds of the
    package are final: subclass this class, or call them from yours.

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
    power_mean: tuple[float, float] | None = None
    """(p, s) where the bound is (1 − s) times the log of a power mean plus s times the ELBO; None where it is not."""
    bounded_ratio: bool = False
    """Whether c ≥ 0 and :math:`|c - h| \\le \\text{const}\\cdot c` at all log-weights, so that (c − h)/c is finite."""

    needs_posterior_samples: bool = False
    """Whether the direction holds at draws of the posterior alone; :func:`iwbounds.estimate` then draws none itself."""

    chooses_num_samples: bool = False
    """Whether ``frozen_level()`` gives the bound of one call and the number of samples that it takes, drawn before
    any sample is."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a subclass of a final class; take back closed forms that were written for another value."""
        super().__init_subclass__(**options)
        refuse_final(cls, "iwbounds.Bound, and call the bound from its __call__")
        shortcuts = ("differentiate", "derivatives", "leave_one_out", "replace_each", "frozen", "power_mean")
        reset_shortcuts(cls, Bound, "__call__", (*shortcuts, "bounded_ratio"))

    @abstractmethod
    def __call__(self, log_w: Tensor) -> Tensor:
        """The bound of each datum: ``(K, *batch)`` log-weights to ``(*batch)`` nats, differentiable."""

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        """L and c, and c − h if ``path`` says so, from one computation; detached.

        Default: autograd of ``__call__``. c − h then takes one more backward per sample, O(K²) time. Override it where
        a closed form is faster, or where c − h would cancel.
        """
        leaf = log_w.detach().requires_grad_()
        with torch.enable_grad():
            value = self(leaf)
            # The sum over the batch: data do not interact, so its gradient holds every datum's own.
            (c,) = torch.autograd.grad(value.sum(), leaf, create_graph=path)
            c_minus_h = c.detach() - _curvature(c, leaf) if path else None
        return Derivatives(value.detach(), c.detach(), c_minus_h)

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """c and h = ∂²L/∂(log w)² (the Hessian's diagonal), each ``(K, *batch)``, detached."""
        _, c, c_minus_h = self.differentiate(log_w, path=True)
        assert c_minus_h is not None
        return c, c - c_minus_h

    def frozen(self, log_w: Tensor) -> Bound:  # noqa: ARG002
        """The bound to use for one estimate at log-weights of this shape; another only where the bound is random."""
        return self

    def leave_one_out(self, log_w: Tensor, geometric: bool = False) -> Tensor:
        """L with log w_k replaced by the mean of the others, for every k: ``(K, *batch)``, detached, K >= 2.

        The mean is arithmetic (of the weights) or ``geometric`` (of their logs). It is what VIMCO compares L with.
        """
        log_w = self.checked(log_w).detach()
        fill = leave_one_out_mean(log_w) if geometric else leave_one_out_log_mean_exp(log_w)
        return self.replace_each(log_w, fill)

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        """L with log w_k replaced by ``fill[k]``, for every k. Default: K evaluations, O(K²) time, O(K) memory."""
        values = []
        for k in range(log_w.shape[0]):
            replaced = log_w.clone()
            # A copy for each k, one at a time: O(K) memory, where all at once would take O(K²).
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


def _curvature(c: Tensor, leaf: Tensor) -> Tensor:
    """The diagonal of the Hessian, one backward per row of ``c``; the data of a row do not interact."""
    if not c.requires_grad:  # L is linear in the log-weights, or jumps
        return torch.zeros_like(c)
    return torch.stack([torch.autograd.grad(row.sum(), leaf, retain_graph=True)[0][k] for k, row in enumerate(c)])


def refuse_final(cls: type, instead: str) -> None:
    """Raise TypeError where ``cls`` subclasses a class that is marked ``typing.final``.

    What a final class promises (closed forms, kernels, flags) holds for itself; a subclass would inherit the promise
    without the reason for it.
    """
    for base in cls.__mro__[1:]:
        # What typing.final leaves at run time; vars, as a subclass would inherit the attribute.
        if "__final__" in vars(base):
            raise TypeError(
                f"expected {cls.__name__} to subclass no class that is final; got {base.__name__}. Subclass {instead}."
            )


def reset_shortcuts(cls: type, root: type, rule: str, shortcuts: tuple[str, ...]) -> None:
    """Give ``cls`` the ``root``'s own version of each shortcut that comes later in its MRO than its ``rule``.

    A shortcut (a closed form, a flag) was written for the rule it came with. A class, or a mixin, that brings another
    rule would pair the new rule with the old shortcut.
    """
    place = {name: _place(cls, name) for name in (rule, *shortcuts)}
    for name in shortcuts:
        # The rule was redefined below the shortcut, and the shortcut is not the root's own.
        if place[rule] < place[name] < cls.__mro__.index(root):
            setattr(cls, name, vars(root)[name])


def _place(cls: type, name: str) -> int:
    """Where in the MRO ``name`` is found."""
    return next(place for place, base in enumerate(cls.__mro__) if name in vars(base))
