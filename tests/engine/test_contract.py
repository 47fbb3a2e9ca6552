"""The contract of iw.estimate with the user's callables: what is called, how often, and what is refused, and why."""

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

import iwbounds as iw

B, D, K = 3, 4, 5


def leaf(*shape, value=0.1):
    return torch.full(shape, value, requires_grad=True)


def normal(loc):
    return Independent(Normal(loc, 1.0), 1)


def log_joint(z):
    return -z.square().sum(-1)


# What is called, and how often.


def test_each_callable_is_called_once_with_what_sample_returned():
    calls = []
    loc = leaf(B, D)

    def sample(shape):
        calls.append(("sample", shape))
        return {"a": loc + torch.randn(*shape, B, D), "b": (loc.sum(-1) + torch.randn(*shape, B),)}

    def log_prob(z):
        calls.append(("log_prob", z["a"].shape, z["b"][0].shape))
        return normal(loc).log_prob(z["a"]) + Normal(loc.sum(-1), 1.0).log_prob(z["b"][0])

    def log_joint(z):
        calls.append(("log_joint", z["a"].shape, z["b"][0].shape))
        return -z["a"].square().sum(-1) - z["b"][0].square()

    for gradient in (iw.Reparameterized(), iw.STL(), iw.DReG(), iw.VIMCO()):
        calls.clear()
        estimate = iw.estimate(log_joint, iw.Proposal(sample, log_prob), gradient=gradient, num_samples=K)
        estimate.value.sum().backward()
        assert calls == [
            ("sample", (K,)),
            ("log_prob", (K, B, D), (K, B)),
            ("log_joint", (K, B, D), (K, B)),
        ]


def test_value_is_the_bound_of_the_log_weights():
    q = normal(leaf(B, D))
    estimate = iw.estimate(log_joint, q, iw.Renyi(0.5), num_samples=K)
    assert estimate.log_weights.shape == (K, B)
    assert not estimate.log_weights.requires_grad
    assert torch.equal(estimate.value.detach(), iw.Renyi(0.5)(estimate.log_weights))
    assert estimate.num_samples == K
    assert estimate.direction is iw.Direction.LOWER


def test_default_is_dreg_with_64_samples():
    estimate = iw.estimate(log_joint, normal(leaf(B, D)))
    assert estimate.num_samples == 64


def test_global_latents_have_an_empty_batch():
    loc = leaf(D)
    estimate = iw.estimate(log_joint, normal(loc), num_samples=K)
    estimate.value.backward()
    assert estimate.value.shape == ()
    assert loc.grad.abs().sum() > 0


def test_no_grad_gives_the_same_value_without_a_graph():
    q = normal(leaf(B, D))
    torch.manual_seed(1)
    live = iw.estimate(log_joint, q, num_samples=K).value
    torch.manual_seed(1)
    with torch.no_grad():
        frozen = iw.estimate(log_joint, q, num_samples=K).value
    assert torch.equal(live.detach(), frozen)
    assert live.requires_grad
    assert not frozen.requires_grad


