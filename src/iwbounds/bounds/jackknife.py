"""The jackknife of the importance-weighted bound: its bias removed order by order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.bounds.closed_form import ClosedForm
from iwbounds.checks import check_whole_number
from iwbounds.logspace.leave_out import LeaveOneOut, LeaveOut
from iwbounds.logspace.log_sums import LogSums

__all__ = ["Jackknife"]

_HIGHEST = 6
"""The sets of left-out samples that are enumerated are too many above, and the coefficients cancel all digits."""


@final
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
        order: m from 0 to 6, how many orders of the bias are removed.

    Edge cases: with at most m finite log-weights the value is −inf, with gradient 0.

    Raises:
        ValueError: an ``order`` that is negative, fractional or above 6; on use, fewer than m + 1 samples.

    Reference: Nowozin (2018), Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
    Variational Inference, ICLR.

    >>> import torch
    >>> Jackknife(1)(torch.tensor([0.0, 0.0, 0.0]))
    tensor(0.)
    """

    order: int

    def __post_init__(self) -> None:
        # Frozen, hence set in this way: a numpy integer is kept as an int, so that repr and hash are those of
        # Jackknife(1).
        object.__setattr__(self, "order", check_whole_number("order", self.order, 0, "0 is IWAE."))
        if self.order > _HIGHEST:
            raise ValueError(
                f"expected an order of at most {_HIGHEST}; got {self.order}. The coefficients grow as K^order, and the "
                "variance with them: orders 1 and 2 are the useful ones."
            )

    @property
    def direction(self) -> Direction:  # type: ignore[override]
        """None, but lower for order 0."""
        return Direction.NONE if self.order else Direction.LOWER

    @property
    def bounded_ratio(self) -> bool:  # type: ignore[override]
        """True for order 0, IWAE; above it c changes sign."""
        return self.order == 0

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """order + 1: up to ``order`` samples are left out, and one must remain."""
        return self.order + 1

    @property
    def traceable(self) -> bool:
        """True for order 1."""
        return self.order <= 1

    def dead(self, x: Tensor) -> Tensor:
        # Some set without m of the samples then has no living weight, and its logarithm enters the sum.
        return x.isneginf().sum(0) >= len(x) - self.order

    def combination(self, x: Tensor) -> LogSums:
        count = len(x)
        # Each set without j samples has an equal part of the coefficient c_j.
        per_set = [c / math.comb(count, j) for j, c in enumerate(_coefficients(count, self.order))]
        # Order 1 leaves out single samples: every set is at hand in O(K), in plain operations that a compiler can
        # trace.
        return LeaveOneOut(x, per_set) if self.order == 1 else LeaveOut(x, per_set)


def _coefficients(count: int, order: int) -> list[float]:
    """c_0 … c_m, each rounded once from an exact fraction."""
    return [
        (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j)) for j in range(order + 1)
    ]
