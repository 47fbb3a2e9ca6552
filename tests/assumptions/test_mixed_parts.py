"""Parts of mixed latents are matched by key, never by order, and counted.

Root cause: parts were walked in the order of whatever dict came back, so that a path coefficient met a
discrete density.
"""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

import iwbounds as iw
from tests.oracles.nodes import gauss_hermite_grid

B, K = 4, 5
ROLES = {"c": True, "d": False}


def model():
    logit = torch.full((B,), 0.4, dtype=torch.float64, requires_grad=True)
    loc = torch.full((B,), 0.2, dtype=torch.float64, requires_grad=True)

    def sample(shape):
        d = Bernoulli(logits=logit).sample(shape)
        return {"c": loc + d + torch.randn(*shape, B, dtype=torch.float64), "d": d}

    def parts(z):
        return {"c": Normal(loc + z["d"], 1.0).log_prob(z["c"]), "d": Bernoulli(logits=logit).log_prob(z["d"])}

    def log_joint(z):
        return Normal(0.5 + z["d"], 0.7).log_prob(z["c"]) + Bernoulli(0.3).log_prob(z["d"].float()).double()

    return (logit, loc), sample, parts, log_joint


def gradients(arrange, reparameterized=ROLES):
    parameters, sample, parts, log_joint = model()
    q = iw.Proposal(sample, lambda z: arrange(parts(z)), reparameterized=reparameterized)
    torch.manual_seed(0)
    return torch.autograd.grad(iw.estimate(log_joint, q, num_samples=K).value.sum(), parameters)


def test_the_order_of_a_dict_changes_nothing():
    expected = gradients(lambda parts: parts)
    for arrange, roles in (
        (lambda parts: dict(reversed(parts.items())), ROLES),
        (lambda parts: parts, dict(reversed(ROLES.items()))),
    ):
        torch.testing.assert_close(gradients(arrange, roles), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("arrange", "found"),
    {
        "one summed density": (lambda parts: parts["c"] + parts["d"], "one tensor of shape"),
        "a part left out": (lambda parts: {"c": parts["c"]}, r"a dict with the parts \['c'\]"),
        "a part too many": (lambda parts: parts | {"e": parts["c"]}, r"\['c', 'd', 'e'\]"),
        "a tuple": (lambda parts: (parts["c"], parts["d"]), "a tuple of 2 parts"),
    }.values(),
)
def test_other_parts_are_refused(arrange, found):
    with pytest.raises(
        ValueError, match=rf"log_prob of the proposal to give a dict with the parts \['c', 'd'\]; got.*{found}"
    ):
        gradients(arrange)


def test_parts_of_another_shape_or_without_a_density_are_refused():
    with pytest.raises(ValueError, match=r"one shape.*got \(5, 4\) and \(5, 1\)"):
        gradients(lambda parts: parts | {"d": parts["d"][:, :1]})
    with pytest.raises(TypeError, match=r"expected log_prob of the proposal to give one tensor.*got NoneType"):
        gradients(lambda parts: parts | {"d": None})


def test_samples_of_another_structure_are_refused():
    _, sample, parts, log_joint = model()
    q = iw.Proposal(lambda shape: tuple(sample(shape).values()), parts, reparameterized=ROLES)
    with pytest.raises(ValueError, match=r"samples of the proposal to give a dict with the parts \['c', 'd'\]"):
        iw.estimate(log_joint, q)


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.STL()], ids=repr)
def test_a_pathwise_gradient_is_refused_whoever_draws(gradient):
    _, sample, parts, log_joint = model()
    q = iw.Proposal(sample, parts, reparameterized=ROLES)
    for options in ({}, {"samples": sample((K,))}):
        with pytest.raises(ValueError, match="not all parts of its samples are"):
            iw.estimate(log_joint, q, gradient=gradient, **options)


def enumerated_gradient(kind, gradient):
    """The expectation over both parts, one sample: enumeration of d, Gauss-Hermite nodes of c, exactly."""
    (noise,), weights = gauss_hermite_grid(60, 1)
    logit, loc = (torch.full((), value, dtype=torch.float64, requires_grad=True) for value in (0.4, 0.2))
    d = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(len(noise))
    noise, probability = noise.repeat(2), weights.repeat(2) * torch.where(d == 1, logit.sigmoid(), 1 - logit.sigmoid())
    c = loc + d + noise
    samples = {"c": c.unsqueeze(0).detach() if kind == "detached" else c.unsqueeze(0), "d": d.unsqueeze(0)}
    q = iw.Proposal(
        None,
        lambda z: {
            "c": Normal(loc + z["d"], 1.0).log_prob(z["c"]),
            "d": Bernoulli(logits=logit).log_prob(z["d"]),
        },
        reparameterized=ROLES,
    )
    log_joint = lambda z: Normal(0.5 + z["d"], 0.7).log_prob(z["c"]) - 0.3 * z["d"]  # noqa: E731
    if kind == "truth":
        parts = q.log_prob(samples)
        value = probability * (log_joint(samples) - parts["c"] - parts["d"])[0]
    else:
        value = probability.detach() * iw.estimate(log_joint, q, iw.ELBO(), gradient, samples=samples).value
    return torch.stack(torch.autograd.grad(value.sum(), (logit, loc)))


@pytest.mark.parametrize("gradient", [None, iw.ScoreFunction()], ids=repr)
@pytest.mark.parametrize("kind", ["attached", "detached"])
def test_a_given_part_without_its_graph_is_one_of_the_fixed_parts(kind, gradient):
    """Its log-proposal then gets the score: half of its gradient was missing where it kept that of a path."""
    truth = enumerated_gradient("truth", None)
    torch.testing.assert_close(enumerated_gradient(kind, gradient), truth, rtol=1e-10, atol=1e-12)
    assert (truth.abs() > 0.1).all()


def test_a_part_that_carries_parameters_is_handed_on_as_it_is():
    """It is in the graph, in every chunk and every selected row, and has no log-density of its own."""
    weight = torch.full((B,), 0.3, dtype=torch.float64, requires_grad=True)

    def sample(shape):
        shift = (weight * torch.randn(*shape, B, dtype=torch.float64)).tanh()
        return shift + torch.randn(*shape, B, dtype=torch.float64), shift

    def gradient(rule, **options):
        q = iw.Proposal(sample, lambda s: (Normal(s[1], 1.0).log_prob(s[0]), None), reparameterized=(True, None))
        torch.manual_seed(0)
        value = iw.estimate(
            lambda s: Normal(0.4, 0.8).log_prob(s[0]), q, gradient=rule, num_samples=40, **options
        ).value
        return torch.autograd.grad(value.sum(), weight)[0]

    for rule in (iw.Reparameterized(), iw.DReG(), iw.VIMCO()):
        assert gradient(rule).any()
        torch.testing.assert_close(gradient(rule, chunk_size=7), gradient(rule), rtol=1e-10, atol=1e-13)
