"""Mutants of the engine that no test used to notice."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

import iwbounds as iw
from iwbounds.engine.resampling import copy_probabilities


def test_a_proposal_bound_trains_a_learned_baseline_too():
    level = torch.zeros(3, requires_grad=True)
    q = Bernoulli(logits=torch.zeros(3, requires_grad=True))
    gradient = iw.ScoreFunction(lambda: level)
    iw.estimate(lambda z: -z, q, gradient=gradient, proposal_bound=iw.ELBO(), num_samples=4).value.sum().backward()
    assert (level.grad != 0).all()


@pytest.mark.parametrize("options", [{}, {"max_live_samples": 12}, {"chunk_size": 2}], ids=str)
def test_batches_of_two_axes_are_averaged_over_both(options):
    torch.manual_seed(0)
    x, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    loc = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def model(x):
        return lambda z: -(z - x).square(), Normal(loc.expand_as(x), 1.0)

    samples = loc + z
    (expected,) = torch.autograd.grad(-iw.estimate(*model(x), samples=samples).value.mean(), loc)
    iw.accumulate(model, x, samples=loc + z, **options)
    torch.testing.assert_close(loc.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channel", ["model", "path", "score"])
def test_a_sample_is_likely_where_any_of_its_coefficients_is_large(channel):
    small, large = torch.tensor([[0.1], [0.1], [0.1]]), torch.tensor([[0.1], [-5.0], [0.1]])
    channels = dict.fromkeys(("model", "path", "score"), small) | {channel: large}
    p = copy_probabilities(iw.Coefficients(**channels)).flatten()
    torch.testing.assert_close(p, torch.tensor([0.1, 5.0, 0.1], dtype=torch.float64) / 5.2)


def test_a_dead_datum_adds_no_resampling_variance():
    log_w = torch.tensor([[0.0, -torch.inf], [1.0, -torch.inf], [-1.0, -torch.inf]])
    coefficients = iw.DReG().coefficients(iw.IWAE(), log_w)
    found = iw.resampling_variance(coefficients, 2)
    assert found[0] > 0
    assert found[1] == 0


def test_a_scaled_likelihood_leaves_a_direction_to_the_elbo_alone():
    q = Independent(Normal(torch.zeros(3), 1.0), 1)
    for bound, direction in ((iw.ELBO(), "lower"), (iw.IWAE(), "none"), (iw.Renyi(0.5), "none"), (iw.MIWAE(2), "none")):
        estimate = iw.estimate(lambda z: -z.square().sum(-1), q, bound, num_samples=4, scaled_likelihood=True)
        assert estimate.direction.value == direction


def test_kept_samples_are_what_the_log_joint_received():
    seen = []
    q = Normal(torch.zeros(3, requires_grad=True), 1.0)
    for options in ({}, {"chunk_size": 3}, {"backward_samples": 2}):
        seen.clear()
        estimate = iw.estimate(lambda z: seen.append(z) or -z.square(), q, num_samples=8, keep_samples=True, **options)
        assert torch.equal(torch.cat(seen)[:8].detach(), estimate.samples)
        assert not estimate.samples.requires_grad
        assert estimate.resample(5).shape == (5, 3)
        torch.testing.assert_close(estimate.weights.sum(0), torch.ones(3))
        mean = (estimate.weights * estimate.samples).sum(0).double()
        torch.testing.assert_close(estimate.expectation(lambda z: z).mean, mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="keep_samples=True"):
        iw.estimate(lambda z: -z.square(), q).resample(3)


def test_an_estimate_knows_whether_its_certificate_may_bet():
    q = Normal(torch.zeros(3), 1.0)
    estimate = iw.estimate(q.log_prob, q, num_samples=100)
    assert (estimate.lower_confidence_bound() <= 0).all()
    dependent = iw.Proposal(q.rsample, q.log_prob, independent=False)
    with pytest.raises(ValueError, match="independent"):
        iw.estimate(q.log_prob, dependent, num_samples=100).lower_confidence_bound()
