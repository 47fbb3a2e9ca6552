"""Every unbiased estimator, for every bound, has the gradient of the expected bound as its exact expectation.

Model and proposal parameters are compared separately, each by name. Reparameterised estimators by Gauss-Hermite
quadrature over the noise, score functions by enumeration, mixed latents by both.
"""

import pytest
import torch

import iwbounds as iw
from tests.oracles import expectation
from tests.registry import BOUNDS, JUMPING, PATHWISE, SCORE

NODES = {2: 64, 3: 44}
PAIR_NODES = 22


@pytest.fixture(scope="module", params=[2, 3], ids=lambda k: f"K={k}")
def gaussian(request):
    return expectation.gaussian(request.param, NODES[request.param])


@pytest.fixture(scope="module")
def gaussian_pair():
    return expectation.gaussian_pair(PAIR_NODES)


def assert_same(model, found, expected, tolerance):
    for name, a, b in zip(model.names(), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def build(make, count):
    bound = make()
    if bound.min_samples > count:
        pytest.skip(f"{bound!r} is defined from K = {bound.min_samples}")
    return bound


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_doubling_the_nodes_does_not_change_the_truth(bound):
    coarse, fine = expectation.gaussian(2, NODES[2]), expectation.gaussian(2, 2 * NODES[2])
    assert_same(fine, coarse.truth(bound()), fine.truth(bound()), 1e-9)


@pytest.mark.parametrize("gradient", PATHWISE.values(), ids=PATHWISE)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_pathwise_estimator_is_unbiased(gaussian, bound, gradient):
    bound = build(bound, gaussian.samples().shape[0])
    assert_same(gaussian, gaussian.estimated(bound, gradient()), gaussian.truth(bound), 1e-8)


@pytest.mark.parametrize("gradient", PATHWISE.values(), ids=PATHWISE)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_pathwise_estimator_is_unbiased_through_layers(gaussian_pair, bound, gradient):
    bound = build(bound, 2)
    assert_same(gaussian_pair, gaussian_pair.estimated(bound, gradient()), gaussian_pair.truth(bound), 1e-8)


@pytest.mark.parametrize("gradient", ["reparameterized", "score", "vimco"])
@pytest.mark.parametrize("bound", JUMPING.values(), ids=JUMPING)
def test_a_bound_that_jumps_is_exact_under_estimators_that_need_no_curvature(bound, gradient):
    if gradient in PATHWISE:
        model = expectation.gaussian(2, 20)
        # Quadrature is blind to the kink between nodes, in truth and estimate alike: the same nodes, the same sum.
        assert_same(model, model.estimated(bound(), PATHWISE[gradient]()), model.truth(bound()), 1e-12)
    else:
        model = expectation.categorical(3)
        assert_same(model, model.estimated(bound(), SCORE[gradient]()), model.truth(bound()), 1e-10)


@pytest.mark.parametrize("count", [1, 2, 3, 4], ids=lambda k: f"K={k}")
@pytest.mark.parametrize("gradient", SCORE.values(), ids=SCORE)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_score_estimator_is_unbiased(bound, gradient, count):
    model, bound = expectation.categorical(count), build(bound, count)
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-10)


@pytest.mark.parametrize("gradient", SCORE.values(), ids=SCORE)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_score_estimator_is_unbiased_through_discrete_layers(bound, gradient):
    model, bound = expectation.categorical_pair(2), build(bound, 2)
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-10)


