"""The χ upper bound's plug-in estimate, and the estimator in exp-space that is unbiased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.bounds.power_mean import PowerMean
from iwbounds.checks import check_real
from iwbounds.logspace.mean import promoted

__all__ = ["CUBO"]


@final
@dataclass(frozen=True)
class CUBO(PowerMean):
    r"""The χ upper bound's plug-in estimate, which bounds nothing at finite K.

    .. math:: L = \frac1n\log\frac1K\sum_k w_k^n, \qquad c_k = v_k, \qquad h_k = n\,v_k(1-v_k), \qquad
              v = \operatorname{softmax}(n\log w)

    Direction: **none**. :math:`\frac1n\log E[w^n]` is at least log p(x) for n ≥ 1, and L approaches it as K grows; but
    the logarithm of an average is below the logarithm of the expectation, and E[L] can lie below log p(x): at K = 1 it
    is the ELBO. What is unbiased is the average itself, :meth:`exp_space`. It is ``Renyi(1 - n)``; n = 1 is IWAE.
    Unbiased gradients, of its own expectation: reparameterised and DReG.

    Args:
        order: n ≥ 1, a finite number.

    Edge cases: a −inf log-weight has coefficient 0; all −inf give −inf with gradient 0.

    Raises:
        ValueError: ``order`` below 1, infinite or NaN.

    Reference: Dieng, Tran, Ranganath, Paisley and Blei (2017), Variational Inference via χ-Upper Bound Minimization,
    arXiv:1611.00328.

    >>> CUBO(2)(torch.tensor([0.0, 0.0])), CUBO(2).exp_space(torch.tensor([0.0, 0.0]), log_scale=-1.0)
    (tensor(0.), tensor(7.3891))
    """

    order: float
    direction = Direction.NONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", check_real("order", self.order, "2 is the usual choice."))
        if not (self.order >= 1 and math.isfinite(self.order)):
            raise ValueError(f"expected a finite order of at least 1; got {self.order}. 2 is the usual choice.")

    @property
    def power(self) -> float:
        """The order."""
        return float(self.order)

    def exp_space(self, log_w: Tensor, log_scale: float | Tensor = 0.0) -> Tensor:
        r"""Unbiased estimate of :math:`E[(w/s)^n]`, which is at least :math:`(p(x)/s)^n`.

        .. math:: \frac1K\sum_k \Bigl(\frac{w_k}{s}\Bigr)^n = e^{n\,(L-\log s)}

        Its reparameterised gradient, by autograd, is unbiased too. To minimise it over the proposal is to minimise the
        χ upper bound.

        Args:
            log_w: ``(K, *batch)`` log-weights in nats.
            log_scale: log s, a constant that keeps the powers in range, such as a running maximum of *earlier*
                log-weights. If it depended on these weights the estimate would be biased.

        Returns:
            ``(*batch)``, differentiable; at least float32.

        Edge cases: a −inf log-weight adds 0, with gradient 0. Overflows to +inf above about n log(w/s) = 88 in float32.
        """
        log_w = promoted(log_w)
        # No maximum is taken out: it would depend on these weights, and the mean would no longer be unbiased.
        return torch.exp(self.power * (log_w - log_scale)).mean(0)
