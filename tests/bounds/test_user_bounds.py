"""Bounds that a user writes: only ``__call__``, and every estimator works or says why it does not."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw


@dataclass(frozen=True)
class Mixture(iw.Bound):
    """Half the ELBO, half Rényi's bound: smooth."""

    direction = iw.Direction.LOWER

    def __call__(self, log_w):
        return 0.5 * log_w.mean(0) + 0.5 * iw.Renyi(0.3)(log_w)


@dataclass(frozen=True)
class MedianOfMeans(iw.Bound):
    """Log of the median of three groups' mean weights: its gradient jumps where the median passes to another group."""

    smooth = False

    def __call__(self, log_w):
        return iw.log_mean_exp(self.checked(log_w).view(3, -1, *log_w.shape[1:]), 1).median(0).values


def _fit(bound, gradient, steps=250):
    """Fit q = N(loc, e^log_scale) to the posterior N(1, 1/2) of one observation 2 under a N(0, 1) prior."""
    loc, log_scale = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([loc, log_scale], lr=0.03)
    for _ in range(steps):
        estimate = iw.estimate(
            lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(2.0)),
            Normal(loc, log_scale.exp()),
            bound,
            gradient,
            num_samples=12,
        )
        optimizer.zero_grad()
        (-estimate.value.mean()).backward()
        optimizer.step()
    return loc.item(), log_scale.exp().item()


def test_derivatives_of_a_users_bound_are_the_mixture_of_those_of_its_parts():
    log_w = torch.randn(5, 3, dtype=torch.float64)
    found = Mixture().differentiate(log_w, path=True)[1:]
    parts = zip(
        iw.ELBO().differentiate(log_w, path=True)[1:], iw.Renyi(0.3).differentiate(log_w, path=True)[1:], strict=True
    )
    for channel, (of_elbo, of_renyi) in zip(found, parts, strict=True):
        torch.testing.assert_close(channel, 0.5 * of_elbo + 0.5 * of_renyi)


def _divergence(loc, scale):
    """KL from N(loc, scale²) to the posterior; 1.15 at the start."""
    return math.log(0.5**0.5 / scale) + scale**2 + (loc - 1) ** 2 - 0.5


def test_a_smooth_bound_of_a_user_trains_to_the_posterior_with_dreg():
    """DReG has no variance at the posterior, so the fit is as good as the optimiser."""
    assert _divergence(*_fit(Mixture(), iw.DReG(), steps=300)) < 1e-4


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), None], ids=["Reparameterized", "default"])
def test_a_bound_that_is_not_smooth_trains_with_the_reparameterised_gradient(gradient):
    assert _divergence(*_fit(MedianOfMeans(), gradient, steps=400)) < 0.3


def test_dreg_refuses_a_bound_that_is_not_smooth_and_says_what_to_use():
    with pytest.raises(ValueError, match=r"MedianOfMeans\(\) says\s+smooth = False.*Reparameterized"):
        _fit(MedianOfMeans(), iw.DReG(), steps=1)
