"""Every unbiased estimator, for every bound, has the gradient of the expected bound as its exact expectation.

Model and proposal parameters are compared separately, each by name. Reparameterised estimators by Gauss-Hermite
quadrature over the noise, score functions by enumeration, mixed latents by both.
"""

import functools

import pytest
import torch

import iwbounds as iw
from tests.oracles import expectation
from tests.registry import BOUNDS, JUMPING, PATHWISE, SCORE

NODES = {2: 48, 3: 20}
PAIR_NODES = 12


def fits(name, count):
    """Whether a bound is defined for K = count: enough samples, in groups of equal size."""
    try:
        BOUNDS[name]().check_count(count)
    except ValueError:
        return False
    return True


def cases(*counts):
    """Every bound by name, with every count that it is defined for."""
    pairs = [(name, count) for name in BOUNDS for count in counts if fits(name, count)]
    return pytest.mark.parametrize(("name", "count"), pairs, ids=[f"{name}-K={count}" for name, count in pairs])


pathwise = pytest.mark.parametrize("gradient", PATHWISE.values(), ids=PATHWISE)
score = pytest.mark.parametrize("gradient", SCORE.values(), ids=SCORE)


@functools.cache
def gaussian(count, fixed=False):
    return expectation.gaussian(count, NODES[count], fixed)


@functools.cache
def gaussian_pair():
    return expectation.gaussian_pair(PAIR_NODES)


def assert_same(model, found, expected, tolerance):
    for name, a, b in zip(model.names(), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@cases(2)
def test_doubling_the_nodes_does_not_change_the_truth(name, count):
    bound, fine = BOUNDS[name](), expectation.gaussian(count, 2 * NODES[count])
    assert_same(fine, gaussian(count).truth(bound), fine.truth(bound), 1e-9)


@pathwise
@cases(2, 3)
def test_pathwise_estimator_is_unbiased(name, count, gradient):
    model, bound = gaussian(count), BOUNDS[name]()
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-8)


@pytest.mark.parametrize("gradient", [iw.DReG], ids=["dreg"])
@cases(2)
def test_pathwise_estimator_is_unbiased_with_detached_parameters(name, count, gradient):
    model, bound = gaussian(count, fixed=True), BOUNDS[name]()
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-8)


@pathwise
@cases(2)
def test_pathwise_estimator_is_unbiased_through_layers(name, count, gradient):
    model, bound = gaussian_pair(), BOUNDS[name]()
    assert count == 2
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-8)


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


@score
@cases(1, 2, 3, 4)
def test_score_estimator_is_unbiased(name, count, gradient):
    model, bound = expectation.categorical(count), BOUNDS[name]()
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-10)


@score
@cases(2)
def test_score_estimator_is_unbiased_through_discrete_layers(name, count, gradient):
    model, bound = expectation.categorical_pair(count), BOUNDS[name]()
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-10)


@pytest.mark.parametrize("discrete_first", [True, False], ids=["q(d)q(c|d)", "q(c)q(d|c)"])
@score
@cases(2)
def test_mixed_latents_get_path_and_score_in_one_backward(name, count, gradient, discrete_first):
    assert count == 2
    model, bound = expectation.mixed(24, discrete_first), BOUNDS[name]()
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-10)


@cases(2)
def test_stl_misses_exactly_the_score_term(name, count):
    """STL's bias is E[Σ c_k ∂ log q(z_k)], which quadrature gives too; for IWAE at K = 2 it is far from zero."""
    model, bound = gaussian(count), BOUNDS[name]()
    z = model.samples().detach()
    log_q = model.q.log_prob(z)
    c = bound.differentiate((model.log_joint(z) - log_q).detach()).gradient
    score = torch.autograd.grad((model.log_probability().exp() * (c * log_q).sum(0)).sum(), model.proposal.values())
    bias = [torch.zeros_like(p) for p in model.model.values()] + list(score)
    expected = [t + b for t, b in zip(model.truth(bound), bias, strict=True)]
    assert_same(model, model.estimated(bound, iw.STL()), expected, 1e-8)
    if isinstance(bound, iw.IWAE):
        assert min(b.abs() for b in score) > 1e-3
    if isinstance(bound, iw.ELBO):
        assert max(b.abs() for b in score) < 1e-10


@pathwise
@cases(2, 3)
def test_a_proposal_bound_rules_the_proposals_gradient_alone(name, count, gradient):
    model, bound = gaussian(count), BOUNDS[name]()
    split = len(model.model)
    expected = model.truth(bound)[:split] + model.truth(iw.ELBO())[split:]
    assert_same(model, model.estimated(bound, gradient(), proposal_bound=iw.ELBO()), expected, 1e-8)


@pathwise
def test_piwae_is_iwae_for_the_model_and_miwae_for_the_proposal(gradient):
    """Four samples in two groups: 4-dimensional quadrature."""
    model = expectation.gaussian(4, 16)
    split = len(model.model)
    expected = model.truth(iw.IWAE())[:split] + model.truth(iw.MIWAE(2))[split:]
    found = model.estimated(iw.IWAE(), gradient(), proposal_bound=iw.MIWAE(2))
    assert_same(model, found, expected, 1e-8)
    assert (model.truth(iw.IWAE())[split] - expected[split]).abs() > 1e-3


def test_a_proposal_bound_is_refused_for_mixed_latents():
    with pytest.raises(ValueError, match="mixed"):
        expectation.mixed(4, True).estimated(iw.IWAE(), iw.VIMCO(), proposal_bound=iw.ELBO())


@pytest.mark.parametrize("count", [2, 3, 4], ids=lambda k: f"K={k}")
def test_ovis_with_gamma_zero_is_unbiased(count):
    model = expectation.categorical(count)
    assert_same(model, model.estimated(iw.IWAE(), iw.OVIS(0.0)), model.truth(iw.IWAE()), 1e-10)


@pathwise
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_sumo_given_its_stops_is_exact(gradient, stop):
    """SUMO draws T anew for each estimate; with T given it is a smooth bound, exact as any other."""
    model = gaussian(3)
    bound = iw.SUMO().stopped_at(torch.full(model.samples().shape[1:], stop))
    assert_same(model, model.estimated(bound, gradient()), model.truth(bound), 1e-8)


def test_one_estimate_uses_one_draw_of_sumos_stops():
    """Value and coefficients come from the same T: the backward is the gradient of the value that was returned."""
    log_w = torch.randn(8, 50, dtype=torch.float64)
    theta = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    q = torch.distributions.Uniform(torch.zeros(50, dtype=torch.float64), 1.0)
    estimate = iw.estimate(lambda z: log_w * (1 + theta), q, iw.SUMO(), samples=torch.full_like(log_w, 0.5))
    estimate.value.sum().backward()
    # L is shift-equivariant and, given T, homogeneous: by Euler its gradient along log w is not its value, but the
    # derivative of L((1 + theta) log w) at theta = 0 is Σ c_k log w_k with the c that sum to one.
    c = estimate.coefficients.model
    torch.testing.assert_close(c.sum(0), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(theta.grad, (c * log_w).sum(0))


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


@pytest.mark.parametrize("count", [2, 3], ids=lambda k: f"K={k}")
def test_doubly_reparameterised_wake_has_the_expectation_of_wake(count):
    model = gaussian(count)
    expected = wake_gradient(model, iw.IWAE())
    assert_same(model, model.estimated(iw.IWAE(), iw.Wake()), expected, 1e-10)
    assert_same(model, model.estimated(iw.IWAE(), iw.DReGWake()), expected, 1e-8)


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
