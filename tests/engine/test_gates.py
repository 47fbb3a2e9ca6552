"""Both kinds of gate give the model a and the path b, exactly: the hooked one, and the one that the compiler traces."""

import math

import pytest
import torch

from iwbounds.engine.gates import Gate, TracedGate

K, B = 3, 4
KINDS = pytest.mark.parametrize("kind", [Gate, TracedGate])
A = torch.tensor([0.5, 0.0, -2.0, 0.0], dtype=torch.float64).expand(K, B)
PATHS = {
    "another": torch.linspace(-1.0, 1.0, K * B, dtype=torch.float64).reshape(K, B),
    "none": torch.zeros(K, B, dtype=torch.float64),
    "the model's": A,
}


def density(theta, latents):
    z, (s, fixed) = latents
    return (theta * z.sin()).sum(-1) + (theta * s).cosh() + fixed


def gated_gradients(kind, path):
    """Of the parameter, of latents with an event axis, and of some without; found, and expected."""
    torch.manual_seed(0)
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = torch.randn(K, B, 2, dtype=torch.float64, requires_grad=True)
    s = torch.randn(K, B, dtype=torch.float64, requires_grad=True)
    latents, gate = (z, (s, torch.ones(K, B))), kind()
    tensor, multiplier = gate.channel(density(theta, gate(latents)), A, path)
    found = torch.autograd.grad((tensor * multiplier).sum(), (theta, z, s))
    (model,) = torch.autograd.grad((density(theta, latents) * A).sum(), theta)
    return found, (model, *torch.autograd.grad((density(theta, latents) * path).sum(), (z, s)))


@KINDS
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_model_gets_a_and_the_path_gets_b(kind, path):
    """Where a is 0 too: there b/a is not finite."""
    found, expected = gated_gradients(kind, path)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@KINDS
def test_a_ratio_is_not_rounded_to_the_latents_half_precision(kind):
    z = torch.ones(K, B, dtype=torch.bfloat16, requires_grad=True)
    gate = kind()
    tensor, multiplier = gate.channel(gate(z).float(), torch.full((K, B), 3.0), torch.full((K, B), 3 * (1 + 2**-8)))
    (found,) = torch.autograd.grad((tensor * multiplier * 85).sum(), z)
    assert found.dtype == torch.bfloat16
    assert math.isclose(found[0, 0].item(), 256.0)  # 255 · (1 + 2⁻⁸) = 255.996; a rounded ratio is 1, and gives 255
