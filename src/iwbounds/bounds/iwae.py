"""The importance-weighted bound: the log of the mean weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from iwbounds.bounds.base import Direction
from iwbounds.bounds.power_mean import PowerMean

__all__ = ["IWAE"]


@final
@dataclass(frozen=True)
class IWAE(PowerMean):
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
    power = 1.0
    # What PowerMean would derive from the power, in each call anew: this is the bound of nearly every training step.
    smooth = True
    bounded_ratio = True
