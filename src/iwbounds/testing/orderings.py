"""Facts that hold for every fixed set of weights: no expectation, no tolerance but rounding, so nothing can flake."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from iwbounds.bounds.ciwae import CIWAE
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.miwae import MIWAE
from iwbounds.bounds.renyi import Renyi
from iwbounds.bounds.tvo import EUBO, TVO
from iwbounds.bounds.u_statistic import UStatistic
from iwbounds.engine.result import Estimate
from iwbounds.logspace.mean import finite_maximum, promoted
from iwbounds.seeding import forked_rng
from iwbounds.testing.densities import name_of, value_of

__all__ = ["assert_coupled_order", "assert_monotone_in_k", "assert_same_value", "default_chains"]

Estimator: TypeAlias = Callable[[Tensor], Tensor]
"""From ``(K, *batch)`` log-weights to ``(*batch)``: a bound, or a function of a user's own."""

# Rényi falls in α, so the chain starts at α = ∞, which is the smallest weight, and ends at the largest.
_ORDERS = (math.inf, 3.0, 1.0, 0.5, 0.0, -1.0, -math.inf)
_INTERVALS = 4
_SUBSET_BLOCK = 8


def largest(log_w: Tensor) -> Tensor:
    """The largest log-weight, which no mean exceeds.

    >>> import torch
    >>> largest(torch.tensor([1.0, 2.0]))
    tensor(2.)
    """
    return log_w.amax(0)


def smallest(log_w: Tensor) -> Tensor:
    """The smallest log-weight, which no mean is below.

    >>> import torch
    >>> smallest(torch.tensor([1.0, 2.0]))
    tensor(1.)
    """
    return log_w.amin(0)


