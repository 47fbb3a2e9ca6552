"""A gate, and a linearisation, give the model a and the path b, exactly."""

import math

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.engine.autograd import gate, with_ratio
from iwbounds.engine.linearize import linearize

K, B = 3, 4
A = torch.tensor([0.5, 0.0, -2.0, 0.0], dtype=torch.float64).expand(K, B)
PATHS = {
    "another": torch.linspace(-1.0, 1.0, K * B, dtype=torch.float64).reshape(K, B),
    "none": torch.zeros(K, B, dtype=torch.float64),
    "the model's": A,
}


def density(theta, latents):
    z, (s, fixed) = latents
    return (theta * z.sin()).sum(-1) + (theta * s).cosh() + fixed


def gradients(channels_of, path):
    """Of the parameter, of latents with an event axis, and of some without; found, and expected."""
    torch.manual_seed(0)
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = torch.randn(K, B, 2, dtype=torch.float64, requires_grad=True)
    s = torch.randn(K, B, dtype=torch.float64, requires_grad=True)
    latents = (z, (s, torch.ones(K, B)))
    channels = channels_of(lambda latents: density(theta, latents), latents, path)
    found = torch.autograd.grad(sum((tensor * multiplier).sum() for tensor, multiplier in channels), (theta, z, s))
    (model,) = torch.autograd.grad((density(theta, latents) * A).sum(), theta)
    return found, (model, *torch.autograd.grad((density(theta, latents) * path).sum(), (z, s)))


def by_gate(function, latents, path):
    gated, companions = gate(latents, True)
    return [(with_ratio(function(gated), companions, A, path), A)]


def by_linearizing(function, latents, path):
    linearized = linearize(function, latents, True)
    return [(linearized.value, A), *linearized.path(path, True)]


@pytest.mark.parametrize("path", ["none", "the model's", "bounded"])
def test_behind_a_gate_the_model_gets_a_and_the_path_gets_b(path):
    """A gate serves where b/a is bounded: where a is 0, b is."""
    paths = {**PATHS, "bounded": A * torch.linspace(-1.0, 1.0, K * B, dtype=torch.float64).reshape(K, B)}
    found, expected = gradients(by_gate, paths[path])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_linearised_the_model_gets_a_and_the_path_gets_b(path):
    """Where a is 0 and b is not, too."""
    found, expected = gradients(by_linearizing, path)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_ratio_is_not_rounded_to_the_latents_half_precision():
    z = torch.ones(K, B, dtype=torch.bfloat16, requires_grad=True)
    gated, companions = gate(z, True)
    model, path = torch.full((K, B), 3.0), torch.full((K, B), 3 * (1 + 2**-8))
    (found,) = torch.autograd.grad((with_ratio(gated.float(), companions, model, path) * model * 85).sum(), z)
    assert found.dtype == torch.bfloat16
    assert math.isclose(found[0, 0].item(), 256.0)  # 255 · (1 + 2⁻⁸) = 255.996; a rounded ratio is 1, and gives 255


class ThreeChannels(iw.Gradient):
    """Each coefficient is its own, so that none can stand in for another."""

    pathwise = True

    def coefficients(self, bound, log_w):
        c = bound.differentiate(log_w).gradient
        return iw.Coefficients(c, 0.7 * c, 0.3 - c)


@pytest.mark.parametrize("parts", [1, 2], ids=["one tensor", "two parts"])
@pytest.mark.parametrize("callables", [True, False], ids=["callables", "distribution"])
def test_each_of_three_coefficients_reaches_its_own_channel(parts, callables):
    """The definition, term by term: a ∂log p/∂θ, b (∂log p/∂z − ∂log q/∂z) ∂z/∂φ, and s ∂log q/∂φ at fixed z."""
    torch.manual_seed(0)
    loc = torch.linspace(-0.5, 0.5, B, dtype=torch.float64).requires_grad_()
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(parts, K, B, dtype=torch.float64)

    def log_p(theta, z):
        return sum(-(theta * part).cosh() - part.square() for part in z)

    def log_q(loc, z):
        return sum(Normal(loc, 0.8).log_prob(part) for part in z)

    z = [loc + 0.8 * part for part in noise]
    one = parts == 1
    if callables or not one:
        q = iw.Proposal(lambda shape: None, lambda z: log_q(loc, [z] if one else z))
    else:
        q = Normal(loc, 0.8)
    value = iw.estimate(
        lambda z: log_p(theta, [z] if one else z), q, iw.IWAE(), ThreeChannels(), samples=z[0] if one else tuple(z)
    ).value
    found = torch.autograd.grad(value.sum(), (theta, loc), retain_graph=True)

    fixed = [part.detach() for part in z]
    c = (log_p(theta, fixed) - log_q(loc, fixed)).detach().softmax(0)
    (of_theta,) = torch.autograd.grad((c * log_p(theta, fixed)).sum(), theta)
    path = (0.7 * c * (log_p(theta.detach(), z) - log_q(loc.detach(), z))).sum()
    (of_loc,) = torch.autograd.grad(path + ((0.3 - c) * log_q(loc, fixed)).sum(), loc)
    torch.testing.assert_close(found, (of_theta, of_loc), rtol=1e-10, atol=1e-12)