@pytest.mark.parametrize("discrete_first", [True, False], ids=["q(d)q(c|d)", "q(c)q(d|c)"])
@pytest.mark.parametrize("gradient", SCORE.values(), ids=SCORE)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_mixed_latents_get_path_and_score_in_one_backward(bound, gradient, discrete_first):
    model, bound = expectation.mixed(24, discrete_first), build(bound, 2)
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-10)


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_stl_misses_exactly_the_score_term(bound):
    """STL's bias is E[Σ c_k ∂ log q(z_k)], which quadrature gives too; for IWAE at K = 2 it is far from zero."""
    model, bound = expectation.gaussian(2, NODES[2]), bound()
    z = model.samples().detach()
    log_q = model.q.log_prob(z)
    c = bound.gradient((model.log_joint(z) - log_q).detach())
    score = torch.autograd.grad((model.log_probability().exp() * (c * log_q).sum(0)).sum(), model.proposal.values())
    bias = [torch.zeros_like(p) for p in model.model.values()] + list(score)
    expected = [t + b for t, b in zip(model.truth(bound), bias, strict=True)]
    assert_same(model, model.estimated(bound, iw.STL()), expected, 1e-8)
    if isinstance(bound, iw.IWAE):
        assert min(b.abs() for b in score) > 1e-3
    if isinstance(bound, iw.ELBO):
        assert max(b.abs() for b in score) < 1e-10


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_a_proposal_bound_rules_the_proposals_gradient_alone(gaussian, bound):
    bound = build(bound, gaussian.samples().shape[0])
    found = gaussian.estimated(bound, iw.DReG(), proposal_bound=iw.ELBO())
    split = len(gaussian.model)
    expected = gaussian.truth(bound)[:split] + gaussian.truth(iw.ELBO())[split:]
    assert_same(gaussian, found, expected, 1e-8)


@pytest.mark.parametrize("count", [2, 3, 4], ids=lambda k: f"K={k}")
def test_ovis_with_gamma_zero_is_unbiased(count):
    model = expectation.categorical(count)
    assert_same(model, model.estimated(iw.IWAE(), iw.OVIS(0.0)), model.truth(iw.IWAE()), 1e-10)


def wake_gradient(model, bound):
    """∂_θ E[L] for the model; E[Σ w̃_k ∂_φ log q(z_k)] for the proposal, by enumeration."""
    z = model.samples()
    z = z.detach() if isinstance(z, torch.Tensor) else z
    log_q = model.q.log_prob(z)
    w = iw.normalized_weights((model.log_joint(z) - log_q).detach())
    expected = (model.log_probability().exp().detach() * (w * log_q).sum(0)).sum()
    wake = torch.autograd.grad(expected, model.proposal.values())
    return model.truth(bound)[: len(model.model)] + list(wake)


@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("count", [2, 3, 4], ids=lambda k: f"K={k}")
def test_ovis_adds_gamma_times_the_wake_gradient(count, gamma):
    model = expectation.categorical(count)
    truth, wake = model.truth(iw.IWAE()), wake_gradient(model, iw.IWAE())
    split = len(model.model)
    expected = truth[:split] + [t + gamma * w for t, w in zip(truth[split:], wake[split:], strict=True)]
    assert_same(model, model.estimated(iw.IWAE(), iw.OVIS(gamma)), expected, 1e-10)
    assert max(w.abs().max() for w in wake[split:]) > 1e-2


@pytest.mark.parametrize("count", [1, 2, 3], ids=lambda k: f"K={k}")
def test_wake_is_the_self_normalised_estimate_of_its_paper(count):
    model = expectation.categorical(count)
    assert_same(model, model.estimated(iw.IWAE(), iw.Wake()), wake_gradient(model, iw.IWAE()), 1e-12)


def test_doubly_reparameterised_wake_has_the_expectation_of_wake(gaussian):
    expected = wake_gradient(gaussian, iw.IWAE())
    assert_same(gaussian, gaussian.estimated(iw.IWAE(), iw.Wake()), expected, 1e-10)
    assert_same(gaussian, gaussian.estimated(iw.IWAE(), iw.DReGWake()), expected, 1e-8)


def test_wake_at_many_samples_tends_to_the_inclusive_divergence():
    """Exact posterior average of the score, against Wake at K = 6 (729 tuples): the bias falls as 1/K."""
    errors = []
    for count in (3, 6):
        model = expectation.categorical(count)
        theta, phi = model.model["theta"], model.proposal["phi"]
        z = torch.arange(3).unsqueeze(0)
        posterior = model.log_joint(z).softmax(1).detach()
        (truth,) = torch.autograd.grad((posterior * phi.log_softmax(0)[z]).sum(), phi)
        found = model.estimated(iw.IWAE(), iw.Wake())[-1]
        errors.append((found - truth).norm() / truth.norm())
        assert theta.grad is None
    assert errors[1] < 0.62 * errors[0]
