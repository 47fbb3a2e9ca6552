"""A JAX log-density has the values and the gradients of the same density in torch, over samples and batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.adapters.jax import log_density
from tests.oracles import eight_schools

jax = pytest.importorskip("jax", reason="the adapter needs JAX: pip install 'iwbounds[jax]'")
jnp, stats = jax.numpy, pytest.importorskip("jax.scipy.stats")

DOUBLE = torch.float64


def of_one(z, slope):
    """log p of one sample: z["a"] (), z["b"] (3,), and an index z["c"]."""
    return stats.norm.logpdf(z["a"]) + jnp.sum(stats.norm.logpdf(z["b"], slope[z["c"]] * z["a"], 0.7))


def in_torch(z, slope):
    return Normal(0.0, 1.0).log_prob(z["a"]) + Normal((slope[z["c"]] * z["a"]).unsqueeze(-1), 0.7).log_prob(z["b"]).sum(
        -1
    )


EVENT_DIMS = {"a": 0, "b": 1, "c": 0}


def latents(dtype, *front):
    torch.manual_seed(0)
    a, b = torch.randn(*front, dtype=dtype), torch.randn(*front, 3, dtype=dtype)
    return {"b": b.requires_grad_(), "a": a.requires_grad_(), "c": torch.randint(2, front)}


@pytest.mark.parametrize(("dtype", "front"), [(torch.float32, (5,)), (DOUBLE, (5, 2))], ids=str)
def test_values_and_gradients_are_those_of_torch(dtype, front):
    slope = torch.tensor([0.3, -1.1], dtype=dtype, requires_grad=True)
    weight = torch.rand(front, dtype=dtype)
    z = latents(dtype, *front)
    found = []
    for density in (log_density(of_one, EVENT_DIMS), in_torch):
        value = density(z, slope)
        assert value.shape == front
        found.append([value.detach(), *torch.autograd.grad((weight * value).sum(), [z["a"], z["b"], slope])])
    tolerance = 1e-12 if dtype is DOUBLE else 1e-5
    for one, other in zip(*found, strict=True):
        assert one.dtype is dtype  # float64 is not rounded, though JAX's own switch is off
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("bound", "gradient", "chunk_size"),
    [
        (iw.IWAE(), iw.DReG(), None),
        (iw.IWAE(), iw.DReG(), 4),
        (iw.Jackknife(1), iw.DReG(), None),
        (iw.IWAE(), iw.Reparameterized(), None),
        (iw.IWAE(), iw.VIMCO(), None),
    ],
    ids=repr,
)
def test_every_route_of_the_engine_trains_through_it(bound, gradient, chunk_size):
    theta, loc = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.4, [0.1, -0.3]))
    x = torch.tensor([0.5, 2.0], dtype=DOUBLE)

    def whole(z, theta, x):
        return stats.norm.logpdf(z) + stats.norm.logpdf(x, theta * z, 1.0)

    density = log_density(whole)
    found = []
    for log_joint in (
        lambda z: density(z, theta, x),
        lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(theta * z, 1.0).log_prob(x),
    ):
        torch.manual_seed(1)
        q = Normal(loc, 0.8)
        value = iw.estimate(log_joint, q, bound, gradient, num_samples=8, chunk_size=chunk_size).value
        found.append([value.detach(), *torch.autograd.grad(value.sum(), [theta, loc])])
    for one, other in zip(*found, strict=True):
        assert other.abs().max() > 1e-2
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_memory_may_be_strided_and_results_are_torchs_own():
    z = torch.randn(3, 6).T.requires_grad_()  # and the gradient of a sum is one number, expanded
    density = log_density(lambda z: -0.5 * jnp.sum(z**2), event_dims=1)
    value = density(z)
    gradient = torch.autograd.grad(value.sum(), z)[0]
    gradient.add_(z.detach())  # JAX's arrays may never be written to; these are copies
    torch.testing.assert_close(gradient, torch.zeros_like(z), rtol=0, atol=0)
    torch.testing.assert_close(value.detach().mul_(-2), z.detach().square().sum(-1))


def test_a_latent_changed_in_place_before_the_backward_is_noticed():
    z = torch.zeros(4).requires_grad_() + 0.0
    value = log_density(lambda z: -(z**2), event_dims=0)(z)
    z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        value.sum().backward()


def test_a_second_derivative_is_refused():
    z = torch.ones(4, requires_grad=True)
    value = log_density(lambda z: -(z**2), event_dims=0)(z)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(value.sum(), z, create_graph=True)


@pytest.mark.parametrize(
    "z", [{"a": torch.zeros(5), "b": torch.zeros(5, 3)}, {"a": torch.zeros(5), "b": torch.zeros(4)}]
)
def test_axes_that_differ_in_front_of_the_event_are_refused(z):
    with pytest.raises(ValueError, match=r"the same axes .* in front of its event_dims"):
        log_density(lambda z: z["a"], event_dims=0)(z)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_the_evidence_of_the_eight_schools_from_both_sides(dtype):
    def log_p(z):
        mu, tau, theta = z["mu"], z["tau"], z["theta"]
        prior = stats.norm.logpdf(mu, 0, 5) + stats.cauchy.logpdf(tau, 0, 5) + jnp.log(2.0)
        schools = stats.norm.logpdf(theta, mu, tau) + stats.norm.logpdf(
            eight_schools.EFFECTS, theta, eight_schools.ERRORS
        )
        return prior + schools.sum()

    density = log_density(log_p, {"mu": 0, "tau": 0, "theta": 1})
    draws = {n: torch.from_numpy(v) for n, v in eight_schools.posterior_draws(4000, seed=0).items()}

    def log_joint(z):
        return density({name: part.to(dtype) for name, part in z.items()}).double()

    found = iw.sandwich(log_joint, eight_schools.proposal(), draws, num_samples=4000, exact=True)
    # Errors of 0.001, so that 0.01 is ten of them.
    for side in (found.lower, found.upper, found.bridge):
        assert side.value.item() == pytest.approx(eight_schools.EVIDENCE, abs=0.01)
        assert side.standard_error.item() < 0.0015
    torch.testing.assert_close(log_joint(draws), eight_schools.log_joint(draws), rtol=1e-5, atol=1e-3)
    assert np.isfinite(found.width.item())
