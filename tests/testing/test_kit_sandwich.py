"""The sandwich on latents of every kind, the supports that it refuses, and the budget of data sets that it keeps."""

import math

import pytest
import torch
from torch.distributions import Categorical, Exponential, Normal, Uniform

import iwbounds as iw
from iwbounds.testing import FiniteModel, GaussianModel, assert_sandwich

GAUSSIAN = GaussianModel(torch.ones(2, 1), torch.zeros(2), 0.7)


def test_one_data_set_at_a_time_without_a_batch():
    assert_sandwich(lambda: GAUSSIAN.simulate(), GAUSSIAN.log_joint, GAUSSIAN.proposal, max_datasets=100)


def test_no_more_data_sets_are_simulated_than_asked_for():
    calls = []

    def simulate():
        calls.append(0)
        return GAUSSIAN.simulate(30)

    assert_sandwich(simulate, GAUSSIAN.log_joint, GAUSSIAN.proposal, max_datasets=100)
    assert len(calls) == math.ceil(100 / 30)


def test_a_constant_factor_of_the_joint_does_not_matter():
    shifted = lambda x, z: GAUSSIAN.log_joint(x, z) + 1234.5  # noqa: E731
    assert_sandwich(lambda: GAUSSIAN.simulate(50), shifted, GAUSSIAN.proposal, max_datasets=500)


def mixed_simulate():
    index = Categorical(torch.ones(3)).sample((40,))
    z = torch.randn(40)
    return z + index + torch.randn(40), {"z": z, "index": index}


def mixed_log_joint(x, latents):
    return Normal(0.0, 1.0).log_prob(latents["z"]) + Normal(latents["z"] + latents["index"], 1.0).log_prob(x)


def mixed_proposal(x, factor=1.0):
    q, p = Normal(x / 3, 1.0), Categorical(logits=x.unsqueeze(-1) * torch.arange(3.0) / 2)
    return iw.Proposal(
        lambda shape: {"z": q.rsample(shape), "index": p.sample(shape)},
        lambda z: {"z": q.log_prob(z["z"]), "index": factor * p.log_prob(z["index"])},
        reparameterized={"z": True, "index": False},
    )


def test_latents_of_several_parts_discrete_ones_among_them():
    assert_sandwich(mixed_simulate, mixed_log_joint, mixed_proposal, max_datasets=1000)
    with pytest.raises(AssertionError, match="is not what simulate, or the proposal, draws from"):
        assert_sandwich(mixed_simulate, mixed_log_joint, lambda x: mixed_proposal(x, factor=-1.0), max_datasets=2000)


def test_a_joint_that_is_not_the_simulators_is_refuted():
    table = 2 * torch.randn(3, 5)
    model, other = FiniteModel(torch.zeros(3), table), FiniteModel(torch.zeros(3), table / 2)
    with pytest.raises(AssertionError, match="tells the posterior sample"):
        assert_sandwich(lambda: model.simulate(50), other.log_joint, other.proposal)


def exponential_simulate():
    z = Exponential(torch.ones(20)).sample()
    return z + 0.3 * torch.randn(20), z


def exponential_log_joint(x, z):
    return torch.where(z > 0, -z, -torch.inf) + Normal(z, 0.3).log_prob(x)


def test_draws_outside_the_models_support_are_dead_weights_not_errors():
    assert_sandwich(exponential_simulate, exponential_log_joint, lambda x: Normal(x, 0.4), max_datasets=1000)


def test_a_proposal_whose_support_is_too_small_is_refused():
    q = lambda x: Uniform(torch.zeros(20), 0.5, validate_args=False)  # noqa: E731
    with pytest.raises(AssertionError, match="support is too small"):
        assert_sandwich(exponential_simulate, exponential_log_joint, q)


def test_a_simulator_outside_the_models_support_is_refused():
    with pytest.raises(AssertionError, match="simulate does not draw from it"):
        assert_sandwich(lambda: (torch.zeros(5), torch.randn(5)), exponential_log_joint, lambda x: Normal(x, 0.4))


def test_nan_is_an_error_not_a_verdict():
    broken = lambda x, z: GAUSSIAN.log_joint(x, z) * torch.nan  # noqa: E731
    with pytest.raises(ValueError, match="NaN"):
        assert_sandwich(lambda: GAUSSIAN.simulate(5), broken, GAUSSIAN.proposal)
    with pytest.raises(ValueError, match="NaN"):
        assert_sandwich(
            lambda: GAUSSIAN.simulate(5),
            GAUSSIAN.log_joint,
            GAUSSIAN.proposal,
            lower=lambda log_joint, q, count: torch.full((5,), torch.nan),
        )


def test_estimates_of_the_engine_serve_as_the_lower_side():
    def lower(log_joint, q, count):
        return iw.estimate(log_joint, q, iw.Renyi(0.5), num_samples=count)

    assert_sandwich(lambda: GAUSSIAN.simulate(50), GAUSSIAN.log_joint, GAUSSIAN.proposal, max_datasets=500, lower=lower)


def test_the_callers_generator_and_gradient_mode_are_left_alone():
    state = torch.get_rng_state()
    assert_sandwich(lambda: GAUSSIAN.simulate(5), GAUSSIAN.log_joint, GAUSSIAN.proposal, max_datasets=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
