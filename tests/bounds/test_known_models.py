"""IWAE on models whose expected bound is known, by quadrature and by simulation."""

import math

import pytest
import torch

import iwbounds as iw
from tests.oracles import known_weights

REPLICATIONS = 20_000
FOUR_STANDARD_ERRORS = 4.0
"""A right estimator fails one such test with probability 6e-5; a bias of 6 standard errors is found with 98 %.
At K = 50 on EXP that is 6 sqrt(0.0202 / 20000) = 0.006 nats; a missing log K would be 3.9."""


@pytest.mark.parametrize(
    ("count", "value"), [(1, -0.5), (5, -0.135545), (16, -0.0480876), (64, -0.0129409)], ids=lambda v: str(v)
)
def test_quadrature_reproduces_the_lognormal_table(count, value):
    assert known_weights.lognormal_iwae(1.0, count) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("count", [1, 5, 50], ids=lambda k: f"K={k}")
def test_iwae_on_exponential_weights(count):
    log_w = known_weights.exponential_log_weights((count, REPLICATIONS), torch.Generator().manual_seed(1))
    mean, variance = known_weights.exponential_iwae(count)
    found = iw.IWAE()(log_w)
    assert abs(found.mean() - mean) < FOUR_STANDARD_ERRORS * math.sqrt(variance / REPLICATIONS)
    assert found.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("count", [1, 5, 50], ids=lambda k: f"K={k}")
@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_iwae_on_lognormal_weights(count, variance):
    log_w = known_weights.lognormal_log_weights(variance, (count, REPLICATIONS), torch.Generator().manual_seed(2))
    found = iw.IWAE()(log_w)
    error = found.std() / math.sqrt(REPLICATIONS)
    assert abs(found.mean() - known_weights.lognormal_iwae(variance, count)) < FOUR_STANDARD_ERRORS * error


@pytest.mark.parametrize("count", [1, 5, 50], ids=lambda k: f"K={k}")
def test_estimate_of_a_model_with_lognormal_weights(count):
    """The same through the engine: posterior N(0, 1), proposal N(s, 1), log p(x) = 0."""
    prior, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(torch.ones(REPLICATIONS), 1.0)
    with torch.no_grad():
        found = iw.estimate(prior.log_prob, q, num_samples=count).value
    error = found.std() / math.sqrt(REPLICATIONS)
    assert abs(found.mean() - known_weights.lognormal_iwae(1.0, count)) < FOUR_STANDARD_ERRORS * error
