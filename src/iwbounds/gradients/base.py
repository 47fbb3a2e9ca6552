"""What a gradient estimator is: three coefficients per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, refuse_final, reset_shortcuts
from iwbounds.gradients.lesson import Lesson

__all__ = ["Coefficients", "EvaluatedTogether", "Gradient"]


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
    lesson: Lesson | None = None
    """What the estimator learns from the slopes that the backward comes by; None where it learns nothing."""

    def split(self, sizes: list[int]) -> list[Coefficients]:
        """Those of the first ``sizes[0]`` samples, of the next ``sizes[1]``, and so on; without ``extra``."""
        # extra is of data, not of samples: whoever splits sends it once, beside the parts.
        channels = (self.model, self.path, self.score)
        parts = ([None] * len(sizes) if c is None else torch.split(c, sizes) for c in channels)
        lessons = [None] * len(sizes) if self.lesson is None else self.lesson.split(sizes)
        return [
            Coefficients(model, path, score, lesson=lesson)
            for model, path, score, lesson in zip(*parts, lessons, strict=True)
        ]


class Gradient(ABC):
    """A gradient estimator of a bound: from the bound's derivatives to :class:`Coefficients`.

    Subclass it, state the class attributes, and write :meth:`coefficients`; routing, chunking and sharding live in the
    engine. The estimators of the package are final: subclass this class, or call them from yours.

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
    path_is_model: bool = False
    """Whether path = model for every bound, so that one backward serves both channels as it is."""
    follows_bound: bool = True
    """Whether the proposal follows the bound too. False for wake updates, which follow a divergence of their own."""
    needs_fixed_support: bool = True
    """Whether it leaves out or reweights E[∂ log q(z)], which is 0 only where the support does not move with φ."""
    needs_independence: bool = True
    """Whether it is derived for samples that are independent of each other."""
    takes_extended: bool = True
    """Whether it is proved for an :class:`iwbounds.ExtendedProposal`, whose parameters may sit in the log-joint too."""
    learns: bool = False
    """Whether its coefficients come with a lesson: the engine then takes the slopes of log p and log q apart."""

    needs_prior: bool = False
    """Whether the parameters of the prior, which the log-joint must then show, get a channel of their own."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a subclass of a final class; take back shortcuts that were written for other coefficients."""
        super().__init_subclass__(**options)
        # At class creation: a wrong subclass is a mistake of who writes it, long before anybody trains with it.
        refuse_final(cls, "iwbounds.Gradient, and call the estimator from its coefficients")
        reset_shortcuts(cls, Gradient, "coefficients", ("evaluate", "total", "path_is_model", "bounded_ratio"))

    @abstractmethod
    def coefficients(self, bound: Bound, log_w: Tensor) -> Coefficients:
        """Coefficients for ``bound`` at detached log-weights ``(K, *batch)``. Changes no state: see :meth:`update`."""

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        """The bound and the coefficients. Override where the two share work."""
        bound = bound.frozen(log_w)  # one draw of a random bound for both
        return bound(log_w), self.coefficients(bound, log_w)

    def bounded_ratio(self, bound: Bound) -> bool:  # noqa: ARG002
        """Whether path/model is finite for every weight that the model's coefficient does not vanish at."""
        return False

    def check(self, bound: Bound) -> None:  # noqa: B027
        """Raise ValueError, with the reason and what to use instead, where the estimator is wrong for ``bound``."""

    def update(self, value: Tensor) -> None:  # noqa: B027
        """Take in the bound of a whole batch, ``(*batch)``, once per call and after its coefficients are known."""

    def pool(self, gather: Callable[[Any], list[Any]]) -> None:  # noqa: B027
        """Add what all processes that share a batch have observed since the last :meth:`update`, just before it.

        Args:
            gather: one object of each process, from this one's.
        """


class EvaluatedTogether(Gradient):
    """An estimator that writes :meth:`evaluate`, where the bound and its derivatives share their work."""

    @abstractmethod
    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]: ...

    def coefficients(self, bound: Bound, log_w: Tensor) -> Coefficients:
        return self.evaluate(bound, log_w)[1]
