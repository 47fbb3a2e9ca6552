r"""Means of log-weights under tempered weights, :math:`S_\beta=\sum_k v_k x_k`.

Here :math:`v=\operatorname{softmax}(\beta x)`. They are taken about the maximum m,
:math:`S_\beta = m + \sum_k v_k (x_k - m)`, so that nothing is lost to a large m and a spread of 1e-8 keeps its digits.
With :math:`g_k=\beta(x_k-S_\beta)`,

.. math:: \frac{\partial S_\beta}{\partial x_k} = v_k(1+g_k), \qquad
          \frac{\partial^2 S_\beta}{\partial x_k^2} = \beta v_k\bigl(1+(1-2v_k)(1+g_k)\bigr).

A dead weight has v = 0, and 0·(−inf) is 0, for β > 0; for β = 0 callers treat it apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iwbounds.logspace.leave_one_out import plain_leave_one_out
from iwbounds.logspace.mean import finite_maximum, normalized_weights, promoted

__all__ = ["tempered_derivatives", "tempered_mean", "tempered_mean_replacing_each"]


def _pieces(x: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """v, x − m with 0 for dead weights, and Σ v (x − m)."""
    shifted, dead = x - finite_maximum(x, 0), x.detach().isneginf()
    alive = shifted.masked_fill(dead, 0.0)
    v = normalized_weights((beta * alive).masked_fill(dead, -torch.inf))
    return v, alive, (v * alive).sum(0)


def tempered_mean(x: Tensor, beta: float) -> Tensor:
    """``S_β − max x`` along axis 0; over the living weights alone (0 where none lives)."""
    return _pieces(promoted(x), beta)[2]


def tempered_derivatives(x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Gradient c of S_β, and c − h without cancellation, each of the shape of ``x``."""
    v, alive, mean = _pieces(promoted(x), beta)
    tilt = 1.0 + beta * (alive - mean)
    return v * tilt, v * (tilt * ((1.0 - beta) + 2.0 * beta * v) - beta)


def tempered_mean_replacing_each(x: Tensor, fill: Tensor, beta: float) -> Tensor:
    """S_β with x_k replaced by ``fill[k]``, for every k in O(K); K ≥ 2, β > 0."""
    x = promoted(x)
    log_others = plain_leave_one_out(beta * x) + math.log(x.shape[0] - 1)
    share = torch.sigmoid(beta * fill - log_others)
    others = _means_of_others(x, beta)
    return torch.where(share == 0, 0.0, share * fill) + torch.where(share == 1, 0.0, (1.0 - share) * others)


def _means_of_others(x: Tensor, beta: float) -> Tensor:
    """S_β of all other samples, for every sample."""
    top = x.argmax(0, keepdim=True)
    is_top = torch.zeros_like(x, dtype=torch.bool).scatter(0, top, True)
    v, alive, _ = _pieces(x, beta)
    # All but the largest: the largest stays, so what remains of the sum of weights is at least v_top >= 1/K.
    kept = 1.0 - v.masked_fill(is_top, 0.0)
    with_top = finite_maximum(x, 0) + ((v * alive).sum(0) - v * alive) / kept
    rest = x.masked_fill(is_top, -torch.inf)
    return torch.where(is_top, finite_maximum(rest, 0) + tempered_mean(rest, beta), with_top)
