"""What averages of logs of sums of weights have in common: c, and c − h without a subtraction."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["LogSums"]


class LogSums(ABC):
    r"""A combination of logs of sums of weights, with coefficients that add up to one, at given log-weights.

    Each :math:`\log S` has the gradient :math:`w_k/S` and the curvature :math:`w_k/S-(w_k/S)^2`, so that c combines
    the ratios :math:`w_k/S`, and c − h their squares. What the methods share, the constructor computes.
    """

    @abstractmethod
    def value(self) -> Tensor:
        """``(batch)``: the combination; need not be differentiable."""

    @abstractmethod
    def combined_ratios(self, exponent: int) -> Tensor:
        """``(K, batch)``: for each k, the combination of (w_k / S)^exponent over the sums S with k; differentiable."""

    def gradient(self) -> Tensor:
        """c, ``(K, batch)``."""
        return self.combined_ratios(1)

    def path(self) -> Tensor:
        """c − h, ``(K, batch)``."""
        return self.combined_ratios(2)
