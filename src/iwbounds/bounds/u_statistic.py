"""The complete U-statistic: the importance-weighted bound of n samples, averaged over all sets of n of K samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.bounds.closed_form import ClosedForm, Sums
from iwbounds.logspace.symmetric import SubsetAverages

__all__ = ["UStatistic", "check_size"]


def check_size(size: int) -> None:
    """Raise ValueError unless ``size`` is a possible number of samples."""
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"expected a size that is a whole number, 1 or more; got {size}. 1 is the ELBO.")


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
    ``logspace/symmetric.py``). Computed in float64. Q depends on the weights, so a GPU is waited for; for very large K
    use :class:`IncompleteUStatistic`.

    Args:
        size: n, from 1 to K.

    Edge cases: with at least n log-weights of −inf the value is −inf, with gradient 0.

    Raises:
        ValueError: a ``size`` below 1 or fractional; on use, fewer than n samples.

    Reference: Hoeffding (1948), A Class of Statistics with Asymptotically Normal Distribution, section 3.

    >>> import torch
    >>> UStatistic(2)(torch.tensor([0.0, 0.0, 0.0]))
    tensor(0.)
    """

    size: int
    direction = Direction.LOWER

    def __post_init__(self) -> None:
        check_size(self.size)

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """size: a set cannot have more samples than there are."""
        return self.size

    def dead(self, x: Tensor) -> Tensor:
        return x.isneginf().sum(0) >= self.size

    def sums(self, x: Tensor) -> Sums:
        return SubsetAverages(x, self.size)
