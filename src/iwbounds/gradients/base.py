"""What a gradient estimator is: three coefficients per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound

__all__ = ["Coefficients", "Gradient"]


@dataclass(frozen=True)
class Coefficients:
    r"""The three detached ``(K, *batch)`` functions of the log-weights that make a gradient estimator.

    Per datum, the estimator is

    .. math:: \sum_k a_k\,\partial_\theta \log p(x,z_k)
              + b_k\,[\partial_z\log p(x,z)-\partial_z\log q(z)]_{z_k}\,\partial_\phi z_k
              + s_k\,\partial_\phi \log q(z_k)\big|_{z_k \text{ fixed}}

    A channel that an estimator does not use is None.
    """

    model: Tensor | None
    """a: on the explicit parameters of the log-joint."""
    path: Tensor | None = None
    """b: on the reparameterised path through the samples."""
    score: Tensor | None = None
    """s: on the explicit parameters of the log-proposal."""
    extra: tuple[tuple[Tensor, Tensor], ...] = ()
    """Further tensors of shape ``(*batch)`` with ``(1, *batch)`` multipliers, such as a learned baseline."""

    @property
    def model_and_path(self) -> tuple[Tensor, Tensor]:
        """a and b; where only one of them is used, the other is zero.

        Raises:
            ValueError: neither is used, so that there is no path to follow.
        """
        used = self.model if self.path is None else self.path
        if used is None:
            raise ValueError("a pathwise Gradient must give model or path coefficients; got None for both.")
        zero = torch.zeros_like(used)
        return zero if self.model is None else self.model, zero if self.path is None else self.path

    def split(self, sizes: list[int]) -> list[Coefficients]:
        """Those of the first ``sizes[0]`` samples, of the next ``sizes[1]``, and so on; without ``extra``."""
        channels = (self.model, self.path, self.score)
        parts = ([None] * len(sizes) if c is None else torch.split(c, sizes) for c in channels)
        return [Coefficients(*part) for part in zip(*parts, strict=True)]


class Gradient(ABC):
    """A gradient estimator of a bound: from the bound's derivatives to :class:`Coefficients`.

    Subclass it, state ``pathwise``, and write :meth:`coefficients`; routing, chunking and sharding live in the engine.

    >>> from iwbounds import IWAE, DReG
    >>> import torch
    >>> DReG().coefficients(IWAE(), torch.zeros(2, 1)).path.squeeze(1)
    tensor([0.2500, 0.2500])
    """

    pathwise: bool = False
    """Whether it differentiates through the samples, and so needs a reparameterised proposal."""
    total: bool = False
    """Whether path = model and score = −path: the total derivative of the bound, for which the engine differentiates
    the log-proposal as it stands and needs no linearisation."""

    needs_fixed_support: bool = True
    needs_independence: bool = True
    follows_bound: bool = True
    """Whether the proposal follows the bound too. False for wake updates, which follow a divergence of their own."""

    def __init_subclass__(cls, **options: Any) -> None:
        """A class that redefines the coefficients inherits no shortcut to those it replaces."""
        super().__init_subclass__(**options)
        if "coefficients" in vars(cls):
            for name in {"evaluate", "from_derivatives", "fused"} - vars(cls).keys():
                setattr(cls, name, vars(Gradient)[name])

    @abstractmethod
    def coefficients(self, bound: Bound, log_w: Tensor) -> Coefficients:
        """Coefficients for ``bound`` at detached log-weights ``(K, *batch)``."""

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        """The bound and the coefficients. Override where the two share work."""
        return bound(log_w), self.coefficients(bound, log_w)

    def bounded_ratio(self, bound: Bound) -> bool:  # noqa: ARG002
        """Whether path / model is finite everywhere."""
        return False

    def update(self, value: Tensor) -> None:  # noqa: B027
        """Called once per estimate or accumulate call."""

    def from_derivatives(self, c: Tensor, c_minus_h: Tensor) -> Coefficients | None:  # noqa: ARG002
        """Coefficients made of c and c − h alone, which a GPU kernel has computed; None where more is needed."""
        return None

    def fused(
        self, power_mean: tuple[float, float], log_w: Tensor, kernel: bool | None = None
    ) -> tuple[Tensor, Coefficients] | None:
        """The bound and the coefficients from one launch of a GPU kernel, for a bound that is such a power mean.

        None where no kernel gives them. ``kernel=True`` raises where it cannot run.
        """
        if type(self).from_derivatives is Gradient.from_derivatives:
            return None
        from iwbounds.logspace.kernels import fused_bound

        found = fused_bound(log_w, power=power_mean[0], share=power_mean[1], kernel=kernel)
        coefficients = self.from_derivatives(found.model, found.path)
        return None if coefficients is None else (found.value, coefficients)

    def check(self, bound: Bound) -> None:  # noqa: B027
        """Raise ValueError, with the reason and what to use instead, where the estimator is wrong for ``bound``."""
