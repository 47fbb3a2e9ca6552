"""Rényi's bounds: logs of power means of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from iwbounds.bounds.base import Direction
from iwbounds.bounds.power_mean import PowerMean
from iwbounds.checks import check_real

__all__ = ["Renyi"]


@final
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
        ValueError: ``alpha`` is no number, or NaN.

    References: Li and Turner (2016), Rényi Divergence Variational Inference, arXiv:1602.02311, eq. 6. Daudel, Benton,
    Shi and Doucet (2023), Alpha-divergence Variational Inference Meets Importance Weighted Auto-Encoders,
    arXiv:2210.06226, eq. 7.

    >>> import torch
    >>> Renyi(0.0)(torch.tensor([0.0, 0.0])), Renyi(-torch.inf)(torch.tensor([0.0, 2.0]))
    (tensor(0.), tensor(2.))
    """

    alpha: float

    def __post_init__(self) -> None:
        hint = "Use alpha=0 for IWAE, alpha=1 for the ELBO."
        object.__setattr__(self, "alpha", check_real("alpha", self.alpha, hint))
        # Infinite orders have a meaning (the largest and the smallest weight); NaN has none, and would compare False
        # below.
        if math.isnan(self.alpha):
            raise ValueError(f"expected a real alpha or ±infinity; got NaN. {hint}")

    @property
    def power(self) -> float:
        """1 − α."""
        return 1.0 - self.alpha

    @property
    def direction(self) -> Direction:  # type: ignore[override]
        """Lower for α ≥ 0, none below."""
        return Direction.LOWER if self.alpha >= 0 else Direction.NONE
