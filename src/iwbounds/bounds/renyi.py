"""Rényi's bounds: logs of power means of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Direction
from iwbounds.logspace import log_power_mean, power_mean_replacing_each, power_weights

__all__ = ["PowerMean", "Renyi"]


class PowerMean(Bound):
    r"""Log of the power mean of the weights, :math:`\frac1p\log\frac1K\sum_k w_k^p`; ``power`` says which.

    .. math:: c_k = v_k = \operatorname{softmax}(p \log w)_k, \qquad h_k = p\, v_k(1 - v_k)

    At ±infinity it is the largest or smallest log-weight, whose gradient jumps: ``smooth`` is False.
    """

    @property
    def power(self) -> float:
        """p."""
        raise NotImplementedError

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """False at infinite power."""
        return math.isfinite(self.power)

    @property
    def power_mean(self) -> tuple[float, float] | None:  # type: ignore[override]
        """(p, 0); None at infinite power."""
        return (self.power, 0.0) if self.smooth else None

    def __call__(self, log_w: Tensor) -> Tensor:
        return log_power_mean(self.checked(log_w), self.power)

    def gradient(self, log_w: Tensor) -> Tensor:
        return power_weights(log_w, self.power) if self.smooth else super().gradient(log_w)

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        v = self.gradient(log_w)
        return v, self.power * (v - v * v) if self.smooth else torch.zeros_like(v)

    def path_weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        v = self.gradient(log_w)
        return v, v * ((1 - self.power) + self.power * v) if self.smooth else v

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        if self.power == 0 or not self.smooth:
            return super().replace_each(log_w, fill)
        return power_mean_replacing_each(log_w, fill, self.power)


@dataclass(frozen=True)
class Renyi(PowerMean):
    r"""Lower bound of log p(x) for α ≥ 0: the variational Rényi (VR-IWAE) bound.

    .. math:: L = \frac{1}{1-\alpha}\log\frac1K\sum_k w_k^{1-\alpha}, \qquad c_k = v_k, \qquad
              h_k = (1-\alpha)\,v_k(1-v_k), \qquad v = \operatorname{softmax}((1-\alpha)\log w)

    Non-increasing in α for any fixed weights: α = 0 is IWAE, α = 1 the ELBO, α → −∞ the largest log-weight (VR-max),
    α → +∞ the smallest. Direction: lower for α ≥ 0, none for α < 0. Bias: O(1/K) around the K = ∞ bound, which lies
    below log p(x) for α > 0. Unbiased gradients: reparameterised and DReG; the infinite α are not smooth, so DReG
    refuses them.

    Args:
        alpha: the order, any real number or ±infinity.

    Edge cases: for α ≥ 1, any −inf log-weight makes the value −inf, with gradient 0.

    Raises:
        ValueError: ``alpha`` is NaN.

    References: Li and Turner (2016), Rényi Divergence Variational Inference, arXiv:1602.02311, eq. 6. Daudel, Benton,
    Shi and Doucet (2023), Alpha-divergence Variational Inference Meets Importance Weighted Auto-Encoders,
    arXiv:2210.06226, eq. 7.

    >>> Renyi(0.0)(torch.tensor([0.0, 0.0])), Renyi(-torch.inf)(torch.tensor([0.0, 2.0]))
    (tensor(0.), tensor(2.))
    """

    alpha: float

    def __post_init__(self) -> None:
        if math.isnan(self.alpha):
            raise ValueError("expected a real alpha or ±infinity; got NaN. Use alpha=0 for IWAE, alpha=1 for the ELBO.")

    @property
    def power(self) -> float:
        return 1.0 - self.alpha

    @property
    def direction(self) -> Direction:  # type: ignore[override]
        """Lower for α ≥ 0, none below."""
        return Direction.LOWER if self.alpha >= 0 else Direction.NONE
