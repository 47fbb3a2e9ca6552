r"""Sums over single left-out samples in a few passes: :class:`LeaveOutSums` for m = 1.

Leaving out any sample but the largest keeps at least half of the total, so :math:`S_{-i}/S = 1-\tilde w_i` is well
conditioned. What is left without the largest is summed on its own; where that would underflow, more than 300 nats
below the largest, the others see no more of the largest than that it is far above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LeaveOneOutSums"]

_FAR = 300.0


class LeaveOneOutSums:
    """Value, gradient and squared gradient of ``weights[0]`` log S + ``weights[1]`` Σ_i log S_-i.

    Args:
        x: ``(K, batch)`` float64 log-weights, at least two of them finite in every column.
        weights: how much the full set, and each set without one sample, counts.
    """

    def __init__(self, x: Tensor, weights: list[float]) -> None:
        self._weights = weights
        first_two, order = x.topk(2, dim=0)
        self._index = order[:1]
        first, second = first_two.detach()
        self._reference = torch.minimum(first, second + _FAR)
        self._beyond = first - self._reference
        others = (x - self._reference).exp().scatter(0, self._index, 0.0)
        self._rest = others.sum(0)
        top = (first_two[0] - first).exp()
        self._total = top + self._rest
        self._top_share = top / self._total
        self._others = others
        self._shares = others / self._total

    def value(self) -> Tensor:
        """``(batch)``: log(S / K) plus ``weights[1]`` times the sum over i of log(S_-i / S) − log(1 − 1/K)."""
        count = len(self._others)
        without_top = (self._rest / self._total).log() - self._beyond
        correction = torch.log1p(-self._shares).sum(0) + without_top - count * math.log1p(-1.0 / count)
        log_mean = self._beyond + self._reference + (self._total / count).log()
        value: Tensor = log_mean + self._weights[1] * correction
        return value

    def ratios(self, power: int) -> Tensor:
        """``(K, batch)``: for each k, the weighted sum of (w_k / S_-i)^power over no i and each i ≠ k."""
        full, single = self._weights
        inverse = 1.0 / (1.0 - self._shares)
        shares, of_rest, top = self._shares, self._others / self._rest, self._top_share
        if power == 2:
            inverse, shares, of_rest, top = inverse.square(), shares.square(), of_rest.square(), top.square()
        others = inverse.sum(0) - 1.0  # the largest entered as 1: its share of the others is 0
        factor = full + single * others
        result: Tensor = shares * (factor - single * inverse) + single * of_rest
        return result.scatter(0, self._index, (top * factor).unsqueeze(0))
