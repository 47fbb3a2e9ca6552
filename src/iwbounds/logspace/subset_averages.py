r"""Averages over every set A of n of K samples of log S_A, in O(K n Q) time, without enumerating the sets.

The logarithm of :math:`S_A`, the sum of the weights in A, is an integral of exponentials, and the average over all sets
of a product of n exponentials is a normalised elementary symmetric polynomial:

.. math:: \log s = \int_0^\infty (e^{-t}-e^{-ts})\,\frac{dt}{t}, \qquad
          \frac{1}{\binom Kn}\sum_{|A|=n} e^{-tS_A} = E(t) = \frac{e_n(e^{-tw_1},\dots,e^{-tw_K})}{\binom Kn}.

With the mean :math:`\bar s=n\bar w` as reference, the average is :math:`\log\bar s-\int(E(t)-e^{-t\bar s})\,dt/t`.
The trapezoidal rule in log t converges geometrically: its error at spacing 0.26 is :math:`e^{-\pi^2/0.26}<10^{-16}`.

* **Relative to the spread.** :math:`E(t)e^{t\bar s}-1` is built from ``expm1(-t (w_i - mean))`` by its own recursion:
  weights that differ by 1e-8 give a value that is right to 1e-8 of an ulp of 1.
* **Any range.** Where sorted log-weights have a gap above 40, sets see nothing below the gap unless they lie below it
  altogether: the gap is closed to 40, and the fraction of the sets below it pays the rest.
* **Ends.** The integrands start as powers of t. What lies below the first node is extrapolated from the first three.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from iwbounds.logspace.log_sums import LogSums
from iwbounds.logspace.mean import plain_log_mean_exp

__all__ = ["SubsetAverages"]

_SPACING = 0.26
_GAP = 40.0
_EXTRAPOLATED = 3
_NODES_AT_ONCE = 1 << 18
"""Elements of one step of the recursion that are worked on together: what a processor's cache holds."""


