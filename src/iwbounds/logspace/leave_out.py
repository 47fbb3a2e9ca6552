r"""What every set R of at most m left-out samples leaves, summed in O(K) time for a fixed m, not set by set.

A jackknife needs :math:`\sum_{|R|=j} f(S_{-R})` for :math:`j\le m`, with :math:`S_{-R}` the sum of the weights that R
leaves. Enumerating is O(K^m); instead each R is split into a part T of the ``head``, the 2m + 2 largest weights, which
is enumerated, and s further samples of the tail. With X the largest weight of the tail,

.. math:: S_{-R} = A_T\,(1 - s\gamma\beta_T)\Bigl(1 - y_T \sum_{i\in R\setminus T} v_i\Bigr),\qquad
          \beta_T = \frac{X}{A_T},\; v_i = \frac{w_i}{X}-\gamma,\; y_T=\frac{\beta_T}{1-s\gamma\beta_T},

:math:`A_T` being the sum of all weights outside T and :math:`\gamma X` the middle of the tail's range. Every sample of
the head that is kept weighs at least X, so :math:`|y\sum v|\le m/(3m+6) < 1/3`: f is a short power series in it, and
the sums of :math:`(\sum v)^n` over sets of the tail are elementary symmetric in power sums (:class:`_Moments`).
Nothing is divided out or subtracted that could cancel: each :math:`A_T` is summed relative to its own largest term.

For m = 1 a few passes do (:class:`LeaveOneOut`). Leaving out any sample but the largest keeps at least half of the
total, so :math:`S_{-i}/S = 1-\tilde w_i` is well conditioned. What is left without the largest is summed on its own;
where that would underflow, more than 300 nats below the largest, the others see no more of the largest than that it is
far above.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate, combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from iwbounds.logspace.log_sums import LogSums
from iwbounds.logspace.mean import finite_or_zero, log_mean_exp

__all__ = ["LeaveOneOut", "LeaveOut"]

_FAR = 300.0
"""Nats; exp(−300) squared is still above the smallest float64, so that squared ratios do not vanish."""


class LeaveOneOut(LogSums):
    r"""``coefficients[0]`` log S + ``coefficients[1]`` Σ_i log S_-i, plus a constant: its value, c and c − h.

    The value is log(S / K) plus ``coefficients[1]`` times the sum over i of log(S_-i / S) − log(1 − 1/K), in which
    every term is as small as it can be; the coefficients of all sets add up to one.

    Args:
        x: ``(K, batch)`` float64 log-weights, at least two of them finite in every column.
        coefficients: how much the full set, and each set without one sample, counts.
    """

    def __init__(self, x: Tensor, coefficients: list[float]) -> None:
        self._coefficients = coefficients
        # Only the largest can weigh more than half: it is set apart, and all others are taken relative to the rest.
        first_two, order = x.topk(2, dim=0)
        self._top = order[:1]
        first, second = first_two.detach()
        # The largest itself, unless the second is so far below that exp would underflow: then 300 above the second.
        self._reference = torch.minimum(first, second + _FAR)
        self._beyond = first - self._reference
        # The largest as 0: it would be exp(beyond), which may overflow.
        self._others = (x - self._reference).exp().scatter(0, self._top, 0.0)
        self._rest = self._others.sum(0)
        top = (first_two[0] - first).exp()  # one, with the derivative of the largest weight
        self._total = top + self._rest
        self._top_weight = top / self._total
        self._weights = self._others / self._total

    def value(self) -> Tensor:
        """``(batch)``."""
        count = len(self._others)
        # log(S₋top/S): the part beyond the reference is taken off as a logarithm, where nothing underflows.
        without_top = (self._rest / self._total).log() - self._beyond
        correction = torch.log1p(-self._weights).sum(0) + without_top - count * math.log1p(-1.0 / count)
        log_mean = self._beyond + self._reference + (self._total / count).log()
        value: Tensor = log_mean + self._coefficients[1] * correction
        return value

    def combined_ratios(self, exponent: int) -> Tensor:
        """For each k, the weighted sum of (w_k / S_-i)^exponent over no i and each i ≠ k."""
        full, single = self._coefficients
        # 1/(1 − w̃_i) = S/S₋ᵢ, at most 2 as no w̃ here exceeds 1/2.
        inverse = (1.0 / (1.0 - self._weights)) ** exponent
        weights, of_rest = self._weights**exponent, (self._others / self._rest) ** exponent
        # Σ over i ≠ k of (w_k/S₋ᵢ)^e is w̃_k^e times the sum of all inverses less its own; the set without the largest
        # is added apart.
        others = inverse.sum(0) - 1.0  # the largest entered as 1: its weight among the others is 0
        factor = full + single * others
        result: Tensor = weights * (factor - single * inverse) + single * of_rest
        return result.scatter(0, self._top, (self._top_weight**exponent * factor).unsqueeze(0))


class _Plan(NamedTuple):
    """The subsets T of the head, smallest first: what of the algorithm depends on K and m alone."""

    head: int
    sizes: list[int]
    """|T| of each subset."""
    up_to: list[int]
    """How many subsets have at most t elements."""
    first: list[int]
    """The largest sample that T leaves."""
    kept: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    """``(subsets, (m + 1) * (head + 1))``: 1 where T keeps a sample, in the block of its own ``first``; the last
    sample of a block is the tail as a whole."""


@lru_cache(maxsize=64)
def _plan(count: int, order: int) -> _Plan:
    # m of the head may be left out; the m + 2 that stay weigh at least as much as any of the tail, which makes the
    # series' ratio at most m/(3m + 6).
    head = min(count, 2 * order + 2)
    subsets = [set(t) for size in range(order + 1) for t in combinations(range(head), size)]
    first = [next(i for i in range(head) if i not in t) for t in subsets]
    kept = np.zeros((len(subsets), order + 1, head + 1))
    for row, t in enumerate(subsets):
        kept[row, first[row], [i for i in range(head + 1) if i not in t]] = 1.0
    up_to = list(accumulate(math.comb(head, t) for t in range(order + 1)))
    return _Plan(head, [len(t) for t in subsets], up_to, first, kept.reshape(len(subsets), -1))


class LeaveOut(LogSums):
    """The weighted sum of log S_-R over the sets R of at most m samples, plus a constant: its value, c and c − h.

    The value is log(S / K) plus the weighted sum of log(S_-R / S) − log(1 − |R|/K), in which every term is as small as
    it can be; the coefficients of all sets add up to one.

    Args:
        x: ``(K, batch)`` float64 log-weights, more than m of them finite in every column.
        coefficients: m + 1 numbers: how much each set of size 0, …, m counts.
    """

    def __init__(self, x: Tensor, coefficients: list[float]) -> None:
        self._x, self._coefficients, self._order = x, coefficients, len(coefficients) - 1
        self._plan = plan = _plan(x.shape[0], self._order)
        self._index = x.topk(plan.head, dim=0).indices
        self._head_mask = torch.zeros_like(x, dtype=torch.bool).scatter(0, self._index, True)
        tail_x = x.masked_fill(self._head_mask, -torch.inf)
        top = tail_x.detach().amax(0)
        self._tail = (tail_x - finite_or_zero(top)).exp()  # no tail: top is −inf
        # γ: centred, |v| is at most 1/2 of the tail's range instead of 1, and the series needs half the terms.
        self._middle = 0.5 * (1.0 + (x.detach().amin(0) - finite_or_zero(top)).exp())
        self._reference = x.gather(0, self._index[: self._order + 1]).detach()
        self._relative = self._relative_weights(x.gather(0, self._index), (top - self._reference).exp())
        kept = torch.from_numpy(plan.kept).to(x.device)
        # All A_T by one matrix product; each is relative to its own largest kept sample, so that none underflows.
        self._kept, self._totals = kept, kept @ self._relative.flatten(0, 1)
        self._beta = (top - self._reference).exp()[plan.first] / self._totals
        self._tail_count = x.shape[0] - plan.head
        # No more can be left out of the tail than it has.
        self._depth = min(self._order, self._tail_count)
        self._moments = self._tail_moments(torch.finfo(x.dtype).eps)

    def _relative_weights(self, head_x: Tensor, tail_scale: Tensor) -> Tensor:
        """``(m + 1, head + 1, batch)``: the head and the whole tail relative to each possible ``first``; 0 above it."""
        rows = torch.arange(self._order + 1, device=head_x.device)
        above = torch.arange(self._plan.head, device=head_x.device) < rows.unsqueeze(1)
        head = (head_x - self._reference.unsqueeze(1)).masked_fill(above.unsqueeze(2), -torch.inf).exp()
        return torch.cat([head, (tail_scale * self._tail.sum(0)).unsqueeze(1)], 1)

    def _tail_moments(self, tolerance: float) -> _Moments:
        """Enough terms that the first neglected one is below ``tolerance``: each is at most m/(3m + 6) of the last."""
        ratio = math.log(3.0 + 6.0 / max(self._order, 1))
        terms = math.ceil(-math.log(tolerance) / ratio) if self._depth else 0
        v = (self._tail - self._middle).masked_fill(self._head_mask, 0.0)
        return _Moments(v, self._tail_count, self._depth, terms)

    def _counts(self, drawn: int) -> Tensor:
        """How much a set with ``drawn`` samples of the tail counts, for each T that leaves room for them."""
        sizes = self._plan.sizes[: self._plan.up_to[self._order - drawn]]
        return self._x.new_tensor([self._coefficients[t + drawn] for t in sizes]).unsqueeze(1)

    def _series(self, drawn: int) -> tuple[Tensor, Tensor]:
        """``1/(1 - s γ β_T)`` and the powers ``y_T^n``, for each T that leaves room for ``drawn`` of the tail."""
        beta = self._beta[: self._plan.up_to[self._order - drawn]]
        shrink = 1.0 / (1.0 - drawn * self._middle * beta)
        powers = (beta * shrink).expand(self._moments.terms, -1, -1).cumprod(0)
        return shrink, torch.cat([torch.ones_like(powers[:1]), powers])

    def value(self) -> Tensor:
        """``(batch)``; not differentiable."""
        count = self._x.shape[0]
        sizes = self._x.new_tensor(self._plan.sizes).unsqueeze(1)
        log_kept = self._reference[self._plan.first] - self._reference[0] + (self._totals / self._totals[0]).log()
        total = log_mean_exp(self._x.detach()) + (self._counts(0) * (log_kept - torch.log1p(-sizes / count))).sum(0)
        for drawn in range(1, self._depth + 1):
            shrink, powers = self._series(drawn)
            kept, left = log_kept[: len(shrink)], sizes[: len(shrink)] + drawn
            moments = self._moments.of_size(drawn)[1:] / self._moments.degrees[1:]
            series = (powers[1:] * moments.unsqueeze(1)).sum(0)
            each = math.comb(self._tail_count, drawn) * (kept - shrink.log() - torch.log1p(-left / count))
            total = total + (self._counts(drawn) * (each - series)).sum(0)
        return total

    def combined_ratios(self, exponent: int) -> Tensor:
        """For each k the weighted sum of (w_k / S_-R)^exponent over the sets R without k."""
        of_head = self._counts(0).expand_as(self._beta)
        of_tail = (self._counts(0) * self._beta**exponent).sum(0, keepdim=True)
        for drawn in range(1, self._depth + 1):
            shrink, powers = self._series(drawn)
            # The series of (1 − y)^−e has coefficients 1 for e = 1 and n + 1 for e = 2.
            binomial = (self._moments.degrees + 1.0) ** (exponent - 1)  # of 1/(1 − y)^exponent
            inner = (powers * (binomial * self._moments.of_size(drawn)).unsqueeze(1)).sum(0)
            head_part = self._counts(drawn) * shrink**exponent * inner
            of_head = torch.cat([of_head[: len(shrink)] + head_part, of_head[len(shrink) :]])
            outer = binomial * (powers * (self._counts(drawn) * powers[1] ** exponent)).sum(1)
            of_tail = _padded_sum(of_tail, self._moments.without_each(drawn, outer))
        return self._assembled(of_head, of_tail, exponent)

    def _assembled(self, of_head: Tensor, of_tail: Tensor, exponent: int) -> Tensor:
        """From factors per T, and a polynomial in v for the tail, to one number per sample."""
        relative = self._relative**exponent
        factors = self._kept.mT @ (of_head / self._totals**exponent)
        head = (relative * factors.view_as(relative)).sum(0)[: self._plan.head]
        tail = self._tail**exponent * _polynomial(of_tail, self._moments.v)
        return tail.scatter(0, self._index, head)


class _Moments:
    r"""Sums of :math:`(\sum_{i\in R} v_i)^n` over all sets R of s samples, for every n up to ``terms``.

    Divided by n!, the moments of sets of s samples are the coefficients of :math:`e_s(e^{z v_1}, e^{z v_2}, …)`, and
    Newton's identity makes those of :math:`p_i(z)=\sum_k e^{i z v_k}`, the power sums.
    """

    def __init__(self, v: Tensor, count: int, depth: int, terms: int) -> None:
        self.v, self.terms = v, terms
        self.degrees = torch.arange(terms + 1, dtype=v.dtype, device=v.device).unsqueeze(1)
        self._factorials = v.new_tensor([math.factorial(n) for n in range(terms + 1)]).unsqueeze(1)
        powers, sums = v, [torch.full_like(v[0], count)]
        for degree in range(terms):
            # v itself first: 0⁰ = 1 for the masked head would be counted in the tail's sums.
            powers = powers * v if degree else v
            sums.append(powers.sum(0))
        power_sums = torch.stack(sums) / self._factorials
        self._elementary = [torch.cat([torch.ones_like(power_sums[:1]), torch.zeros_like(power_sums[1:])])]
        self._shifts: list[Tensor] = []
        for size in range(1, depth + 1):
            self._shifts.append(self._toeplitz(self._elementary[-1]))
            terms_of_newton = (
                # Newton: s e_s = Σ_i (−1)^{i−1} e_{s−i} p_i, products of power series in z; p_i(z) = p_1(i z) puts i^n
                # on the n-th term.
                (-1.0) ** (i - 1) * (self._shifts[size - i] * (i**self.degrees * power_sums).unsqueeze(1)).sum(0)
                for i in range(1, size + 1)
            )
            self._elementary.append(sum(terms_of_newton, torch.zeros_like(power_sums)) / size)

    def _toeplitz(self, series: Tensor) -> Tensor:
        """``[a, n] -> series[n - a]``: multiplication of power series as a matrix."""
        # Zeros in front stand for the coefficients of negative degree.
        padded = torch.cat([torch.zeros_like(series[1:]), series])
        steps = torch.arange(self.terms + 1, device=series.device)
        return padded[self.terms + steps - steps.unsqueeze(1)]

    def of_size(self, size: int) -> Tensor:
        """``(terms + 1, batch)`` moments of the sets of ``size`` samples."""
        return self._elementary[size] * self._factorials

    def without_each(self, size: int, outer: Tensor) -> Tensor:
        r"""Coefficients of the polynomial in :math:`v_k` that is :math:`\sum_n outer_n` times the n-th moment of the
        sets without k: inclusion and exclusion of k, :math:`\sum_r (-1)^r e^{r z v_k} e_{size-r}`."""
        weighted = outer * self._factorials
        constant = (outer * self.of_size(size)).sum(0, keepdim=True)
        rest = [(-1.0) ** r * r**self.degrees * (self._shifts[size - r] * weighted).sum(1) for r in range(1, size + 1)]
        return _padded_sum(constant, sum(rest, torch.zeros_like(outer)) / self._factorials)


def _padded_sum(short: Tensor, long: Tensor) -> Tensor:
    """Sum of two stacks of coefficients, the first perhaps shorter."""
    return torch.cat([short + long[: len(short)], long[len(short) :]])


def _polynomial(coefficients: Tensor, v: Tensor) -> Tensor:
    """Horner's rule, elementwise in ``v``."""
    value = coefficients[-1].expand_as(v)
    for coefficient in coefficients[:-1].flip(0):
        value = torch.addcmul(coefficient, value, v)
    return value
