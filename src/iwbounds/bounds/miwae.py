"""Means of the importance-weighted bounds of blocks of samples: MIWAE, and the base that permuted blocks share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Derivatives, Direction
from iwbounds.checks import check_whole_number
from iwbounds.logspace.leave_one_out import leave_one_out_log_mean_exp, leave_one_out_mean
from iwbounds.logspace.mean import log_mean_exp, log_mean_exp_with_weights
from iwbounds.logspace.power import power_mean_replacing_each, sample_mean

__all__ = ["MIWAE", "BlockAverage"]


class BlockAverage(Bound):
    r"""Mean of IWAE over M blocks of n samples each.

    .. math:: c_k = \frac1M\sum_{B\ni k} \tilde w_{B,k}, \qquad c_k - h_k = \frac1M\sum_{B\ni k} \tilde w_{B,k}^2
    """

    direction = Direction.LOWER
    bounded_ratio = True

    @abstractmethod
    def blocks(self, x: Tensor) -> Tensor:
        """What belongs to the samples ``(K, *batch)``, block by block: ``(M, n, *batch)``."""

    @abstractmethod
    def sum_over_blocks(self, x: Tensor, count: int) -> Tensor:
        """For each of ``count`` samples, the sum of what belongs to it in ``x`` ``(M, n, *batch)``."""

    def __call__(self, log_w: Tensor) -> Tensor:
        # sample_mean, as the average of blocks of which one is −inf has to be −inf with gradient 0, where torch's mean
        # has NaN.
        return sample_mean(log_mean_exp(self.blocks(self.checked(log_w)), 1))

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        log_w = self.checked(log_w).detach()
        blocks = self.blocks(log_w)
        averages, weights = log_mean_exp_with_weights(blocks, 1)
        # One dead block makes the datum dead, the living blocks' samples included.
        weights = weights.masked_fill(blocks.isneginf().all(1).any(0), 0.0)
        c, c_minus_h = (
            None if x is None else self.sum_over_blocks(x, len(log_w)) / len(blocks)
            for x in (weights, weights * weights if path else None)
        )
        assert c is not None
        return Derivatives(sample_mean(averages), c, c_minus_h)


@final
@dataclass(frozen=True)
class MIWAE(BlockAverage):
    r"""Lower bound of log p(x): the mean over M groups of IWAE with the K/M samples of a group.

    .. math:: L = \frac1M\sum_{g=1}^M \log\frac MK\sum_{k\in g} w_k, \qquad
              c_k = \frac{\tilde w_{g,k}}M, \qquad h_k = \frac{\tilde w_{g,k}(1-\tilde w_{g,k})}M,

    :math:`\tilde w_{g,k}` summing to one within the group. Group g holds the samples gK/M, …, (g + 1)K/M − 1.

    Direction: lower. Expectation and bias: those of IWAE with K/M samples; M groups reduce the variance. Never above
    IWAE of all K for any fixed weights. M = 1 is IWAE, M = K the ELBO. Unbiased gradients: reparameterised and DReG.
    As ``proposal_bound`` beside ``bound=IWAE()`` it is PIWAE.

    Args:
        groups: M, which must divide K.

    Edge cases: a group whose log-weights are all −inf makes the value −inf, with gradient 0.

    Raises:
        ValueError: ``groups`` below 1 or fractional; on use, ``groups`` does not divide K.

    Reference: Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh (2018), Tighter Variational Bounds are Not
    Necessarily Better, arXiv:1802.04537.

    >>> import torch
    >>> MIWAE(2)(torch.tensor([0.0, 0.0, 2.0, 2.0]))
    tensor(1.)
    """

    groups: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", check_whole_number("groups", self.groups, 1, "1 is IWAE."))

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """One per group."""
        return self.groups

    def check_count(self, num_samples: int) -> None:
        if num_samples % self.groups:
            # Never 0: fewer samples than groups are raised to one for each.
            near = max(1, round(num_samples / self.groups)) * self.groups
            raise ValueError(
                f"{self!r} needs a number of samples that {self.groups} divides; got {num_samples}. Use num_samples="
                f"{near}, or groups that divide {num_samples}."
            )

    def blocks(self, x: Tensor) -> Tensor:
        # Consecutive samples, so that the groups are a view; samples are exchangeable, and any other cut has the same
        # law.
        return x.reshape(self.groups, len(x) // self.groups, *x.shape[1:])

    def sum_over_blocks(self, x: Tensor, count: int) -> Tensor:  # noqa: ARG002
        return x.flatten(0, 1)

    def leave_one_out(self, log_w: Tensor, geometric: bool = False) -> Tensor:
        groups = self.blocks(self.checked(log_w).detach())
        if groups.shape[1] == 1:  # no others in the group: those of all groups
            return super().leave_one_out(log_w, geometric)
        fill = leave_one_out_mean(groups, 1) if geometric else leave_one_out_log_mean_exp(groups, 1)
        return self.replace_each(log_w, fill.flatten(0, 1))

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        groups, fills = self.blocks(self.checked(log_w)), self.blocks(fill)
        if groups.shape[1] > 1:
            # Within each group at once: the function replaces along its first axis, which the samples of a group are
            # brought to. A group of one is replaced as a whole, and its fill is its new value.
            fills = power_mean_replacing_each(groups.transpose(0, 1), fills.transpose(0, 1), 1.0).transpose(0, 1)
        return (self._others(groups) + fills / self.groups).flatten(0, 1)

    def _others(self, groups: Tensor) -> Tensor:
        """``(M, 1, *batch)``: what all other groups add to the value."""
        averages = log_mean_exp(groups, 1).unsqueeze(1)
        if self.groups == 1:
            return torch.zeros_like(averages)
        # (Σ of the others)/M is their mean times (M − 1)/M: a mean left one out is had without subtracting from the
        # sum, in which a −inf block could not be subtracted again.
        return leave_one_out_mean(averages) * ((self.groups - 1) / self.groups)
