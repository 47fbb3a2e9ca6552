"""Which gradients are unbiased for which bounds, said by the kit, exactly."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

import iwbounds as iw
from iwbounds.testing import GradientProblem, assert_grad_unbiased
from tests.testing import planted

BOUNDS = [iw.ELBO(), iw.IWAE(), iw.Renyi(0.3), iw.CIWAE(0.4), iw.MIWAE(2), iw.Jackknife(1), iw.TVO(3), iw.EUBO()]
ids = {"ids": repr}


@pytest.mark.parametrize("bound", BOUNDS, **ids)
@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG()], **ids)
def test_pathwise_gradients_are_unbiased_by_quadrature(bound, gradient):
    assert_grad_unbiased(gradient, bound, "hermite")


@pytest.mark.parametrize("bound", BOUNDS, **ids)
@pytest.mark.parametrize("gradient", [iw.ScoreFunction(), iw.VIMCO(), iw.VIMCO(geometric=True)], **ids)
@pytest.mark.parametrize("num_samples", [2, 4])
def test_score_gradients_are_unbiased_by_enumeration(bound, gradient, num_samples):
    assert_grad_unbiased(gradient, bound, "enumerate", num_samples=num_samples)


def test_three_samples_by_quadrature():
    assert_grad_unbiased(iw.DReG(), iw.IWAE(), "hermite", num_samples=3)


@pytest.mark.parametrize("method", ["enumerate", "hermite"])
def test_ovis_is_unbiased_for_gamma_zero_only(method):
    assert_grad_unbiased(iw.OVIS(0.0), iw.IWAE(), method)
    with pytest.raises(AssertionError, match="biased for the proposal's"):
        assert_grad_unbiased(iw.OVIS(1.0), iw.IWAE(), method)


def test_sticking_the_landing_is_unbiased_for_the_elbo_and_for_one_sample():
    assert_grad_unbiased(iw.STL(), iw.ELBO(), "hermite")
    assert_grad_unbiased(iw.STL(), iw.IWAE(), "hermite", num_samples=1)


def test_wake_updates_follow_the_bound_in_the_model_only():
    assert_grad_unbiased(iw.Wake(), iw.IWAE(), "enumerate", channels=("model",))
    with pytest.raises(AssertionError, match="biased for the proposal's"):
        assert_grad_unbiased(iw.Wake(), iw.IWAE(), "enumerate")


class Largest(iw.Bound):
    """A bound whose gradient jumps, and that does not say so."""

    def __call__(self, log_w):
        return log_w.amax(0)


def test_a_jump_that_is_not_confessed_is_seen_and_a_score_gradient_of_it_is_not_blamed_for_the_quadrature():
    assert_grad_unbiased(iw.Reparameterized(), Largest(), "hermite")
    assert_grad_unbiased(iw.VIMCO(), Largest(), "hermite")
    with pytest.raises(AssertionError, match="biased for the proposal's"):
        assert_grad_unbiased(iw.DReG(), Largest(), "hermite")


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()], **ids)
def test_sequential_accepts_what_is_unbiased(gradient):
    assert_grad_unbiased(gradient, iw.IWAE(), "sequential")


@pytest.mark.parametrize("estimator", [iw.STL(), planted.SquaredOnModel()], ids=["STL", "squared on the model"])
def test_sequential_refutes_what_is_not_and_says_how_to_reproduce_it(estimator):
    with pytest.raises(AssertionError, match=r"certain after \d+ draws. Reproduce: seed=5, alpha=1e-06"):
        assert_grad_unbiased(estimator, iw.IWAE(), "sequential", seed=5)


def network_problem(discrete):
    """A user's model: small networks of float32, a batch, an event axis."""
    torch.manual_seed(1)
    x = torch.randn(64, 3)
    decoder, encoder = torch.nn.Linear(1, 3), torch.nn.Linear(3, 2)
    scores = torch.nn.Linear(3, 2)

    def continuous():
        loc, log_scale = encoder(x).chunk(2, -1)
        q = Independent(Normal(loc, log_scale.exp()), 1)
        return lambda z: Normal(decoder(z), 1.0).log_prob(x).sum(-1) - 0.5 * z.square().sum(-1), q

    def categorical():
        def log_joint(z):
            return scores(x).expand(*z.shape, 2).gather(-1, z.unsqueeze(-1)).squeeze(-1)

        return log_joint, Categorical(logits=encoder(x))

    build, model = (categorical, scores) if discrete else (continuous, decoder)
    return GradientProblem(build, list(model.parameters()), list(encoder.parameters()))


