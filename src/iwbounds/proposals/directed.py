"""Estimates of log-densities that know which side of the truth they are on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from iwbounds.bounds import Direction

__all__ = ["DirectedLogDensity"]


@dataclass(frozen=True)
class DirectedLogDensity:
    r"""A bound of a log-density and its direction, which sums keep or refuse.

    A lower bound of log p(x) may contain lower bounds of what is added (the likelihood, a prior) and upper bounds of
    what is subtracted (the proposal). Plain tensors are exact and go with either. A sum of two opposite sides is no
    bound: it raises instead of returning a number.

    What holds of a sum holds of its mean over samples (an ELBO). A *multi-sample* bound needs more than directions:
    weights of expectation p(x). Those of :meth:`iwbounds.AggregatedPosterior.log_prob_lower` in a log-joint, and of a
    :class:`iwbounds.HierarchicalProposal` in :func:`iwbounds.estimate`, have it.

    Args:
        value: nats.
        direction: what the expectation of ``value`` is to the log-density.

    Raises:
        ValueError: adding bounds of different directions, or :meth:`require` of another than the sum has.

    >>> import torch
    >>> prior = DirectedLogDensity(torch.tensor(-2.0), Direction.LOWER)
    >>> log_q = DirectedLogDensity(torch.tensor(-1.0), Direction.UPPER)
    >>> (torch.tensor(-5.0) + prior - log_q).require(Direction.LOWER)
    tensor(-6.)
    """

    value: Tensor
    direction: Direction

    @classmethod
    def __torch_function__(cls, *_: object) -> object:
        """Decline, so that ``tensor + directed`` reaches :meth:`__radd__`."""
        return NotImplemented

    def __neg__(self) -> DirectedLogDensity:
        return DirectedLogDensity(-self.value, -self.direction)

    def __add__(self, other: DirectedLogDensity | Tensor | float) -> DirectedLogDensity:
        if not isinstance(other, DirectedLogDensity):
            return DirectedLogDensity(self.value + other, self.direction)
        if self.direction is not other.direction:
            raise ValueError(
                f"the sum of a bound of direction {self.direction.value} and one of direction {other.direction.value} "
                "is no bound. In a lower bound of log p(x), take lower bounds of what is added (log_prob_lower of a "
                "prior) and upper bounds of what is subtracted (log_prob_upper of the proposal)."
            )
        return DirectedLogDensity(self.value + other.value, self.direction)

    def __radd__(self, other: Tensor | float) -> DirectedLogDensity:
        return self + other

    def __sub__(self, other: DirectedLogDensity | Tensor | float) -> DirectedLogDensity:
        return self + (-other)

    def __rsub__(self, other: Tensor | float) -> DirectedLogDensity:
        return -self + other

    def require(self, direction: Direction) -> Tensor:
        """The value, once its direction is known to be the one that is needed."""
        if self.direction is not direction:
            raise ValueError(f"expected a bound of direction {direction.value}; got {self.direction.value}.")
        return self.value
