"""The incomplete U-statistic: the importance-weighted bound of n samples, averaged over blocks of permutations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.blocks import BlockAverage
from iwbounds.bounds.u_statistic import check_size

__all__ = ["IncompleteUStatistic"]


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
        check_size(self.size)
        if not isinstance(self.permutations, int) or self.permutations < 1:
            raise ValueError(f"expected permutations to be a whole number, 1 or more; got {self.permutations}.")

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """size: a block cannot have more samples than there are."""
        return self.size

    def split(self, log_w: Tensor) -> Tensor:
        return log_w[self._blocks(log_w)]

    def added_up(self, blocks: Tensor, log_w: Tensor) -> Tensor:
        return torch.zeros_like(log_w).index_add(0, self._blocks(log_w).flatten(), blocks.flatten(0, 1))

    def _blocks(self, log_w: Tensor) -> Tensor:
        """``(R ⌊K/n⌋, n)`` indices of samples."""
        count, generator = log_w.shape[0], torch.Generator().manual_seed(self.seed)
        used = count - count % self.size
        orders = [torch.randperm(count, generator=generator)[:used] for _ in range(self.permutations)]
        return torch.cat(orders).view(-1, self.size).to(log_w.device)