@pytest.mark.parametrize("method", ["enumerate", "hermite", "sequential"])
def test_a_users_model_in_float32(method):
    right, wrong = (iw.VIMCO(), iw.OVIS(1.0)) if method == "enumerate" else (iw.DReG(), iw.STL())
    problem = network_problem(discrete=method == "enumerate")
    assert_grad_unbiased(right, iw.IWAE(), method, problem=problem, rtol=1e-4)
    with pytest.raises(AssertionError, match="biased for the proposal's"):
        assert_grad_unbiased(wrong, iw.IWAE(), method, problem=problem, rtol=1e-4)


def test_sequential_on_a_proposal_without_rsample():
    problem = network_problem(discrete=True)
    assert_grad_unbiased(iw.VIMCO(), iw.IWAE(), "sequential", problem=problem)
    with pytest.raises(AssertionError, match="biased for the proposal's"):
        assert_grad_unbiased(planted.OppositeSign(), iw.IWAE(), "sequential", problem=problem)


def test_methods_that_do_not_suit_the_model_say_which_does():
    continuous, discrete = network_problem(False), network_problem(True)
    with pytest.raises(ValueError, match="method='hermite' for a scalar Normal"):
        assert_grad_unbiased(iw.VIMCO(), problem=continuous)
    with pytest.raises(ValueError, match="Use method='sequential'"):
        assert_grad_unbiased(iw.VIMCO(), method="hermite", problem=discrete)
    with pytest.raises(ValueError, match="tuples to enumerate"):
        assert_grad_unbiased(iw.VIMCO(), num_samples=math.ceil(65536**0.5))
    with pytest.raises(ValueError, match="'enumerate', 'hermite' or 'sequential'"):
        assert_grad_unbiased(iw.VIMCO(), method="guess")


class Planted(iw.Gradient):
    """The right gradient, but for one coordinate of the proposal's location where the coefficient is not a number."""

    pathwise = True

    def __init__(self, bad):
        self.bad = bad

    def coefficients(self, bound, log_w):
        right = iw.DReG().coefficients(bound, log_w)
        path = right.path.clone()
        path[0, ..., 0] = self.bad
        return iw.Coefficients(model=right.model, path=path)


def bad_in_one_draw_of_many(bad):
    calls = iter(range(10**6))

    def estimator(log_joint, q, bound, z):
        value = iw.estimate(log_joint, q, bound, iw.DReG(), samples=z).value
        return value * (bad if next(calls) == 200 else 1.0)

    return estimator


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("method", ["hermite", "sequential"])
def test_one_coordinate_that_is_not_a_number_is_caught(method, bad):
    with pytest.raises(AssertionError, match=r"expected finite gradients; the estimator .* entries of the proposal's"):
        assert_grad_unbiased(Planted(bad), iw.IWAE(), method, channels=("proposal",))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_scores_of_discrete_draws_are_caught(bad):
    def estimator(log_joint, q, bound, z):
        value = iw.estimate(log_joint, q, bound, iw.VIMCO(), samples=z).value
        return value + bad * q.logits[0, 0]

    with pytest.raises(AssertionError, match="expected finite gradients"):
        assert_grad_unbiased(estimator, iw.IWAE(), "enumerate")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_single_bad_draw_late_in_the_sequence_is_caught(bad):
    with pytest.raises(AssertionError, match="expected finite gradients; the estimator estimator gave"):
        assert_grad_unbiased(bad_in_one_draw_of_many(bad), iw.IWAE(), "sequential")


def test_a_model_whose_own_gradient_is_nan_is_named():
    a, loc = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    problem = GradientProblem(lambda: (lambda z: -((z - a.abs().sqrt()) ** 2), Normal(loc, 1.0)), [a], [loc])
    with pytest.raises(AssertionError, match="expected finite gradients"):
        assert_grad_unbiased(iw.DReG(), iw.IWAE(), "sequential", problem=problem)
