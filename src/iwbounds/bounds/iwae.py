"""The importance-weighted bound: the log of the mean weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Direction
from iwbounds.logspace import (
    leave_one_out_log_mean_exp,
    log_mean_exp,
    log_mean_exp_with_weights,
    normalized_weights,
    power_mean_replacing_each,
    shares,
)

__all__ = ["IWAE"]


@dataclass(frozen=True)
class IWAE(Bound):
    r"""Lower bound of log p(x): the log of an unbiased estimate of p(x) from K samples.

    .. math:: L = \log\frac1K\sum_k w_k, \qquad c_k = \tilde w_k, \qquad h_k = \tilde w_k(1-\tilde w_k)

    Direction: lower, and non-decreasing in K in expectation. Bias: −Var(w)/(2 K p(x)²) + O(K⁻²). K = 1 is the ELBO.
    Unbiased gradients: reparameterised and DReG; STL is biased for K > 1.

    Edge cases: a −inf log-weight has coefficient 0; all −inf give −inf with gradient 0.

    Reference: Burda, Grosse and Salakhutdinov (2015), Importance Weighted Autoencoders, arXiv:1509.00519, eq. 8.

    >>> import torch
    >>> IWAE()(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]))
    tensor(-0.6931)
    """

    direction = Direction.LOWER
    power_mean = (1.0, 0.0)

    def __call__(self, log_w: Tensor) -> Tensor:
        return log_mean_exp(self.checked(log_w))

    def gradient(self, log_w: Tensor) -> Tensor:
        return normalized_weights(log_w)

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        w = normalized_weights(log_w)
        return w, w - w * w

    def path_weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        w = normalized_weights(log_w)
        return w, w * w

    def evaluate(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        return log_mean_exp_with_weights(log_w.detach())

    def evaluate_path(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, w = log_mean_exp_with_weights(log_w.detach())
        return value, w, w * w

    def leave_one_out(self, log_w: Tensor, geometric: bool = False) -> Tensor:
        # Replacing a weight by the mean of the others leaves that mean: IWAE of the other K - 1.
        return super().leave_one_out(log_w, geometric) if geometric else leave_one_out_log_mean_exp(log_w)

    def advantages(self, log_w: Tensor, geometric: bool = False) -> tuple[Tensor, Tensor]:
        if geometric:
            return super().advantages(log_w, geometric)
        weights, log_rest, dead = shares(log_w)
        return weights, (math.log1p(-1 / len(log_w)) - log_rest).masked_fill_(dead, -torch.inf)

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        return power_mean_replacing_each(log_w, fill, 1.0)
