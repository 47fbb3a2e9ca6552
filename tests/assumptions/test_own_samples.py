"""``log_prob`` gets the very tensor that ``sample`` returned, or the route is refused: never another value.

Root cause: views, slices and detached copies were handed over, and densities that recognise their sample, or have its
inverse from a cache, answered with NaN, a KeyError or another number.
"""

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Independent,
    Normal,
    TanhTransform,
    Transform,
    TransformedDistribution,
    constraints,
)

import iwbounds as iw
from iwbounds.testing import ContractError, check_contract

B, K = 3, 20


def log_joint(z):
    return -(z - 1).square()


class Remembering:
    """Knows its samples by identity; the density itself is Normal(loc, 1), so that there is a truth to compare with."""

    def __init__(self, **options):
        self.loc = torch.zeros(B, dtype=torch.float64, requires_grad=True)
        self.known = []
        self.options = options

    def sample(self, shape):
        z = self.loc + torch.randn(*shape, B, dtype=torch.float64)
        self.known.append(z)
        return z

    def log_prob(self, z):
        if not any(z is known for known in self.known):
            raise KeyError("not my sample")
        return Normal(self.loc, 1.0).log_prob(z)

    def proposal(self):
        return iw.Proposal(self.sample, self.log_prob, **self.options)


GRADIENTS = [iw.Reparameterized(), iw.DReG(), iw.STL(), iw.DReGWake(), iw.VIMCO(), iw.ScoreFunction(), iw.Wake()]


@pytest.mark.parametrize("gradient", [None, *GRADIENTS], ids=repr)
@pytest.mark.parametrize("declared", [False, True])
def test_a_single_tensor_is_handed_over_as_it_is(gradient, declared):
    found = Remembering(needs_own_samples=declared)
    torch.manual_seed(0)
    value = iw.estimate(log_joint, found.proposal(), gradient=gradient, num_samples=K).value
    (grad,) = torch.autograd.grad(value.sum(), found.loc)
    loc = torch.zeros(B, dtype=torch.float64, requires_grad=True)
    if gradient is None:
        gradient = iw.Reparameterized() if declared else iw.DReG()
    torch.manual_seed(0)
    value = iw.estimate(log_joint, Normal(loc, 1.0), gradient=gradient, num_samples=K).value
    torch.testing.assert_close(grad, torch.autograd.grad(value.sum(), loc)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.VIMCO()], ids=repr)
@pytest.mark.parametrize("options", [{"chunk_size": 4}, {"backward_samples": 4}], ids=str)
def test_what_hands_over_slices_or_copies_is_refused(gradient, options):
    q = Remembering(needs_own_samples=True).proposal()
    with pytest.raises(ValueError, match=rf"{next(iter(options))} hands slices or copies.*Drop"):
        iw.estimate(log_joint, q, gradient=gradient, num_samples=K, **options)
    with pytest.raises(ValueError, match="chunk_size hands slices"):
        iw.accumulate(lambda x: (lambda z: log_joint(z), q), torch.zeros(B, 1), max_live_samples=4, num_samples=K)


def test_given_samples_are_handed_over_as_they_are():
    found = Remembering(needs_own_samples=True)
    z = found.sample((K,))
    value = iw.estimate(log_joint, found.proposal(), samples=z).value
    assert torch.autograd.grad(value.sum(), found.loc)[0].any()
    with pytest.raises(ValueError, match=r"holds the samples fixed.*carry a graph"):
        iw.estimate(log_joint, found.proposal(), gradient=iw.VIMCO(), samples=z)


def test_several_parts_are_refused_where_copies_would_be_needed():
    loc = torch.zeros(B, requires_grad=True)
    q = iw.Proposal(
        lambda shape: (loc + torch.randn(*shape, B), torch.randn(*shape, B)),
        lambda z: Normal(loc, 1.0).log_prob(z[0]) + Normal(0.0, 1.0).log_prob(z[1]),
        needs_own_samples=True,
    )
    with pytest.raises(ValueError, match=r"several parts.*Use Reparameterized"):
        iw.estimate(lambda z: log_joint(z[0]), q, gradient=iw.DReG())
    assert iw.estimate(lambda z: log_joint(z[0]), q).value.requires_grad


