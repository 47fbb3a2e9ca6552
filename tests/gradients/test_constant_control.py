"""Reparameterized with its control variate: exact for dependent draws and bounds that jump, quiet at the posterior."""

import math

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from tests.oracles import expectation
from tests.registry import BOUNDS, JUMPING
from tests.test_exactness import assert_same, cases

DOUBLE = torch.float64


@pytest.mark.slow
@cases(2, 3)
def test_independent_draws(name, count):
    model, bound = expectation.gaussian(count, {2: 48, 3: 20}[count]), BOUNDS[name]()
    found = model.estimated(bound, iw.Reparameterized(control_variate=True))
    assert_same(model, found, model.truth(bound), 1e-8)


@pytest.mark.parametrize("bound", JUMPING.values(), ids=JUMPING)
def test_bounds_that_jump(bound):
    """The same nodes in truth and estimate, with a score whose mean over them is zero: 1e-12."""
    model = expectation.gaussian(2, 20)
    found = model.estimated(bound(), iw.Reparameterized(control_variate=True))
    assert_same(model, found, model.truth(bound()), 1e-12)


def antithetic(nodes):
    """The pair z = loc ± scale ε: one-dimensional quadrature."""
    model = expectation.gaussian(2, 2)
    loc, log_scale = model.proposal.values()
    noise, log_probability = expectation.gauss_hermite(nodes, 1)
    model.samples = lambda: loc + log_scale.exp() * torch.cat([noise, -noise])
    model.log_probability = lambda: log_probability
    return model


@cases(2)
def test_antithetic_pairs(name, count):
    model, bound = antithetic(48), BOUNDS[name]()
    assert count == 2
    found = model.estimated(bound, iw.Reparameterized(control_variate=True))
    assert_same(model, found, model.truth(bound), 1e-8)


def test_the_antithetic_pair_would_be_wrong_by_dreg():
    """What the test above tells apart."""
    model = antithetic(48)
    found = model.estimated(iw.IWAE(), iw.DReG())
    error = max((a - b).abs().item() for a, b in zip(found, model.truth(iw.IWAE()), strict=True))
    assert error > 1e-2


def test_no_variance_where_the_proposal_is_the_posterior():
    """Every datum's gradient of location and scale is zero; without the control variate it is not."""
    loc = torch.zeros(50, dtype=DOUBLE, requires_grad=True)
    log_scale = torch.zeros(50, dtype=DOUBLE, requires_grad=True)
    sizes = {}
    for control_variate in (True, False):
        value = iw.estimate(
            lambda z: Normal(0.0, 1.0).log_prob(z),
            Normal(loc, log_scale.exp()),
            gradient=iw.Reparameterized(control_variate),
            num_samples=8,
        ).value
        slopes = torch.autograd.grad(value.sum(), [loc, log_scale])
        sizes[control_variate] = max(slope.abs().max().item() for slope in slopes)
    assert sizes[True] < 1e-12
    assert sizes[False] > 0.1


def test_quasi_random_draws_are_unbiased_with_it():
    """Over 4 000 randomisations of 16 points, with and without: 5 standard errors; seen: .003 of .1."""
    loc = torch.full((4_000,), 0.4, dtype=DOUBLE, requires_grad=True)
    found = {}
    for control_variate in (True, False):
        value = iw.estimate(
            lambda z: Normal(0.0, 1.0).log_prob(z),
            iw.QuasiRandom(Normal(loc, 0.7)),
            gradient=iw.Reparameterized(control_variate),
            num_samples=16,
        ).value
        (found[control_variate],) = torch.autograd.grad(value.sum(), loc)
    difference = found[True].mean() - found[False].mean()
    error = math.sqrt(sum(slope.var().item() for slope in found.values()) / 4_000)
    assert difference.abs() < 5 * error


def test_needs_a_fixed_support_and_nothing_else():
    assert iw.Reparameterized(control_variate=True).needs_fixed_support
    assert not iw.Reparameterized().needs_fixed_support
    assert not iw.Reparameterized(control_variate=True).needs_independence
    assert not iw.Reparameterized(control_variate=True).total
