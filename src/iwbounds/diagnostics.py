r"""Diagnostics of importance sampling, functions of log-weights ``(K, *batch)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iwbounds.logspace import finite_maximum, normalized_weights, promoted

__all__ = ["effective_sample_size", "pareto_k"]


def effective_sample_size(log_w: Tensor) -> Tensor:
    r"""Kish's effective sample size of each datum.

    .. math:: \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2} = \frac1{\sum_k \tilde w_k^2} \in [1, K]

    Args:
        log_w: ``(K, *batch)`` log-weights in nats.

    Returns:
        ``(*batch)``, in at least float32; 0 where all weights are zero.

    Reference: Kong (1992), A note on importance sampling using standardized weights, Chicago tech. report 348.

    >>> effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf]))
    tensor(2.)
    """
    weights = normalized_weights(log_w.detach())
    squares = weights.square().sum(0)
    return torch.where(squares == 0, 0.0, 1 / squares)


def pareto_k(log_w: Tensor) -> Tensor:
    r"""Shape :math:`\hat k` of a generalised Pareto distribution fitted to the largest weights of each datum.

    The tail holds the :math:`\min(K/5,\, 3\sqrt K)` largest weights; the fit is the Bayesian one of Zhang and Stephens
    with the weak prior of PSIS. Moments of order :math:`1/\hat k` and above do not exist: above 0.5 the variance of the
    weights is infinite, above 0.7 the evidence estimate cannot be trusted.

    Args:
        log_w: ``(K, *batch)`` log-weights in nats.

    Returns:
        ``(*batch)`` in at least float32. NaN where the tail would hold fewer than 5 weights (K < 25) or has dead
        weights; −inf where all tail weights are equal (no tail).

    References: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646;
    Zhang and Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution.

    >>> pareto_k(torch.zeros(100))
    tensor(-inf)
    """
    log_w = promoted(log_w.detach())
    count = log_w.shape[0]
    size = min(count // 5, math.ceil(3 * math.sqrt(count)))
    if size < 5:
        return log_w.new_full(log_w.shape[1:], torch.nan)
    top = (log_w - finite_maximum(log_w, 0)).double().topk(size + 1, dim=0).values.flip(0)
    excess = top[1:].exp() - top[:1].exp()
    k = _generalized_pareto_shape(excess)
    k = torch.where(excess[-1] <= excess[0], -torch.inf, k)  # the fit to a point mass means nothing
    return torch.where(top[0].isneginf() | top.isnan().any(0), torch.nan, k).to(log_w.dtype)


def _generalized_pareto_shape(excess: Tensor) -> Tensor:
    """Zhang and Stephens' estimate from ascending excesses ``(n, *batch)``, shrunk towards 0.5 as PSIS does."""
    n, largest = excess.shape[0], excess[-1]
    quartile = excess[(n + 2) // 4 - 1]
    quartile = torch.where(quartile > 0, quartile, excess.mean(0))
    m = 30 + int(math.sqrt(n))
    steps = 1 - (m / (torch.arange(1, m + 1, dtype=excess.dtype, device=excess.device) - 0.5)).sqrt()
    steps = steps.reshape(m, *[1] * largest.ndim)
    theta = 1 / largest + steps / (3 * quartile)
    shapes = torch.log1p(-theta.unsqueeze(1) * excess).mean(1)
    log_likelihood = n * ((-theta / shapes).log() - shapes - 1)
    theta = (theta * normalized_weights(log_likelihood)).sum(0)
    shape = torch.log1p(-theta * excess).mean(0)
    return (n * shape + 10 * 0.5) / (n + 10)
