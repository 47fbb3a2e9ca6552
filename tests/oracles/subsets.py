"""Averages over every subset by enumeration, in float64: slow, obvious, differentiable by autograd."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor


def subset_average(log_w: Tensor, size: int) -> Tensor:
    """Average over all sets of ``size`` of the K samples of the log-mean-exp of their log-weights."""
    sets = torch.tensor(list(combinations(range(log_w.shape[0]), size)))
    chosen = log_w.double()[sets]
    maximum = chosen.detach().amax(1, keepdim=True)
    log_means = maximum.squeeze(1) + (chosen - maximum).exp().mean(1).log()
    return log_means.mean(0)


def jackknife(log_w: Tensor, order: int) -> Tensor:
    """The jackknife of order ``order``: its coefficients times the averages over the sets of K, K − 1, … samples."""
    count = log_w.shape[0]
    terms = [coefficient(count, order, j) * subset_average(log_w, count - j) for j in range(order + 1)]
    return torch.stack(terms).sum(0)


def coefficient(count: int, order: int, left_out: int) -> float:
    """c_j of Nowozin's definition."""
    sign = (-1) ** left_out
    return sign * (count - left_out) ** order / (math.factorial(order - left_out) * math.factorial(left_out))


def first_two_derivatives(values: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and diagonal of the Hessian of per-datum ``values`` with respect to ``log_w``, by autograd."""
    (c,) = torch.autograd.grad(values.sum(), log_w, create_graph=True)
    if not c.requires_grad:
        return c, torch.zeros_like(c)
    rows = [torch.autograd.grad(row.sum(), log_w, retain_graph=True)[0][k] for k, row in enumerate(c)]
    return c.detach(), torch.stack(rows)
