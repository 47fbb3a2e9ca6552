"""The evidence lower bound: the mean of the log-weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from iwbounds.bounds.base import Direction
from iwbounds.bounds.power_mean import PowerMean

__all__ = ["ELBO"]


@final
@dataclass(frozen=True)
class ELBO(PowerMean):
    r"""Lower bound of log p(x): the evidence lower bound, averaged over K samples.

    .. math:: L = \frac1K\sum_k \log w_k, \qquad c_k = \frac1K, \qquad h_k = 0

    Direction: lower, for every K (Jensen). Bias: −KL(q‖p(z|x)), whatever K is; more samples only reduce the variance.
    Every gradient estimator is unbiased, STL included.

    Edge cases: any −inf log-weight makes the value −inf, with gradient 0.

    Reference: Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114, eq. 3.

    >>> import torch
    >>> ELBO()(torch.tensor([1.0, 3.0]))
    tensor(2.)
    """

    direction = Direction.LOWER
    power = 0.0
