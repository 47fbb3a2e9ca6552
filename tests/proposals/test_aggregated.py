"""Aggregated posteriors: both sides of the mixture, and sums that keep or refuse their direction."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.proposals import AggregatedPosterior
from iwbounds.testing import assert_not_above, assert_upper_bound

MEANS = torch.tensor([-1.5, 0.2, 1.0], dtype=torch.float64)
LOWER, UPPER, NONE = iw.Direction.LOWER, iw.Direction.UPPER, iw.Direction.NONE


def components(index: Tensor) -> Normal:
    return Normal(MEANS[index], torch.tensor(0.7, dtype=torch.float64))


def log_mixture(z: Tensor) -> Tensor:
    return components(torch.arange(3)).log_prob(z.unsqueeze(-1)).logsumexp(-1) - math.log(3)


def test_both_sides_pass_sequential_tests_and_are_exact_for_one_component() -> None:
    """False alarms below 1e-6."""
    prior = AggregatedPosterior(components, 3, num_aux=2, event_dim=0)
    z, index = prior.rsample((100, 50))
    assert_not_above(prior.log_prob_lower(z), log_mixture(z))
    assert_upper_bound(prior.log_prob_upper(z, index), log_mixture(z))
    single = AggregatedPosterior(components, 1, num_aux=2, event_dim=0)
    torch.testing.assert_close(single.log_prob_lower(z), components(torch.tensor(0)).log_prob(z))


def test_more_components_tighten_both_sides_in_expectation() -> None:
    """200 000 draws each: the differences are above 20 standard errors."""
    prior = AggregatedPosterior(components, 3, num_aux=1, event_dim=0)
    z, index = prior.rsample((200_000,))
    uppers = [(prior.log_prob_upper(z, index, k) - log_mixture(z)).mean().item() for k in (0, 1, 4)]
    lowers = [(prior.log_prob_lower(z, k) - log_mixture(z)).mean().item() for k in (5, 2, 1)]
    assert all(high > low + 0.01 for high, low in itertools.pairwise([*uppers, 0.0, *lowers]))


def test_a_subsampled_prior_keeps_every_multi_sample_bound_lower() -> None:
    """x | z ~ N(z, 1) with the mixture as prior: log p(x) is known. False alarms below 1e-6."""
    prior = AggregatedPosterior(components, 3, num_aux=2, event_dim=0)
    x = torch.tensor(0.4, dtype=torch.float64)
    log_evidence = Normal(MEANS, math.sqrt(1 + 0.49)).log_prob(x).logsumexp(0) - math.log(3)
    q = Normal(torch.zeros(20_000, dtype=torch.float64), 1.2)
    estimate = iw.estimate(lambda z: prior.log_prob_lower(z) + Normal(z, 1.0).log_prob(x), q, num_samples=4)
    assert_not_above(estimate.value, log_evidence)
    p_hat = (estimate.value - log_evidence).exp()
    assert p_hat.mean().item() == pytest.approx(1.0, abs=6 * p_hat.std().item() / math.sqrt(20_000))


@pytest.mark.parametrize(
    "call",
    [
        lambda: AggregatedPosterior(components, 0, 2),
        lambda: AggregatedPosterior(components, 3, -1),
        lambda: AggregatedPosterior(components, 3, 0, event_dim=0).log_prob_lower(torch.zeros(4)),
    ],
)
def test_mistakes(call) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        call()
