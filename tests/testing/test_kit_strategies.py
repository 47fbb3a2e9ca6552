"""What the strategies promise: hard log-weights, axes that differ, and evidence that is exact."""

import pytest
import torch
from hypothesis import find, given, settings
from torch.distributions import Categorical

import iwbounds as iw
from iwbounds.testing import assert_sandwich, assert_upper_bound, check_contract, strategies

brief = settings(derandomize=True, deadline=None, max_examples=20)


HARD = {
    "a dead weight among living ones": lambda w: bool((w.isneginf().any(0) & w.isfinite().any(0)).any()),
    "a dead datum": lambda w: bool(w.isneginf().all(0).any()),
    "ties of the maximum": lambda w: len(w) > 2 and bool(((w == w.amax(0)).sum(0) > 1).any() and w.isfinite().all()),
    "spread beyond exp's range": lambda w: bool(w.isfinite().all() and (w.amax(0) - w.amin(0) > 1000).any()),
    "spread below rounding of exp": lambda w: bool(0 < (w.amax(0) - w.amin(0)).max() < 1e-6),
    "large offset": lambda w: bool(w.isfinite().all() and (w < -9e5).all()),
    "one sample": lambda w: len(w) == 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_log_weights_contain_the_cases_that_break_implementations(name):
    found = find(strategies.log_weights(), HARD[name], settings=settings(derandomize=True, max_examples=2000))
    assert HARD[name](found)


@brief
@given(strategies.plate_shapes())
def test_no_two_axes_have_the_same_size(shape):
    sizes = [shape.num_samples, *shape.batch, *shape.event]
    assert len(set(sizes)) == len(sizes)
    assert min(sizes) >= 2


@brief
@given(strategies.plate_shapes(), strategies.seeds())
def test_estimates_keep_the_batch_for_any_plates(shape, seed):
    torch.manual_seed(seed)
    loc = torch.randn(shape.batch + shape.event)
    q = torch.distributions.Independent(torch.distributions.Normal(loc, 1.0), len(shape.event))
    estimate = iw.estimate(lambda z: 2 + q.log_prob(z), q, num_samples=shape.num_samples)
    assert torch.allclose(estimate.value, torch.full(shape.batch, 2.0), atol=1e-4)


@brief
@given(strategies.gaussian_models(), strategies.seeds())
def test_gaussian_evidence_is_exact(model, seed):
    torch.manual_seed(seed)
    x, _ = model.simulate(3)
    exact = model.posterior(x)
    z = exact.sample((2,))
    assert torch.allclose(model.log_joint(x, z) - exact.log_prob(z), model.log_evidence(x).expand(2, 3), atol=1e-9)


@brief
@given(strategies.finite_models(), strategies.seeds())
def test_finite_evidence_is_exact(model, seed):
    torch.manual_seed(seed)
    x, _ = model.simulate(3)
    z = Categorical(logits=model.prior_logits).enumerate_support().unsqueeze(1).expand(-1, 3)
    assert torch.allclose(model.log_joint(x, z).logsumexp(0), model.log_evidence(x), atol=1e-12)
    assert torch.allclose(model.posterior(x).log_prob(z), model.log_joint(x, z) - model.log_evidence(x), atol=1e-12)


@settings(brief, max_examples=6)
@given(strategies.gaussian_models(), strategies.seeds())
def test_gaussian_models_pass_the_kit(model, seed):
    assert_sandwich(lambda: model.simulate(20), model.log_joint, model.proposal, max_datasets=200, seed=seed)


@settings(brief, max_examples=6)
@given(strategies.finite_models(), strategies.seeds())
def test_finite_models_pass_the_kit(model, seed):
    assert_sandwich(lambda: model.simulate(20), model.log_joint, model.proposal, max_datasets=200, seed=seed)


@pytest.mark.slow
@settings(brief, max_examples=8)
@given(strategies.hierarchical_proposals(), strategies.seeds())
def test_marginals_of_hierarchies_are_exact(hierarchy, seed):
    """The log-mean of K + 1 conditionals, z's own among them, is an upper bound of the marginal for every K."""
    torch.manual_seed(seed)
    psi = hierarchy.mixing.sample((5, 300))
    z = hierarchy.conditional(psi[0]).sample()
    upper = iw.log_mean_exp(hierarchy.conditional(psi).log_prob(z))
    assert_upper_bound(upper, hierarchy.marginal.log_prob(z))
    check_contract(lambda z: hierarchy.marginal.log_prob(z), hierarchy.marginal, seed=seed)