class SubsetAverages(LogSums):
    """The average of log(S_A / n) over all sets A of n samples: its value, c and c − h.

    Reads the range of the weights to place its nodes, so it waits for a GPU.

    Args:
        x: ``(K, batch)`` float64 log-weights with maximum 0, fewer than n of them −inf in every column.
        size: n, between 1 and K.
    """

    def __init__(self, x: Tensor, size: int) -> None:
        self._count, self._size = x.shape[0], size
        lift, self._paid = _closed_gaps(x.detach(), size)
        self._x = x + lift
        # log S_A of the lightest and of the heaviest set: between them lie all points where E(t) changes.
        smallest = self._x.detach().topk(size, dim=0, largest=False).values.logsumexp(0)
        largest = self._x.detach().topk(size, dim=0).values.logsumexp(0)
        self._first = -largest
        self._range = largest - smallest + math.log(_GAP)

    def _log_nodes(self, power: int) -> tuple[Tensor, Tensor]:
        """Log t ``(Q, batch)`` and the rule's weights ``(Q, 1)`` for an integrand that starts as t^power."""
        # Below the first node an integrand t^p has fallen by e^{−p·margin}; the extrapolation removes three powers
        # more.
        margin = _GAP / (power + _EXTRAPOLATED)
        count = 1 + math.ceil((margin + _longest(self._range)) / _SPACING)
        steps = torch.arange(count, dtype=self._x.dtype, device=self._x.device).unsqueeze(1)
        weights = torch.full_like(steps, _SPACING)
        weights[:_EXTRAPOLATED] += _SPACING * weights.new_tensor(_end_weights(power)).unsqueeze(1)
        return self._first - margin + _SPACING * steps, weights

    def value(self) -> Tensor:
        """``(batch)``: the average; not differentiable."""
        x = self._x.detach()
        # w − 1, with all the digits of weights near the largest.
        excess = torch.expm1(x)
        deviation, scale = (excess - excess.mean(0)).unsqueeze(1), self._size * x.exp().mean(0)
        largest = deviation.abs().amax(0)
        total = plain_log_mean_exp(x) - self._paid
        for log_t, weights in self._chunks(2, 1):
            t = log_t.exp()
            # Where the sets differ little, E relative to the reference, minus one; where they differ, E itself.
            # Beyond t·spread = 1 the relative form would grow like e^{t·spread}; E itself is then far from the
            # reference.
            near, reference = t * largest < 1.0, (-t * scale).exp()
            average = self._average(torch.where(near, t * deviation, self._scaled(x, log_t)), near)
            term = torch.where(near, reference * average, average - reference)
            total = total - (weights * term).sum(0)
        return total

    @staticmethod
    def _scaled(x: Tensor, log_t: Tensor) -> Tensor:
        """t w, ``(K, Q, batch)``; where exp(−t w) has long vanished, a number that cannot overflow."""
        return (x.unsqueeze(1) + log_t).clamp_max(8.0).exp()

    def _average(self, exponent: Tensor, minus_one: Tensor) -> Tensor:
        """``(Q, batch)``: the average over the sets of exp(−Σ exponent), less one where ``minus_one`` says so."""
        row = torch.where(minus_one, 0.0, torch.ones_like(exponent[:1]))
        for k in range(1, self._count + 1):
            # x − 1 without rounding; 0 where the row is E itself, for which take + 0 is what is asked.
            y = torch.expm1(-exponent[k - 1]).masked_fill(~minus_one, 0.0)
            row = self._advance(row, k, (-exponent[k - 1]).exp(), y)
        return row[0]

    def combined_ratios(self, exponent: int) -> Tensor:
        """For each k, the average over the sets of (w_k / S_A)^exponent, 0 where k is not in A.

        As :math:`s^{-p}=\\int t^p e^{-ts}\\,dt/t` for p = 1, 2, it needs the sets' average without each k: a row of the
        recursion from the front times one from the back, all terms positive.
        """
        parts = []
        for log_t, weights in self._chunks(exponent, self._count):
            scaled = self._scaled(self._x, log_t)
            x = (-scaled).exp()
            # t^p w_k^p e^{−t w_k} times the average over the rest of the set: the integrand of (w_k/S_A)^p.
            parts.append((weights * scaled**exponent * x * self._derivatives_of_product(x)).sum(1))
        return torch.stack(parts).sum(0)

    def _derivatives_of_product(self, x: Tensor) -> Tensor:
        """Derivatives of the sets' average of the product of ``x`` with respect to each x: ``(K, Q, batch)``."""
        rows = [torch.ones_like(x[:1])]
        for k in range(1, self._count):
            rows.append(self._advance(rows[-1], k, x[k - 1]))
        # Walked backwards, with the rows of the forward recursion at hand: each derivative is a product of the two, as
        # in backpropagation, and nothing is divided by an x that may be 0.
        back, derivatives = torch.ones_like(x[:1]), []
        for k in range(self._count, 0, -1):
            low, high = self._band(k)
            old_low, old_high = self._band(k - 1)
            taken = back * self._chance_of_taking(k)
            before = rows[k - 1][: high - old_low]
            derivatives.append((taken[len(taken) - len(before) :] * before).sum(0))
            kept = (back - taken)[: old_high - low + 1]
            shifted = (taken * x[k - 1])[old_low + 1 - low :] if old_low >= low else taken * x[k - 1]
            back = pad(kept, (0, 0, 0, 0, low - old_low, 0)) + pad(shifted, (0, 0, 0, 0, 0, old_high - high + 1))
        return torch.stack(derivatives[::-1])

    def _band(self, k: int) -> tuple[int, int]:
        """Fewest and most of the first k samples that a set of n can have taken."""
        return max(0, self._size - self._count + k), min(k, self._size)

    def _chance_of_taking(self, k: int) -> Tensor:
        """j/k for each j of the band: how likely a set with j of the first k samples has the k-th."""
        low, high = self._band(k)
        j = torch.arange(low, high + 1, dtype=self._x.dtype, device=self._x.device)
        return (j / k).view(-1, 1, 1)

    def _advance(self, row: Tensor, k: int, x: Tensor, y: Tensor | None = None) -> Tensor:
        """From the averages over sets of j of the first k − 1 samples to those of the first k, for every j of the band.

        With ``y`` = x − 1 the rows are averages minus one; with 0 or None the averages themselves.
        """
        (low, high), (old_low, old_high) = self._band(k), self._band(k - 1)
        stay = pad(row[low - old_low :], (0, 0, 0, 0, 0, high - old_high))
        take = pad(row[: high - old_low], (0, 0, 0, 0, old_low + 1 - low, 0)) * x
        taking = self._chance_of_taking(k)
        return (1.0 - taking) * stay + taking * (take if y is None else take + y)

    def _chunks(self, power: int, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Nodes and weights in portions whose recursion stays in cache."""
        log_t, weights = self._log_nodes(power)
        # The band is at most min(n, K − n) + 1 wide, whichever side of the set is the smaller.
        width = (min(self._size, self._count - self._size) + 1) * rows * max(1, self._x.shape[1])
        portion = max(1, _NODES_AT_ONCE // width)
        starts = range(0, len(log_t), portion)
        return [(log_t[start : start + portion], weights[start : start + portion]) for start in starts]


def _longest(ranges: Tensor) -> float:
    """The longest finite range; 0 for an empty batch."""
    try:
        finite = ranges[ranges.isfinite()]
        return float(finite.max()) if finite.numel() else 0.0
    except RuntimeError as error:
        if not any(word in str(error) for word in ("vmap", "trac")):
            raise
        raise RuntimeError(
            "iwbounds: a U-statistic chooses its quadrature by the range of the weights, which neither make_fx nor a "
            "derivative under vmap shows. Call it outside, or use IncompleteUStatistic."
        ) from error


@lru_cache
def _end_weights(power: int) -> list[float]:
    """What the first nodes stand for below them: Σ_{q<0} f(t_0 r^q) if f is a mix of t^power, t^(power + 1), …"""
    exponents = power + np.arange(_EXTRAPOLATED)
    # Σ_{q<0} r^{q e} = 1/(r^e − 1) for the exponent e; three nodes determine the mix of three powers.
    growth = math.exp(_SPACING) ** exponents
    nodes = growth ** np.arange(_EXTRAPOLATED)[:, None]
    weights: list[float] = np.linalg.solve(nodes.T, 1.0 / (growth - 1.0)).tolist()
    return weights


def _closed_gaps(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How far each log-weight is lifted to leave no gap above 40, and how much that lifts the average of log S."""
    count = x.shape[0]
    order = x.sort(0, descending=True)
    high, low = order.values[:-1], order.values[1:]
    # By log-weights in order: what a gap is wider than 40 is cut out of it.
    closed = (high - low - _GAP).clamp_min(0.0).masked_fill(low.isneginf(), 0.0)  # a dead weight stays dead
    lift = pad(closed.cumsum(0), (0, 0, 1, 0))
    # The fraction of sets that lie altogether below the i-th gap: their log S was lifted by it.
    below = [math.comb(count - i, size) / math.comb(count, size) for i in range(1, count)]
    paid = (closed * x.new_tensor(below).unsqueeze(1)).sum(0)
    return torch.zeros_like(x).scatter(0, order.indices, lift), paid
