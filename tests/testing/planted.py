"""Mistakes that were found in published code, or are easily made, re-created in a few lines; and what is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

import iwbounds as iw
from iwbounds.testing import GaussianModel

MODEL = GaussianModel(
    torch.tensor([[1.0, 0.2, 0.0], [0.3, -1.0, 0.4], [0.5, 0.5, 1.0], [0.0, 0.3, -0.6]], dtype=torch.float64),
    torch.zeros(4, dtype=torch.float64),
    noise=0.7,
)
BATCH = 50


def simulate() -> tuple[Tensor, Tensor]:
    return MODEL.simulate(BATCH)


# Proposals whose log_prob is not what they sample from.


def with_log_prob(change: Callable[[Distribution, Tensor], Tensor]) -> Callable[[Tensor], iw.Proposal]:
    """The right proposal, its log_prob replaced."""

    def make_proposal(x: Tensor) -> iw.Proposal:
        q = MODEL.proposal(x)
        return iw.Proposal(q.rsample, lambda z: change(q, z))

    return make_proposal


right_proposal = with_log_prob(lambda q, z: q.log_prob(z))
density_omitted = with_log_prob(lambda q, z: torch.zeros_like(q.log_prob(z)))
density_halved = with_log_prob(lambda q, z: 0.5 * q.log_prob(z))
averaged_over_event = with_log_prob(lambda q, z: q.base_dist.log_prob(z).mean(-1))


# Bounds as functions of log-weights.


def missing_log_k(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0)


def batch_inside_log(log_w: Tensor) -> Tensor:
    """Sums the batch's log-weights before the log-mean-exp: a bound of the whole minibatch, shared out."""
    joint = log_w.flatten(1).sum(1)
    return (iw.log_mean_exp(joint) / log_w[0].numel()).expand(log_w.shape[1:])


def miwae_over_groups(log_w: Tensor, groups: int) -> Tensor:
    """Log-mean-exp over the groups, mean within them: the two axes exchanged."""
    return iw.log_mean_exp(log_w.reshape(groups, -1, *log_w.shape[1:]), 0).mean(0)


def miwae_divided_by_groups(log_w: Tensor, groups: int) -> Tensor:
    """Divides by M, the number of groups, where it should by K/M, the size of one."""
    return (log_w.reshape(groups, -1, *log_w.shape[1:]).logsumexp(1) - math.log(groups)).mean(0)


def miwae_over_batch(log_w: Tensor, groups: int) -> Tensor:
    """Splits the flattened tensor, so that groups run over data."""
    grouped = log_w.movedim(0, -1).reshape(groups, -1, *log_w.shape[1:])
    return iw.log_mean_exp(grouped, 1).mean(0)


def softmax_of_losses(log_w: Tensor) -> Tensor:
    """Weighs by the softmax of the positive losses: the worst sample counts most."""
    return ((-log_w).softmax(0) * log_w).sum(0)


def weighted_mean_of_logs(log_w: Tensor) -> Tensor:
    """Reports Σ w̃ log w, which is above log-mean-exp."""
    return (log_w.softmax(0) * log_w).sum(0)


def saturating(log_w: Tensor) -> Tensor:
    """Adds 1e-20 in place of a log-sum-exp: never below −46.05."""
    return (log_w.exp() + 1e-20).mean(0).log()


# Lower and upper estimators from a model and a proposal.


def log_weights(log_joint: Any, q: iw.Proposal, count: int) -> Tensor:
    z = q.sample((count,))
    return log_joint(z) - q.log_prob(z)


def lower_from(bound: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda log_joint, q, count: bound(log_weights(log_joint, q, count))


def right_upper(log_joint: Any, q: iw.Proposal, z: Tensor, count: int) -> Tensor:
    own = (log_joint(z.unsqueeze(0)) - q.log_prob(z.unsqueeze(0)))[:1]
    return iw.log_mean_exp(torch.cat([own, log_weights(log_joint, q, count)]))


def upper_without_posterior_sample(log_joint: Any, q: iw.Proposal, z: Tensor, count: int) -> Tensor:
    return iw.log_mean_exp(log_weights(log_joint, q, count + 1))


def mean_of_logs_as_upper(log_joint: Any, q: iw.Proposal, z: Tensor, count: int) -> Tensor:
    own = log_joint(z.unsqueeze(0)) - q.log_prob(z.unsqueeze(0))
    return torch.cat([own, log_weights(log_joint, q, count)]).mean(0)


def plug_in_cubo(log_joint: Any, q: iw.Proposal, z: Tensor, count: int) -> Tensor:
    return iw.CUBO(2)(log_weights(log_joint, q, count + 1))


# Gradient estimators.


class SquaredOnModel(iw.Gradient):
    """Squared weights on the model's parameters too."""

    pathwise = True

    def coefficients(self, bound: iw.Bound, log_w: Tensor) -> iw.Coefficients:
        _, path = bound.differentiate(log_w, path=True)[1:]
        return iw.Coefficients(model=path, path=path)


class SquareForAllBounds(iw.Gradient):
    """w̃² on the path of every bound: right for IWAE alone."""

    pathwise = True

    def coefficients(self, bound: iw.Bound, log_w: Tensor) -> iw.Coefficients:
        return iw.Coefficients(model=bound.differentiate(log_w).gradient, path=iw.normalized_weights(log_w).square())


class AsymptoticScore(iw.Gradient):
    """A score term with the coefficient of infinitely many samples: w̃ (1 − K w̃) / K in place of L − c."""

    def coefficients(self, bound: iw.Bound, log_w: Tensor) -> iw.Coefficients:
        c = bound.differentiate(log_w).gradient
        return iw.Coefficients(model=c, score=c - 1 / len(c))


class OppositeSign(iw.Gradient):
    """The score-function gradient with its sign turned."""

    def coefficients(self, bound: iw.Bound, log_w: Tensor) -> iw.Coefficients:
        right = iw.ScoreFunction().coefficients(bound, log_w)
        return iw.Coefficients(model=right.model, score=-right.score)


class SquaredCount(iw.Gradient):
    """(K w̃)² / K in place of α v + (1 − α) v² for Rényi."""

    pathwise = True

    def coefficients(self, bound: iw.Bound, log_w: Tensor) -> iw.Coefficients:
        v = bound.differentiate(log_w).gradient
        return iw.Coefficients(model=v, path=(len(v) * v).square() / len(v))


def dead_hook(log_joint: Any, q: Distribution, bound: iw.Bound, z: Tensor) -> Tensor:
    """DReG by a hook on a tensor that is not in the loss's graph: it never fires, and STL is left."""
    frozen = type(q)(*(getattr(q, name).detach() for name in ("loc", "scale")))
    log_w = log_joint(z) - frozen.log_prob(z)
    weights = log_w.detach().softmax(0)
    if z.requires_grad:
        z.view_as(z).register_hook(lambda grad: grad * weights)
    return (weights * log_w).sum(0)


def live_hook(log_joint: Any, q: Distribution, bound: iw.Bound, z: Tensor) -> Tensor:
    """The same with the hook where it belongs: DReG for IWAE."""
    frozen = type(q)(*(getattr(q, name).detach() for name in ("loc", "scale")))
    hooked = z.view_as(z)
    log_w = log_joint(hooked) - frozen.log_prob(hooked)
    weights = log_w.detach().softmax(0)
    hooked.register_hook(lambda grad: grad * weights)
    return (weights * log_w).sum(0)
