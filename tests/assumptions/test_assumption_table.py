"""Which gradient fits which proposal: the table of docs/architecture.md, cell by cell, and the default of each row.

Root cause of the faults: estimators assumed what proposals did not offer.
"""

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from tests.oracles.nodes import gauss_hermite_grid

GRADIENTS = {
    "Reparameterized": iw.Reparameterized(),
    "STL": iw.STL(),
    "DReG": iw.DReG(),
    "DReGWake": iw.DReGWake(),
    "Controlled": iw.Controlled(),
    "ScoreFunction": iw.ScoreFunction(),
    "VIMCO": iw.VIMCO(),
    "OVIS": iw.OVIS(),
    "Wake": iw.Wake(),
}
EVERYTHING = set(GRADIENTS)
PATHWISE = {"Reparameterized", "STL", "DReG", "DReGWake", "Controlled"}
ROWS = {
    "as assumed": ({}, EVERYTHING, "DReG"),
    "moving support": ({"fixed_support": False}, {"Reparameterized"}, "Reparameterized"),
    "dependent draws": ({"independent": False}, {"Reparameterized", "Wake"}, "Reparameterized"),
    "no derivative": ({"reparameterized": False}, EVERYTHING - PATHWISE, "VIMCO"),
    "total derivative only": ({"total_derivative_only": True}, {"Reparameterized"}, "Reparameterized"),
    "own samples": ({"needs_own_samples": True}, EVERYTHING, "Reparameterized"),
}


def proposal(options, loc):
    def sample(shape):
        return loc + torch.randn(*shape, *loc.shape, dtype=loc.dtype)

    return iw.Proposal(sample, lambda z: Normal(loc, 1.0).log_prob(z), **options)


def log_joint(z):
    return -(z - 1).square()


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize(("options", "fitting", "default"), ROWS.values(), ids=ROWS)
def test_a_gradient_is_taken_where_it_fits_and_refused_with_one_that_does(options, fitting, default, name):
    q = proposal(options, torch.zeros(3, requires_grad=True))
    if name in fitting:
        assert iw.estimate(log_joint, q, gradient=GRADIENTS[name], num_samples=4).value.requires_grad
        return
    with pytest.raises(ValueError, match=rf"{name}.*What fits: .*{default}"):
        iw.estimate(log_joint, q, gradient=GRADIENTS[name], num_samples=4)


@pytest.mark.parametrize(("options", "fitting", "default"), ROWS.values(), ids=ROWS)
def test_the_default_gradient_is_one_that_fits(options, fitting, default):
    loc = torch.zeros(3, requires_grad=True)

    def gradient(rule):
        torch.manual_seed(0)
        value = iw.estimate(log_joint, proposal(options, loc), gradient=rule, num_samples=4).value.sum()
        return torch.autograd.grad(value, loc)[0]

    assert torch.equal(gradient(None), gradient(GRADIENTS[default]))


@pytest.mark.parametrize("options", [options for options, _, _ in ROWS.values()], ids=ROWS)
def test_nothing_is_refused_where_there_is_nothing_to_train(options):
    frozen = proposal(options, torch.zeros(3))
    theta = torch.ones((), requires_grad=True)
    for name, gradient in GRADIENTS.items():
        if not (name in PATHWISE and options == {"reparameterized": False}):
            iw.estimate(lambda z: theta * log_joint(z), frozen, gradient=gradient, num_samples=4).value.sum().backward()
    with torch.no_grad():
        trained = proposal(options, torch.zeros(3, requires_grad=True))
        assert iw.estimate(log_joint, trained, num_samples=4).value.shape == (3,)


def test_where_nothing_fits_the_call_is_refused_unless_gradients_are_off():
    q = proposal({"reparameterized": False, "fixed_support": False}, torch.zeros(3, requires_grad=True))
    with pytest.raises(ValueError, match="No estimator fits"):
        iw.estimate(log_joint, q, num_samples=4)
    with torch.no_grad():
        iw.estimate(log_joint, q, num_samples=4)


def test_an_antithetic_pair_gets_the_gradient_of_its_own_expected_bound():
    """z = μ ± ε under K = 2: the truth is the derivative of the expected bound, by quadrature over the one ε.

    Where the dependence is not declared, c − h gives a twelfth of it: −0.0334 for −0.3935.
    """
    (noise,), weights = gauss_hermite_grid(60, 1)
    mu = torch.zeros(len(noise), dtype=torch.float64, requires_grad=True)

    def sample(_shape):
        return torch.stack([mu + noise, mu - noise])

    def log_density(z):
        return Normal(0.5939, 0.5663).log_prob(z)

    def gradient(rule, **said):
        q = iw.Proposal(sample, lambda z: Normal(mu, 1.0).log_prob(z), **said)
        value = iw.estimate(log_density, q, gradient=rule, num_samples=2).value
        return torch.autograd.grad((weights * value).sum(), mu)[0].sum()

    def expected(at):
        z = torch.stack([at + noise, at - noise])
        return (weights * iw.IWAE()(log_density(z) - Normal(at, 1.0).log_prob(z))).sum()

    truth = torch.autograd.functional.jacobian(expected, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(gradient(None, independent=False), truth, rtol=1e-10, atol=0)
    assert truth.item() == pytest.approx(-0.3935, abs=1e-4)
    assert gradient(iw.DReG()).item() == pytest.approx(-0.0334, abs=1e-4)
    with pytest.raises(ValueError, match="depend on each other"):
        gradient(iw.DReG(), independent=False)


@pytest.mark.parametrize("name", sorted(PATHWISE))
def test_given_samples_do_not_turn_what_is_no_path_into_one(name):
    """Samples of a straight-through estimator carry a graph; the proposal says that its derivative is none."""
    loc = torch.zeros(3, requires_grad=True)
    q = proposal({"reparameterized": False}, loc)
    z = q.sample((4,))
    with pytest.raises(ValueError, match=rf"{name}.*reparameterised proposal.*What fits: VIMCO"):
        iw.estimate(log_joint, q, gradient=GRADIENTS[name], samples=z)
    found, expected = (
        torch.autograd.grad(iw.estimate(log_joint, q, gradient=g, samples=z).value.sum(), loc)[0]
        for g in (None, iw.VIMCO())
    )
    assert torch.equal(found, expected)
