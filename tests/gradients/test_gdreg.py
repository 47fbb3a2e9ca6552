"""GDReG: exact for every smooth bound, for prior, likelihood and proposal parameters apart; and what it refuses."""

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Exponential,
    ExpTransform,
    Gamma,
    Gumbel,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)

import iwbounds as iw
from iwbounds.proposals.prior import retraced
from tests.oracles.expectation import Expectation, gauss_hermite, leaf
from tests.registry import BOUNDS, JUMPING
from tests.test_exactness import assert_same, fits

DOUBLE = torch.float64
PAIRS = [name for name in BOUNDS if fits(name, 2)]


def never(shape):
    raise AssertionError("exact expectations give samples; nothing is drawn")


def one_layer(nodes=48, positive=False):
    """z ~ N(mean, scale²), or its exponential, K = 2; both parameters of the prior are learned."""
    mean, log_prior, b = leaf(0.3), leaf(0.1), leaf(0.8)
    loc, log_scale = leaf(0.55), leaf(-0.3)
    noise, log_w = gauss_hermite(nodes, 2)

    def law(loc, scale):
        return TransformedDistribution(Normal(loc, scale), [ExpTransform()]) if positive else Normal(loc, scale)

    def samples():
        z = loc + log_scale.exp() * noise
        return z.exp() if positive else z

    def log_likelihood(z):
        return Normal(b * (z.log() if positive else z), 1.0).log_prob(torch.full_like(z, 1.1))

    return Expectation(
        {"mean": mean, "log_prior": log_prior, "b": b},
        {"loc": loc, "log_scale": log_scale},
        iw.PriorAndLikelihood(lambda _: law(mean, log_prior.exp()), log_likelihood),
        iw.Proposal(never, lambda z: law(loc, log_scale.exp()).log_prob(z)),
        samples,
        lambda: log_w,
    )


def two_layers(nodes=20):
    """p(z2) p(z1 | z2) p(x | z1), both priors learned, against q(z1) q(z2 | z1), K = 2."""
    mean, slope, log_scale, b = leaf(0.2), leaf(0.7), leaf(-0.1), leaf(0.6)
    loc, back, log_q_scale = leaf(0.4), leaf(0.35), leaf(-0.2)
    noise, log_w = gauss_hermite(nodes, 4)

    def samples():
        z1 = loc + 0.8 * noise[:2]
        return {"z1": z1, "z2": back * z1 + log_q_scale.exp() * noise[2:]}

    def log_q(z):
        return Normal(loc, 0.8).log_prob(z["z1"]) + Normal(back * z["z1"], log_q_scale.exp()).log_prob(z["z2"])

    priors = {
        "z1": lambda z: Normal(slope * z["z2"], log_scale.exp()),
        "z2": lambda _: Normal(mean, 1.0),
    }
    return Expectation(
        {"mean": mean, "slope": slope, "log_scale": log_scale, "b": b},
        {"loc": loc, "back": back, "log_q_scale": log_q_scale},
        iw.PriorAndLikelihood(priors, lambda z: Normal(b * z["z1"], 1.0).log_prob(torch.full_like(z["z1"], 0.9))),
        iw.Proposal(never, log_q),
        samples,
        lambda: log_w,
    )


@pytest.mark.parametrize("name", PAIRS)
def test_every_smooth_bound_is_exact(name):
    """By quadrature, every parameter by name: 1e-8."""
    model, bound = one_layer(), BOUNDS[name]()
    assert_same(model, model.estimated(bound, iw.GDReG()), model.truth(bound), 1e-8)


@pytest.mark.parametrize("name", ["iwae", "renyi(0.3)", "jackknife(1)"])
def test_a_transformed_prior_is_exact(name):
    model, bound = one_layer(positive=True), BOUNDS[name]()
    assert_same(model, model.estimated(bound, iw.GDReG()), model.truth(bound), 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAIRS if not name.startswith(("u-stat", "incomplete"))])
def test_a_prior_of_a_layer_given_another_is_exact(name):
    """The other layer is held where it is: its own path goes through the slopes of this prior."""
    model, bound = two_layers(), BOUNDS[name]()
    assert_same(model, model.estimated(bound, iw.GDReG()), model.truth(bound), 1e-7)


@pytest.mark.parametrize("bound", [iw.IWAE(), iw.Jackknife(1)], ids=repr)
def test_it_is_dreg_but_for_the_prior(bound):
    """Sample by sample; and other than DReG there."""
    model = one_layer(6)
    p = torch.ones(36, dtype=DOUBLE)
    found = []
    for gradient in (iw.GDReG(), iw.DReG()):
        value = iw.estimate(model.log_joint, model.q, bound, gradient, samples=model.samples()).value
        found.append(dict(zip(model.names(), torch.autograd.grad((p * value).sum(), model.parameters), strict=True)))
    for name in ("b", "loc", "log_scale"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-10, atol=1e-12)
    assert (found[0]["mean"] - found[1]["mean"]).abs() > 1e-3