class NoInverse(Transform):
    """z = x + tanh(w x) / 2: its inverse has no formula, and is remembered, as in planar flows."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, w):
        super().__init__(cache_size=1)
        self.w = w

    def _call(self, x):
        return x + 0.5 * (self.w * x).tanh()

    def _inverse(self, y):
        raise KeyError("no inverse")

    def log_abs_det_jacobian(self, x, y):
        return (1 + 0.5 * self.w * (1 - (self.w * x).tanh().square())).log()


def tanh(parameter):
    return TransformedDistribution(Normal(parameter, 8.0), [TanhTransform(cache_size=1)])


def planar(parameter):
    return TransformedDistribution(Normal(parameter, 1.0), [NoInverse(parameter + 1)])


@pytest.mark.parametrize("make", [tanh, planar, lambda p: Independent(tanh(p), 0)], ids=["tanh", "planar", "nested"])
def test_transforms_with_a_cache_take_the_total_derivative_only(make):
    p = torch.zeros(B, requires_grad=True)
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(iw.estimate(log_joint, make(p), num_samples=K).value.sum(), p)
    torch.manual_seed(0)
    q = make(p)
    z = q.rsample((K,))
    (expected,) = torch.autograd.grad(iw.IWAE()(log_joint(z) - q.log_prob(z)).sum(), p)
    torch.testing.assert_close(found, expected)
    assert found.isfinite().all()
    for gradient in (iw.DReG(), iw.STL(), iw.VIMCO(), iw.ScoreFunction(), iw.Wake()):
        with pytest.raises(ValueError, match=r"how it was made.*What fits: Reparameterized\(\)"):
            iw.estimate(log_joint, make(p), gradient=gradient)
    for options in ({"chunk_size": 4}, {"backward_samples": 4}):
        with pytest.raises(ValueError, match="hands slices"):
            iw.estimate(log_joint, make(p), **options)


@pytest.mark.parametrize("gradient", [iw.DReG(), iw.STL()], ids=repr)
@pytest.mark.parametrize("declared", [False, True])
def test_a_cached_inverse_behind_callables_is_noticed(gradient, declared):
    """Handed the very tensor, log q reaches its parameters past it: the slope at fixed parameters is not to be had."""
    p = torch.full((B,), 0.3, requires_grad=True)
    q = TransformedDistribution(Normal(p, 0.5), [TanhTransform(cache_size=1)])
    proposal = iw.Proposal(q.rsample, q.log_prob, needs_own_samples=declared)
    with pytest.raises(ValueError if declared else RuntimeError, match="total_derivative_only=True"):
        iw.estimate(log_joint, proposal, gradient=gradient, num_samples=K).value.sum().backward()
    if declared:
        with pytest.raises(ContractError, match=r"how it was made \(a cached inverse\).*total_derivative_only=True"):
            check_contract(log_joint, proposal)
        check_contract(
            log_joint, iw.Proposal(q.rsample, q.log_prob, needs_own_samples=True, total_derivative_only=True)
        )


def test_a_density_that_needs_its_own_samples_and_depends_on_them_keeps_the_contract():
    check_contract(log_joint, Remembering(needs_own_samples=True).proposal())


def test_a_cache_of_what_can_be_inverted_precisely_is_no_obstacle():
    p = torch.full((B,), 0.3, dtype=torch.float64, requires_grad=True)

    def gradient(cache_size, rule, **options):
        torch.manual_seed(0)
        q = TransformedDistribution(Normal(p, 1.0), [AffineTransform(p, 2.0, cache_size=cache_size)])
        return torch.autograd.grad(iw.estimate(log_joint, q, gradient=rule, num_samples=K, **options).value.sum(), p)[0]

    for rule in (None, iw.DReG(), iw.VIMCO(), iw.Reparameterized()):
        for options in ({}, {"chunk_size": 7}):
            torch.testing.assert_close(gradient(1, rule, **options), gradient(0, rule, **options))
