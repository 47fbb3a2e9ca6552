"""The mean of the importance-weighted bounds of groups of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.blocks import BlockAverage
from iwbounds.logspace import (
    leave_one_out_log_mean_exp,
    leave_one_out_mean,
    log_mean_exp,
    power_mean_replacing_each,
)

__all__ = ["MIWAE"]


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

    >>> MIWAE(2)(torch.tensor([0.0, 0.0, 2.0, 2.0]))
    tensor(1.)
    """

    groups: int

    def __post_init__(self) -> None:
        if not isinstance(self.groups, int) or self.groups < 1:
            raise ValueError(f"expected a whole number of groups, 1 or more; got {self.groups}. 1 is IWAE.")

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """One per group."""
        return self.groups

    def check_count(self, num_samples: int) -> None:
        if num_samples % self.groups:
            near = max(1, round(num_samples / self.groups)) * self.groups
            raise ValueError(
                f"{self!r} needs a number of samples that {self.groups} divides; got {num_samples}. Use num_samples="
                f"{near}, or groups that divide {num_samples}."
            )

    def split(self, log_w: Tensor) -> Tensor:
        return log_w.reshape(self.groups, len(log_w) // self.groups, *log_w.shape[1:])

    def added_up(self, blocks: Tensor, log_w: Tensor) -> Tensor:
        return blocks.view_as(log_w)

    def leave_one_out(self, log_w: Tensor, geometric: bool = False) -> Tensor:
        groups = self.split(self.checked(log_w))
        if groups.shape[1] == 1:
            return super().leave_one_out(log_w, geometric)
        fill = leave_one_out_mean(groups, 1) if geometric else leave_one_out_log_mean_exp(groups, 1)
        return self.replace_each(log_w, fill.flatten(0, 1))

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        groups, fills = self.split(self.checked(log_w)), self.split(fill)
        if groups.shape[1] > 1:
            fills = power_mean_replacing_each(groups.transpose(0, 1), fills.transpose(0, 1), 1.0).transpose(0, 1)
        return (self._others(groups) + fills / self.groups).flatten(0, 1)

    def _others(self, groups: Tensor) -> Tensor:
        """``(M, 1, *batch)``: what all other groups add to the value."""
        averages = log_mean_exp(groups, 1).unsqueeze(1)
        if self.groups == 1:
            return torch.zeros_like(averages)
        return leave_one_out_mean(averages) * ((self.groups - 1) / self.groups)
