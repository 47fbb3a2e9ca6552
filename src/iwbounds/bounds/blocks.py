"""Averages of the importance-weighted bound over blocks of samples: the common part of MIWAE and its permuted form."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from iwbounds.bounds.base import Bound, Direction
from iwbounds.logspace import log_mean_exp, normalized_weights, sample_mean

__all__ = ["BlockAverage"]


class BlockAverage(Bound):
    r"""Mean of IWAE over M blocks of n samples each.

    .. math:: c_k = \frac1M\sum_{B\ni k} \tilde w_{B,k}, \qquad c_k - h_k = \frac1M\sum_{B\ni k} \tilde w_{B,k}^2
    """

    direction = Direction.LOWER

    @abstractmethod
    def split(self, log_w: Tensor) -> Tensor:
        """The log-weights of each block, ``(M, n, *batch)``."""

    @abstractmethod
    def added_up(self, blocks: Tensor, log_w: Tensor) -> Tensor:
        """For each sample of ``log_w``, the sum of what stands for it in the blocks."""

    def __call__(self, log_w: Tensor) -> Tensor:
        return sample_mean(log_mean_exp(self.split(self.checked(log_w)), 1))

    def gradient(self, log_w: Tensor) -> Tensor:
        return self._ratios(log_w, 1)[0]

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        c, c_minus_h = self._ratios(log_w, 1, 2)
        return c, c - c_minus_h

    def path_weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        c, c_minus_h = self._ratios(log_w, 1, 2)
        return c, c_minus_h

    def _ratios(self, log_w: Tensor, *powers: int) -> list[Tensor]:
        log_w = self.checked(log_w).detach()
        blocks = self.split(log_w)
        dead = blocks.isneginf().all(1).any(0)
        weights = normalized_weights(blocks, 1).masked_fill(dead, 0.0)
        return [self.added_up(weights**power, log_w) / len(blocks) for power in powers]
