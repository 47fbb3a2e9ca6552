"""The evidence lower bound: the mean of the log-weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Direction
from iwbounds.logspace import leave_one_out_mean, sample_mean, uniform_weights

__all__ = ["ELBO"]


@dataclass(frozen=True)
class ELBO(Bound):
    r"""Lower bound of log p(x): the evidence lower bound, averaged over K samples.

    .. math:: L = \frac1K\sum_k \log w_k, \qquad c_k = \frac1K, \qquad h_k = 0

    Direction: lower, for every K (Jensen). Bias: −KL(q‖p(z|x)), whatever K is; more samples only reduce the variance.
    Every gradient estimator is unbiased, STL included.

    Edge cases: any −inf log-weight makes the value −inf, with gradient 0.

    Reference: Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114, eq. 3.

    >>> ELBO()(torch.tensor([1.0, 3.0]))
    tensor(2.)
    """

    direction = Direction.LOWER
    power_mean = (1.0, 1.0)

    def __call__(self, log_w: Tensor) -> Tensor:
        return sample_mean(self.checked(log_w))

    def gradient(self, log_w: Tensor) -> Tensor:
        return uniform_weights(log_w)

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        c = uniform_weights(log_w)
        return c, torch.zeros_like(c)

    def path_weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        c = uniform_weights(log_w)
        return c, c

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        count = log_w.shape[0]
        return leave_one_out_mean(log_w) * ((count - 1) / count) + fill / count
