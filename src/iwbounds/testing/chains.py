"""The coupled orders between this library's bounds: each holds for every fixed set of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from iwbounds.bounds import CIWAE, ELBO, EUBO, IWAE, MIWAE, TVO, Bound, Renyi, UStatistic

__all__ = ["Estimator", "default_chains", "largest", "name_of", "smallest"]

Estimator: TypeAlias = Callable[[Tensor], Tensor]
"""From ``(K, *batch)`` log-weights to ``(*batch)``: a bound, or a function of a user's own."""

_ORDERS = (math.inf, 3.0, 1.0, 0.5, 0.0, -1.0, -math.inf)
_INTERVALS = 4


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
    groups = [count for count in range(2, num_samples) if num_samples % count == 0]
    sizes = sorted({min(size, num_samples) for size in (1, 2, max(1, num_samples // 2), num_samples)})
    return [
        (smallest, ELBO(), CIWAE(0.7), CIWAE(0.2), IWAE(), largest),
        (ELBO(), TVO(_INTERVALS), IWAE(), TVO(_INTERVALS, side="right"), EUBO(), largest),
        [Renyi(order) for order in _ORDERS],
        *[(ELBO(), MIWAE(num_samples), MIWAE(count), IWAE()) for count in groups[:1]],
        [*map(UStatistic, sizes), IWAE()],
    ]


def name_of(estimator: Estimator) -> str:
    """How messages call an estimator."""
    return repr(estimator) if isinstance(estimator, Bound) else getattr(estimator, "__name__", repr(estimator))