def test_frozen_proposal_and_trainable_model_need_no_path():
    scale = leaf(value=1.5)
    q = normal(torch.zeros(B, D))
    value = iw.estimate(lambda z: scale * log_joint(z), q, gradient=iw.DReG(), num_samples=K).value
    value.sum().backward()
    assert scale.grad < 0


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()], ids=repr)
def test_the_value_differentiates_once(gradient):
    loc, theta = leaf(B, D), leaf(value=1.3)

    def value():
        return iw.estimate(lambda z: theta**2 * log_joint(z), normal(loc), gradient=gradient, num_samples=K).value.sum()

    for parameter in (theta, loc):
        (grad,) = torch.autograd.grad(value(), parameter, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(grad.sum(), parameter)
    once = value()
    once.backward()
    with pytest.raises(RuntimeError, match="second time"):
        once.backward()


def test_samples_fix_the_number_and_nothing_is_drawn():
    q = iw.Proposal(sample=lambda shape: 1 / 0, log_prob=normal(leaf(B, D)).log_prob)
    estimate = iw.estimate(log_joint, q, samples=torch.zeros(7, B, D), num_samples=7)
    assert estimate.num_samples == 7
    with pytest.raises(ValueError, match=r"expected latents with 6 samples.*got shape \(7, 3, 4\)"):
        iw.estimate(log_joint, q, samples=torch.zeros(7, B, D), num_samples=6)


def test_samples_with_a_graph_default_to_a_path_and_without_to_a_score():
    loc = leaf(B, D)
    z = normal(loc).rsample((K,))
    for samples, gradient in ((z, iw.DReG()), (z.detach(), iw.VIMCO())):
        default, explicit = (
            torch.autograd.grad(
                iw.estimate(log_joint, normal(loc), gradient=g, samples=samples).value.sum(), loc, retain_graph=True
            )[0]
            for g in (None, gradient)
        )
        assert torch.equal(default, explicit)


# Distributions.


def transformed(loc):
    return Independent(TransformedDistribution(Normal(loc, 1.0), [AffineTransform(0.5, 2.0, cache_size=1)]), 1)


DISTRIBUTIONS = {
    "independent": normal,
    "transformed-with-cache": transformed,
    "multivariate": lambda loc: MultivariateNormal(loc, torch.eye(D) + 0.1),
    "low-rank": lambda loc: LowRankMultivariateNormal(loc, torch.ones(D, 2), torch.ones(D)),
    "expanded": lambda loc: Independent(Normal(loc[:1], 1.0).expand([B, D]), 1),
}


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG()], ids=repr)
@pytest.mark.parametrize("make", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_any_distribution_with_rsample_gives_the_gradient_of_its_definition(make, gradient):
    loc = leaf(B, D)
    z = make(loc).rsample((K,))
    value = iw.estimate(log_joint, make(loc), iw.ELBO(), gradient, samples=z).value
    (found,) = torch.autograd.grad(value.sum(), loc, retain_graph=True)
    log_q = make(loc.detach() if gradient == iw.DReG() else loc).log_prob(z)
    (expected,) = torch.autograd.grad((log_joint(z) - log_q).mean(0).sum(), loc)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def mixture(logits):
    return MixtureSameFamily(Categorical(logits=logits), Normal(torch.zeros(B, 2), 1.0))


def test_a_mixture_is_refused_under_a_path_and_gets_a_score_by_default():
    logits = torch.zeros(B, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"DReG\(\) differentiates.*MixtureSameFamily.*no rsample.*VIMCO"):
        iw.estimate(lambda z: -z.square(), mixture(logits), gradient=iw.DReG(), num_samples=K)
    iw.estimate(lambda z: -z.square(), mixture(logits), num_samples=K).value.sum().backward()
    assert logits.grad is not None


# Mistakes.


def wrong_cases():
    q = lambda: normal(leaf(B, D))  # noqa: E731
    score = iw.Proposal(lambda shape: torch.randn(*shape, B, D), q().log_prob)
    return {
        "event not summed": (lambda z: -z.square(), q(), r"\(5, 3\) = \(num_samples, \*batch\).*got \(5, 3, 4\).*sum"),
        "trailing axis": (lambda z: log_joint(z).unsqueeze(-1), q(), r"got \(5, 3, 1\)"),
        "batch summed": (lambda z: log_joint(z).sum(-1), q(), r"got \(5,\)"),
        "axes swapped": (lambda z: log_joint(z).T, q(), r"num_samples = 5; got \(3, 5\)"),
        "no Independent": (log_joint, Normal(leaf(B, D), 1.0), r"\(5, 3, 4\).*got \(5, 3\).*proposal.*Independent"),
        "not a tensor": (lambda z: 0.0, q(), "must return a tensor.*float"),
        "integer": (lambda z: log_joint(z).long(), q(), "floating-point.*int64"),
        "double": (lambda z: log_joint(z).double(), q(), "torch.float32.*torch.float64"),
        "other device": (lambda z: log_joint(z).to("meta"), q(), "cpu.*meta"),
        "graph-free samples": (log_joint, score, r"samples without a graph.*rsample.*VIMCO"),
        "sample shape ignored": (log_joint, iw.Proposal(lambda s: torch.randn(B, D), q().log_prob), "5 samples"),
        "not latents": (log_joint, iw.Proposal(lambda s: "z", q().log_prob), "made of tensors.*str"),
        "not a proposal": (log_joint, 3.0, r"torch Distribution.*got float.*iwbounds.Proposal"),
    }


@pytest.mark.parametrize("name", wrong_cases())
@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG()], ids=repr)
def test_a_mistake_meets_expected_found_and_fix(name, gradient):
    wrong_joint, q, message = wrong_cases()[name]
    with pytest.raises((ValueError, TypeError), match=message):
        iw.estimate(wrong_joint, q, gradient=gradient, num_samples=K)


