r"""Diagnostics of importance sampling, functions of log-weights ``(K, *batch)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iwbounds.logspace.mean import finite_maximum, normalized_weights, promoted

__all__ = [
    "effective_sample_size",
    "generalized_pareto",
    "pareto_k",
    "pareto_k_of_largest",
    "pareto_k_threshold",
    "tail_size",
]


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
    # One more than the tail: the excesses are measured from the largest weight that is not in it.
    largest = log_w.topk(min(tail_size(len(log_w)) + 1, len(log_w)), dim=0).values
    return pareto_k_of_largest(largest).to(log_w.dtype)


def tail_size(count: int) -> int:
    """How many of ``count`` weights the Pareto distribution is fitted to.

    >>> tail_size(100), tail_size(10_000)
    (20, 300)
    """
    return min(count // 5, math.ceil(3 * math.sqrt(count)))


def pareto_k_threshold(count: int) -> float:
    r"""The largest :math:`\hat k` at which ``count`` weights can be trusted, :math:`\min(1 - 1/\log_{10} K, 0.7)`.

    Reference: Vehtari et al. (2024), arXiv:1507.02646, section 3.2.4.

    >>> pareto_k_threshold(100), pareto_k_threshold(100_000)
    (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(count), 0.7) if count > 1 else -math.inf


def pareto_k_of_largest(largest: Tensor) -> Tensor:
    """:func:`pareto_k` from the tail alone, in float64.

    Args:
        largest: ``(n + 1, *batch)`` log-weights in descending order: the n of the tail, and the next one, where it
            starts.
    """
    if largest.shape[0] < 6:
        # Two parameters from fewer than 5 points say nothing: NaN, which compares False with every threshold.
        return largest.new_full(largest.shape[1:], torch.nan, dtype=torch.float64)
    top = largest.double()
    # k does not depend on the scale of the weights: relative to the largest none overflows.
    top = (top - finite_maximum(top, 0)).flip(0)
    excess = top[1:].exp() - top[:1].exp()
    k, _ = generalized_pareto(excess)
    k = torch.where(excess[-1] <= excess[0], -torch.inf, k)  # the fit to a point mass means nothing
    return torch.where(top[0].isneginf() | top.isnan().any(0), torch.nan, k)


def generalized_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale, Zhang and Stephens' estimates from ascending excesses ``(n, *batch)``.

    The shape is shrunk towards 0.5 as PSIS does; the scale is that of the shape before.
    """
    n, largest = excess.shape[0], excess[-1]
    # The first quartile sets the scale of the grid; 0 where a quarter of the tail ties with its start.
    quartile = excess[(n + 2) // 4 - 1]
    quartile = torch.where(quartile > 0, quartile, excess.mean(0))
    m = 30 + int(math.sqrt(n))
    # Zhang and Stephens' quadrature points of θ, denser where the profile likelihood has its mass.
    steps = 1 - (m / (torch.arange(1, m + 1, dtype=excess.dtype, device=excess.device) - 0.5)).sqrt()
    steps = steps.reshape(m, *[1] * largest.ndim)
    theta = 1 / largest + steps / (3 * quartile)
    shapes = torch.log1p(-theta.unsqueeze(1) * excess).mean(1)
    log_likelihood = n * ((-theta / shapes).log() - shapes - 1)
    # The posterior mean of θ: smoother than its maximum, which need not exist.
    theta = (theta * normalized_weights(log_likelihood)).sum(0)
    shape = torch.log1p(-theta * excess).mean(0)
    # As if 10 further excesses had the shape 0.5: short tails are pulled to the middle of the range.
    return (n * shape + 10 * 0.5) / (n + 10), -shape / theta