@pytest.mark.parametrize(("noise", "ratio"), [(2.0, 1 / 16), (1.0, 1.0), (0.5, 16.0)])
def test_its_gain_is_where_the_data_say_little(noise, ratio):
    """Prior N(m, 1), x = z + N(0, noise²), q the posterior: the slope of the likelihood against that of the prior.

    Their variances are as noise⁻⁴ to 1. 4 000 data give the ratio to 10 %, at four standard errors.
    """
    torch.manual_seed(0)
    mean = torch.zeros(4_000, dtype=DOUBLE, requires_grad=True)
    x = torch.ones(4_000, dtype=DOUBLE)
    joint = iw.PriorAndLikelihood(lambda _: Normal(mean, 1.0), lambda z: Normal(z, noise).log_prob(x))
    q = Normal(x / (1 + noise**2), (1 + noise**-2) ** -0.5)
    spread = []
    for gradient in (iw.GDReG(), iw.DReG()):
        value = iw.estimate(joint, q, gradient=gradient, num_samples=8).value
        (slope,) = torch.autograd.grad(value.sum(), mean)
        assert (slope.mean() - 1 / (1 + noise**2)).abs() < 5 * slope.std() / 4_000**0.5
        spread.append(slope.var())
    assert spread[0] / spread[1] == pytest.approx(ratio, rel=0.1)


# Ways from noise to latents.


def tensors(*values):
    return [torch.tensor(value, dtype=DOUBLE, requires_grad=True) for value in values]


def priors():
    a, s = tensors([0.3, -0.2], [0.7, 1.3])
    factor = torch.tensor([[1.0, 0.0], [0.4, 0.8]], dtype=DOUBLE, requires_grad=True)
    affine = AffineTransform(a, s)
    return {
        "normal": (Normal(a, s), [a, s]),
        "laplace": (Laplace(a, s), [a, s]),
        "exponential": (Exponential(s), [s]),
        "independent": (Independent(Normal(a, s), 1), [a, s]),
        "multivariate": (MultivariateNormal(a, scale_tril=factor), [a, factor]),
        "log-normal": (LogNormal(a, s), [a, s]),
        "gumbel": (Gumbel(a, s), [a, s]),
        "affine": (
            TransformedDistribution(Normal(a, 1.0), [affine, ExpTransform(), AffineTransform(0.0, 2.0)]),
            [a, s],
        ),
    }


@pytest.mark.parametrize("name", priors())
def test_the_way_back_is_that_of_rsample(name):
    """The same value, and the same derivative as a sample drawn through the parameters."""
    prior, parameters = priors()[name]
    torch.manual_seed(0)
    z = prior.rsample((5,))
    once_more = retraced(prior, z)
    torch.testing.assert_close(once_more, z)
    weights = torch.randn_like(z)
    found, expected = (torch.autograd.grad((weights * t).sum(), parameters, retain_graph=True) for t in (once_more, z))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(
            a.tril() if name == "multivariate" and a.ndim == 2 else a, b.tril() if b.ndim == 2 else b
        )


def test_a_prior_without_parameters_needs_no_way():
    assert retraced(Gamma(2.0, 1.0), torch.ones(3)) is None


# Modes.


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.upper, self.decoder = (torch.nn.Linear(3, 3).double() for _ in range(3))
        self.scale = torch.nn.Parameter(torch.full((3,), 0.8, dtype=DOUBLE))

    def forward(self, x):
        q = Independent(Normal(self.encoder(x), 0.6), 1)
        prior = Independent(Normal(self.upper(torch.ones(3, dtype=DOUBLE)).expand(len(x), 3), self.scale), 1)
        return iw.PriorAndLikelihood(prior, lambda z: Normal(self.decoder(z), 1.0).log_prob(x).sum(-1)), q


def gradients_of(run):
    model = Model()
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=DOUBLE)
    torch.manual_seed(2)
    run(model, x)
    return [p.grad for p in model.parameters()]


def plain(model, x):
    (-iw.estimate(*model(x), gradient=iw.GDReG(), num_samples=6).value.mean()).backward()


@pytest.mark.parametrize("bound", [iw.IWAE(), iw.EUBO()], ids=repr)
def test_accumulate_in_chunks_of_samples(bound):
    def whole(model, x):
        (-iw.estimate(*model(x), bound, iw.GDReG(), num_samples=6).value.mean()).backward()

    def chunks(model, x):
        iw.accumulate(model, x, bound=bound, gradient=iw.GDReG(), num_samples=6, chunk_size=4)

    torch.testing.assert_close(gradients_of(chunks), gradients_of(whole), rtol=1e-10, atol=1e-12)


