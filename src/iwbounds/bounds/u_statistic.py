"""U-statistics: the importance-weighted bound of n samples, averaged over sets of n of the K samples.

Complete, over all sets; or incomplete, over the blocks of a few permutations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.bounds.closed_form import ClosedForm
from iwbounds.bounds.miwae import BlockAverage
from iwbounds.checks import check_whole_number
from iwbounds.logspace.subset_averages import SubsetAverages

__all__ = ["IncompleteUStatistic", "UStatistic"]


@final
@dataclass(frozen=True)
class UStatistic(ClosedForm):
    r"""Lower bound of log p(x): IWAE of n samples, averaged over *all* sets A of n of the K samples.

    .. math:: L = \binom{K}{n}^{-1}\sum_{|A|=n}\log\frac{S_A}{n},\; S_A=\sum_{k\in A} w_k, \qquad
              c_k = \binom{K}{n}^{-1}\sum_{A\ni k}\frac{w_k}{S_A}, \qquad
              c_k-h_k = \binom{K}{n}^{-1}\sum_{A\ni k}\Bigl(\frac{w_k}{S_A}\Bigr)^2

    Direction: lower; the expectation is that of IWAE with n samples, with the least variance that K samples allow.
    Non-decreasing in n for any fixed weights: n = 1 is the ELBO, n = K is IWAE. Bias: that of IWAE with n samples.
    Unbiased gradients: reparameterised and DReG.

    Time O(K · min(n, K − n) · Q) with Q from about 100, for a moderate range of the weights; no set is enumerated (see
    ``logspace/subset_averages.py``). Computed in float64. Q depends on the weights, so a GPU is waited for; for very
    large K use :class:`IncompleteUStatistic`.

    Args:
        size: n, from 1 to K.

    Edge cases: with at least n log-weights of −inf the value is −inf, with gradient 0.

    Raises:
        ValueError: a ``size`` below 1 or fractional; on use, fewer than n samples.

    Reference: Hoeffding (1948), A Class of Statistics with Asymptotically Normal Distribution, section 3.

    >>> UStatistic(2)(torch.tensor([0.0, 0.0, 0.0]))
    tensor(0.)
    """

    size: int
    direction = Direction.LOWER
    bounded_ratio = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_whole_number("size", self.size, 1, "1 is the ELBO."))

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """size: a set cannot have more samples than there are."""
        return self.size

    def dead(self, x: Tensor) -> Tensor:
        # A set of n dead samples is among the sets that are averaged.
        return x.isneginf().sum(0) >= self.size

    def combination(self, x: Tensor) -> SubsetAverages:
        return SubsetAverages(x, self.size)


@final
@dataclass(frozen=True)
class IncompleteUStatistic(BlockAverage):
    r"""Lower bound of log p(x): IWAE of n samples, averaged over the disjoint blocks of R permutations.

    .. math:: L = \frac1{R\lfloor K/n\rfloor}\sum_{r,b}\log\frac1n\sum_{k\in B_{rb}} w_k

    Each permutation of the K samples is cut into ⌊K/n⌋ blocks B; it leaves the remainder unused. The permutations
    depend on ``seed``, K, n and R alone: they are the same in every call, on every device and for every datum, so that
    value and gradient agree, and no global random state is touched.

    Direction: lower; the expectation is that of IWAE with n samples, as for :class:`UStatistic`, whose variance it
    approaches from above as R grows. Where n divides K it is at most IWAE of all K for any fixed weights; elsewhere the
    samples count unequally, and it need not be. Unbiased gradients: reparameterised and DReG. Time and memory O(R K).
    Unlike most bounds it depends on the order of the samples.

    Args:
        size: n, from 1 to K.
        permutations: R ≥ 1.
        seed: of the permutations.

    Edge cases: a block whose log-weights are all −inf makes the value −inf, with gradient 0.

    Raises:
        ValueError: ``size`` or ``permutations`` below 1 or fractional; on use, fewer than n samples.

    Reference: Blom (1976), Some Properties of Incomplete U-Statistics, Biometrika 63(3), for averages over a choice of
    the sets.

    >>> IncompleteUStatistic(2, permutations=3)(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0]))
    tensor(0.)
    """

    size: int
    permutations: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_whole_number("size", self.size, 1, "1 is the ELBO."))
        object.__setattr__(self, "permutations", check_whole_number("permutations", self.permutations, 1))

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """size: a block cannot have more samples than there are."""
        return self.size

    def blocks(self, x: Tensor) -> Tensor:
        # Samples that a permutation leaves over are in no block of it: their coefficient is that of the other
        # permutations.
        return x[self._indices(len(x)).to(x.device)]

    def sum_over_blocks(self, x: Tensor, count: int) -> Tensor:
        indices = self._indices(count).flatten().to(x.device)
        # A sample is in one block of each permutation at most, and in several over all: hence a sum, not an assignment.
        return x.new_zeros(count, *x.shape[2:]).index_add(0, indices, x.flatten(0, 1))

    def _indices(self, count: int) -> Tensor:
        """``(R ⌊K/n⌋, n)`` indices of samples."""
        return torch.tensor(_permuted_blocks(count, self.size, self.permutations, self.seed))


def _permuted_blocks(count: int, size: int, permutations: int, seed: int) -> list[list[int]]:
    """Drawn by NumPy, from a generator of their own: no global state is touched, and tracers see constants."""
    generator, used = np.random.default_rng(seed), count - count % size
    orders = [generator.permutation(count)[:used] for _ in range(permutations)]
    found: list[list[int]] = np.concatenate(orders).reshape(-1, size).tolist()
    return found


# What torch.compiler.assume_constant_result sets; calling it would import the whole compiler with this package.
_permuted_blocks._dynamo_marked_constant = True  # type: ignore[attr-defined]