def test_shapes_that_broadcast_are_refused():
    q = iw.Proposal(lambda s: torch.randn(*s, 4), lambda z: -z.square())
    with pytest.raises(ValueError, match=r"\(4, 4\).*got \(4, 4, 1\)"):
        iw.estimate(lambda z: z.unsqueeze(-1), q, num_samples=4)


@pytest.mark.parametrize("count", [0, -1])
def test_no_samples_are_refused(count):
    with pytest.raises(ValueError, match="at least 1"):
        iw.estimate(log_joint, normal(leaf(B, D)), num_samples=count)


def test_dreg_refuses_a_bound_that_jumps_and_the_default_takes_the_total_derivative():
    loc = leaf(B, D)
    with pytest.raises(ValueError, match=r"DReG\(\).*Renyi\(alpha=-inf\).*smooth.*Reparameterized"):
        iw.estimate(log_joint, normal(loc), iw.Renyi(-torch.inf), iw.DReG(), num_samples=K)
    z = normal(loc).rsample((K,))
    value = iw.estimate(log_joint, normal(loc), iw.Renyi(-torch.inf), samples=z).value
    (found,) = torch.autograd.grad(value.sum(), loc, retain_graph=True)
    (expected,) = torch.autograd.grad((log_joint(z) - normal(loc).log_prob(z)).amax(0).sum(), loc)
    torch.testing.assert_close(found, expected)


def test_ovis_is_for_iwae_alone_and_for_two_samples():
    q = Categorical(logits=torch.zeros(B, 3, requires_grad=True))
    with pytest.raises(ValueError, match="IWAE alone"):
        iw.estimate(lambda z: z * 1.0, q, iw.ELBO(), iw.OVIS(0.0), num_samples=2)
    with pytest.raises(ValueError, match="at least 2 samples"):
        iw.estimate(lambda z: z * 1.0, q, gradient=iw.OVIS(0.0), num_samples=1)
    with pytest.raises(ValueError, match=r"gamma in \[0, 1\]"):
        iw.OVIS(1.5)


# Values are not inspected; dead and NaN data stay alone.


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.VIMCO(), iw.OVIS(1.0)], ids=repr)
def test_a_dead_datum_has_no_gradient_and_a_nan_datum_keeps_it_to_itself(gradient):
    loc = leaf(B, D)
    z = normal(loc).rsample((K,))
    offset = torch.tensor([-torch.inf, torch.nan, 0.0])
    value = iw.estimate(lambda z: log_joint(z) + offset, normal(loc), gradient=gradient, samples=z).value
    (grad,) = torch.autograd.grad(value.sum(), loc, retain_graph=True)
    assert value[0] == -torch.inf
    assert value[1].isnan()
    assert (grad[0] == 0).all()
    alone = iw.estimate(lambda z: log_joint(z), normal(loc[2:]), gradient=gradient, samples=z[:, 2:]).value
    assert torch.equal(value[2:], alone)
    torch.testing.assert_close(grad[2:], torch.autograd.grad(alone.sum(), loc)[0][2:])
