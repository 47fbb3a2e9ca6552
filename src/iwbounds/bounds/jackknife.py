"""The jackknife of the importance-weighted bound: its bias removed order by order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.bounds.closed_form import ClosedForm, Sums
from iwbounds.logspace import log_mean_exp
from iwbounds.logspace.leave_out import LeaveOutSums
from iwbounds.logspace.leave_out_single import LeaveOneOutSums
from iwbounds.logspace.symmetric import SubsetAverages

__all__ = ["Jackknife"]

_ENUMERATED = 6
"""Above this order the sets of left-out head samples are too many, and the quadrature takes over."""


@dataclass(frozen=True)
class Jackknife(ClosedForm):
    r"""Estimate of log p(x), no bound: the jackknife of IWAE (JVI), whose bias is of order K^−(m+1).

    .. math:: L = \sum_{j=0}^m c_j\,\bar L_{K-j}, \qquad c_j = (-1)^j\frac{(K-j)^m}{(m-j)!\,j!},

    where :math:`\bar L_n` averages IWAE over *all* sets of n of the K samples. With :math:`S_A` the sum of the weights
    in a set A, :math:`\log S_A` has the gradient :math:`w_k/S_A` and the curvature :math:`w_k/S_A-(w_k/S_A)^2`.

    Direction: none; order 0 is IWAE, a lower bound. The coefficients grow as :math:`K^m/m!`, and the variance with
    them: orders 1 and 2 are the useful ones. Unbiased gradients: reparameterised and DReG.

    Time O(K) for a fixed order, memory O(K); no set is enumerated (see ``logspace/leave_out.py``). Computed in float64.

    Args:
        order: m ≥ 0, how many orders of the bias are removed.

    Edge cases: with at most m finite log-weights the value is −inf, with gradient 0.

    Raises:
        ValueError: a negative or fractional ``order``; on use, fewer than m + 1 samples.

    Reference: Nowozin (2018), Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
    Variational Inference, ICLR.

    >>> Jackknife(1)(torch.tensor([0.0, 0.0, 0.0]))
    tensor(0.)
    """

    order: int

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or self.order < 0:
            raise ValueError(f"expected an order that is a whole number, 0 or more; got {self.order}. 0 is IWAE.")

    @property
    def direction(self) -> Direction:  # type: ignore[override]
        """None, but lower for order 0."""
        return Direction.NONE if self.order else Direction.LOWER

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """order + 1: up to ``order`` samples are left out, and one must remain."""
        return self.order + 1

    def dead(self, x: Tensor) -> Tensor:
        return x.isneginf().sum(0) >= len(x) - self.order

    def sums(self, x: Tensor) -> Sums:
        coefficients = _coefficients(len(x), self.order)
        if self.order > _ENUMERATED:
            return _Corrected(x, _Mixture(x, coefficients))
        per_set = [c / math.comb(len(x), j) for j, c in enumerate(coefficients)]
        if self.order == 1:
            return LeaveOneOutSums(x, per_set)
        return _Corrected(x, LeaveOutSums(x, per_set, torch.finfo(x.dtype).eps))


def _coefficients(count: int, order: int) -> list[float]:
    """c_0 … c_m, each rounded once from an exact fraction."""
    return [
        (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j)) for j in range(order + 1)
    ]


class _Corrected:
    """IWAE plus a correction."""

    def __init__(self, x: Tensor, correction: Sums) -> None:
        self._iwae = log_mean_exp(x.detach())
        self._correction = correction

    def value(self) -> Tensor:
        return self._iwae + self._correction.value()

    def ratios(self, power: int) -> Tensor:
        return self._correction.ratios(power)


class _Mixture:
    """Averages over all sets of K, K − 1, … samples, each by its own quadrature."""

    def __init__(self, x: Tensor, coefficients: Sequence[float]) -> None:
        self._iwae = log_mean_exp(x.detach())
        self._parts = [(c, SubsetAverages(x, len(x) - j)) for j, c in enumerate(coefficients)]

    def value(self) -> Tensor:
        return sum((c * (part.value() - self._iwae) for c, part in self._parts), torch.zeros_like(self._iwae))

    def ratios(self, power: int) -> Tensor:
        return torch.stack([c * part.ratios(power) for c, part in self._parts]).sum(0)