def default_chains(num_samples: int) -> list[Sequence[Estimator]]:
    r"""The non-decreasing chains of bounds that are defined for ``num_samples`` samples.

    * smallest ≤ ELBO ≤ CIWAE(0.7) ≤ CIWAE(0.2) ≤ IWAE ≤ largest, by :math:`\text{ELBO}\le\text{IWAE}`;
    * ELBO ≤ left TVO ≤ IWAE ≤ right TVO ≤ EUBO ≤ largest: Riemann sums of a non-decreasing function;
    * Rényi, non-increasing in α: the power-mean inequality;
    * ELBO ≤ MIWAE ≤ IWAE, by Jensen's inequality over the groups;
    * U-statistics, non-decreasing in their size, up to IWAE.

    Returns:
        Each chain a sequence of callables from ``(K, *batch)`` to ``(*batch)``, in non-decreasing order.

    >>> [len(chain) for chain in default_chains(6)]
    [6, 6, 7, 4, 5]
    """
    # Proper divisors: one group is IWAE and K groups the ELBO, the ends of that chain.
    groups = [count for count in range(2, num_samples) if num_samples % count == 0]
    sizes = sorted({min(size, num_samples) for size in (1, 2, max(1, num_samples // 2), num_samples)})
    return [
        (smallest, ELBO(), CIWAE(0.7), CIWAE(0.2), IWAE(), largest),
        (ELBO(), TVO(_INTERVALS), IWAE(), TVO(_INTERVALS, side="right"), EUBO(), largest),
        [Renyi(order) for order in _ORDERS],
        # One number of groups: two of them are ordered only where one divides the other.
        *[(ELBO(), MIWAE(num_samples), MIWAE(count), IWAE()) for count in groups[:1]],
        [*map(UStatistic, sizes), IWAE()],
    ]


def rounding(log_w: Tensor, ulps: float = 8) -> Tensor:
    """What each datum's order may be off by: ``ulps`` units in the last place of its largest finite ``|log w|``."""
    finite = torch.where(log_w.isfinite(), log_w, 0.0)
    return ulps * torch.finfo(log_w.dtype).eps * finite.abs().amax(0)


def assert_coupled_order(log_w: Tensor, chain: Sequence[Estimator] | None = None, *, ulps: float = 8) -> None:
    r"""Assert that bounds are ordered, datum by datum, on the *same* log-weights, and that none mixes data.

    Orders such as ELBO ≤ CIWAE ≤ IWAE ≤ max hold for any fixed weights (the power-mean inequality), not only in
    expectation. Evaluated on one set of draws they are exact: a violation beyond rounding is a bug, never bad luck.

    Args:
        log_w: ``(K, *batch)`` log-weights, of whatever origin; −inf is welcome.
        chain: callables from ``(K, *batch)`` to ``(*batch)``, in non-decreasing order of value. None: every such fact
            about this library's bounds that applies to K samples (see :func:`iwbounds.testing.default_chains`). Put a
            bound of your own between two of the library's: ``chain=(iw.ELBO(), mine, iw.IWAE())``.
        ulps: rounding allowed, in units in the last place of the largest ``|log w|`` of the datum.

    Raises:
        AssertionError: a result is not of shape ``(*batch)``; a datum's value changes with the other data's weights
            (a batch summed inside the logarithm, a group axis mistaken for the batch); two neighbours are out of
            order. The message names the datum and both values.

    >>> import iwbounds as iw
    >>> log_w = torch.tensor([[0.0, 3.0], [1.0, -torch.inf]])
    >>> assert_coupled_order(log_w)
    >>> assert_coupled_order(log_w, chain=(iw.IWAE(), iw.ELBO()))
    Traceback (most recent call last):
    AssertionError: expected IWAE() ≤ ELBO() on the same weights; got 0.62011... > 0.5 at datum (0,)...
    """
    log_w = promoted(log_w.detach())
    chains = default_chains(log_w.shape[0]) if chain is None else [chain]
    for members in chains:
        values = [_own_values(member, log_w) for member in members]
        for (low, low_value), (high, high_value) in itertools.pairwise(zip(members, values, strict=True)):
            _assert_ordered(low_value, high_value, rounding(log_w, ulps), f"{name_of(low)} ≤ {name_of(high)}")


def assert_monotone_in_k(log_w: Tensor, bound: Estimator = IWAE(), *, ulps: float = 8) -> None:
    r"""Assert that a bound does not decrease with the number of samples, exactly, on one set of weights.

    .. math:: \bar L_m = \binom{K}{m}^{-1}\sum_{|S| = m} L(\log w_S), \qquad \bar L_1 \le \bar L_2 \le … \le \bar L_K

    For IWAE, the ELBO (with equality), CIWAE and Rényi this holds for any fixed weights, hence in expectation for
    independent draws. Comparing two independent runs instead would flake. All subsets are enumerated, in blocks of at
    most 8 samples.

    Args:
        log_w: ``(K, *batch)`` log-weights, K ≥ 2.
        bound: from ``(m, *batch)`` to ``(*batch)``, for every m.
        ulps: rounding allowed, in units in the last place of the largest ``|log w|`` of the datum.

    Raises:
        AssertionError: the average over subsets of m + 1 is below that over subsets of m.
        ValueError: a single sample.

    Reference: Burda, Grosse and Salakhutdinov (2015), Importance Weighted Autoencoders, arXiv:1509.00519, theorem 1.

    >>> assert_monotone_in_k(torch.tensor([0.0, 1.0, 5.0]))
    """
    log_w = promoted(log_w.detach())
    if log_w.shape[0] < 2:
        raise ValueError("expected at least 2 samples to compare numbers of samples; got 1.")
    for start in range(0, log_w.shape[0], _SUBSET_BLOCK):
        block = log_w[start : start + _SUBSET_BLOCK]
        averages = [_subset_average(bound, block, m) for m in range(1, block.shape[0] + 1)]
        for m, (fewer, more) in enumerate(itertools.pairwise(averages), start=1):
            order = f"{name_of(bound)} of {m} ≤ of {m + 1} samples, averaged over all subsets,"
            _assert_ordered(fewer, more, rounding(block, ulps), order)


def assert_same_value(*estimators: Callable[[], Tensor | Estimate], seed: int = 0, ulps: float = 8) -> None:
    r"""Assert that several ways to compute an estimate agree on the same draws, to rounding.

    Each is called with torch's generators in the same state, so that each draws the same samples: chunked against
    whole, fused against plain, your own bound against ours, MIWAE with one group against IWAE.

    Args:
        estimators: callables without arguments, each returning a tensor or an :class:`iwbounds.Estimate`.
        seed: of the common draws.
        ulps: rounding allowed, in units in the last place of the largest finite ``|log w|`` (of the estimates that hold
            log-weights) or value, and of the coarsest dtype.

    Raises:
        AssertionError: another shape or value than the first one's; −inf and NaN agree with themselves only.
        ValueError: fewer than two estimators.

    >>> import iwbounds as iw
    >>> log_w = torch.tensor([0.0, 1.0, 5.0])
    >>> assert_same_value(lambda: iw.IWAE()(log_w), lambda: iw.Renyi(0.0)(log_w))
    """
    if len(estimators) < 2:
        raise ValueError(f"expected at least two estimators to compare; got {len(estimators)}.")
    results = [_seeded(estimator, seed) for estimator in estimators]
    first = value_of(results[0]).detach()
    for position, result in enumerate(results[1:], start=1):
        allowed = ulps * _unit([results[0], result])
        _assert_equal(
            first, value_of(result).detach(), allowed, f"estimators 0 and {position} on the draws of seed={seed}"
        )


def _own_values(bound: Estimator, log_w: Tensor) -> Tensor:
    """``bound(log_w)``, once its shape and its blindness to other data are known."""
    value, batch = bound(log_w).detach(), log_w.shape[1:]
    if value.shape != batch:
        raise AssertionError(
            f"expected {name_of(bound)} to return (*batch) = {tuple(batch)}; got {tuple(value.shape)}."
        )
    if batch.numel() > 1:
        # Each half of the data is seen beside two versions of the other half.
        half = torch.arange(batch.numel()).reshape(batch) % 2 == 0
        for kept in (half, ~half):
            kept = kept.to(log_w.device)
            # Other weights of the same kind: the datum's own in reverse and lower, with their −inf and ties.
            changed = bound(torch.where(kept, log_w, log_w.flip(0) - 1.5)).detach()
            context = f"{name_of(bound)} of the same datum beside other data (it must not mix data)"
            _assert_equal(value[kept], changed[kept], rounding(log_w)[kept], context)
    return value


def _subset_average(bound: Estimator, log_w: Tensor, size: int) -> Tensor:
    """The bound averaged over all subsets of ``size`` samples, as a deviation-safe mean about the maximum."""
    # At most C(8, 4) = 70 of them, as blocks hold 8 samples.
    rows = torch.tensor(list(itertools.combinations(range(log_w.shape[0]), size)), device=log_w.device)
    shift = finite_maximum(log_w, 0)
    values = bound((log_w - shift)[rows.T]).detach()
    return values.mean(0) + shift.squeeze(0)


def _assert_ordered(low: Tensor, high: Tensor, allowed: Tensor, order: str) -> None:
    # Equality apart, as −inf + allowed is no number to compare −inf with.
    good = (low <= high + allowed) | (low == high)
    if not good.all():
        at = _first(~good)
        raise AssertionError(
            f"expected {order} on the same weights; got {_number(low[at])} > {_number(high[at])} at datum {at}."
        )


def _assert_equal(first: Tensor, second: Tensor, allowed: Tensor, context: str) -> None:
    if first.shape != second.shape:
        raise AssertionError(
            f"expected equal shapes from {context}; got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    good = ((first - second).abs() <= allowed) | (first == second) | (first.isnan() & second.isnan())
    if not good.all():
        at = _first(~good)
        raise AssertionError(
            f"expected equal values from {context}; got {_number(first[at])} and {_number(second[at])} at {at}."
        )


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def _number(x: Tensor) -> str:
    return f"{x.item():.10g}"


def _seeded(estimator: Callable[[], Tensor | Estimate], seed: int) -> Tensor | Estimate:
    with forked_rng(seed):
        return estimator()


def _unit(results: Iterable[Tensor | Estimate]) -> Tensor:
    """One unit in the last place of the largest finite number that the results were made of."""
    tensors = [result.log_weights if isinstance(result, Estimate) else result.detach() for result in results]
    eps = max(torch.finfo(tensor.dtype).eps for tensor in tensors)
    largest = [torch.where(t.isfinite(), t, 0.0).abs().max() if t.numel() else torch.zeros(()) for t in tensors]
    return eps * torch.stack([value.to("cpu", torch.float64) for value in largest]).max()