def test_a_backward_on_few_samples_is_unbiased():
    """The prior's mean over 20 000 choices, within 5 standard errors."""
    data = 20_000
    mean = torch.full((data,), 0.3, dtype=DOUBLE, requires_grad=True)
    torch.manual_seed(3)
    z = torch.randn(6, 1, dtype=DOUBLE).expand(6, data).contiguous()
    joint = iw.PriorAndLikelihood(lambda _: Normal(mean, 1.2), lambda z: Normal(z, 1.0).log_prob(torch.ones(data)))
    slopes = []
    for few in (None, 2):
        q = Normal(torch.zeros(data, dtype=DOUBLE), 1.0)
        value = iw.estimate(joint, q, gradient=iw.GDReG(), samples=z, backward_samples=few).value
        slopes.append(torch.autograd.grad(value.sum(), mean)[0])
    assert slopes[1].std() > 0.01
    assert (slopes[1].mean() - slopes[0][0]).abs() < 5 * slopes[1].std() / data**0.5


def test_a_plain_call_is_the_log_joint():
    model = Model()
    x, z = torch.randn(2, 3, dtype=DOUBLE), torch.randn(4, 2, 3, dtype=DOUBLE)
    joint, _ = model(x)
    torch.testing.assert_close(joint(z), joint.prior.log_prob(z) + joint.log_likelihood(z))


class TestRefusals:
    q = Normal(torch.zeros(3, requires_grad=True), 1.0)

    def joint(self, prior):
        return iw.PriorAndLikelihood(prior, lambda z: Normal(z, 1.0).log_prob(torch.zeros(3)))

    def test_a_plain_log_joint(self):
        with pytest.raises(ValueError, match=r"PriorAndLikelihood\(prior, log_likelihood\); got .*Use DReG\(\)"):
            iw.estimate(lambda z: -z.square(), self.q, gradient=iw.GDReG(), num_samples=4)

    def test_a_support_that_moves(self):
        high = torch.tensor(5.0, requires_grad=True)
        prior = Uniform(-5.0, high, validate_args=False)
        with pytest.raises(ValueError, match="fixed support; that of Uniform moves"):
            iw.estimate(self.joint(prior), self.q, gradient=iw.GDReG(), num_samples=4)

    def test_no_invertible_map(self):
        prior = Gamma(torch.tensor(2.0, requires_grad=True), 1.0, validate_args=False)
        with pytest.raises(ValueError, match=r"invertible map of its noise.*got Gamma"):
            iw.estimate(self.joint(prior), LogNormal(self.q.loc, 1.0), gradient=iw.GDReG(), num_samples=4)

    @pytest.mark.parametrize("bound", JUMPING.values(), ids=JUMPING)
    def test_a_bound_that_jumps(self, bound):
        with pytest.raises(ValueError, match="smooth = False"):
            iw.estimate(self.joint(Normal(0.0, 1.0)), self.q, bound(), iw.GDReG(), num_samples=4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"proposal_bound": iw.ELBO()}, "derived for one bound"),
            ({"chunk_size": 2}, r"Call iwbounds\.accumulate"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            iw.estimate(self.joint(Normal(0.0, 1.0)), self.q, gradient=iw.GDReG(), num_samples=4, **options)

    def test_an_extended_latent(self):
        q = iw.HierarchicalProposal(self.q, lambda psi: Normal(psi, 1.0), num_aux=2)
        with pytest.raises(ValueError, match="draws of one density"):
            iw.estimate(self.joint(Normal(0.0, 1.0)), q, gradient=iw.GDReG(), num_samples=4)

    def test_own_samples(self):
        loc = torch.zeros(3, requires_grad=True)
        q = iw.Proposal(
            lambda shape: loc + torch.randn(*shape, 3), lambda z: Normal(loc, 1.0).log_prob(z), needs_own_samples=True
        )
        with pytest.raises(ValueError, match="needs its own samples"):
            iw.estimate(self.joint(Normal(0.0, 1.0)), q, gradient=iw.GDReG(), num_samples=4)

    def test_a_prior_of_other_parts_or_shapes(self):
        with pytest.raises(ValueError, match=r"a prior for each part of the latents, one; got \(one, one\)"):
            iw.estimate(self.joint((Normal(0.0, 1.0), Normal(0.0, 1.0))), self.q, num_samples=4)
        wide = iw.PriorAndLikelihood(Normal(torch.zeros(2, 3), 1.0), lambda z: z.sum(-1))
        with pytest.raises(ValueError, match=r"to give one shape.*got \(4, 2, 3\) and \(4, 2\)"):
            wide(torch.zeros(4, 2, 3))

    def test_what_is_no_distribution(self):
        with pytest.raises(TypeError, match="expected a torch Distribution as the prior"):
            iw.PriorAndLikelihood(torch.zeros(3), lambda z: z)
        with pytest.raises(TypeError, match="to give a torch Distribution; got Tensor"):
            iw.PriorAndLikelihood(lambda z: z, lambda z: z)(torch.zeros(3))

    def test_parameters_out_of_sight(self):
        class Hiding(torch.distributions.Distribution):
            def log_prob(self, z):
                return -(z - hidden).square()

        hidden = torch.ones((), requires_grad=True)
        with pytest.raises(ValueError, match="keeps them out of its attributes"):
            iw.estimate(self.joint(Hiding(validate_args=False)), self.q, gradient=iw.GDReG(), num_samples=4)
