"""The densities' kernels equal torch.distributions in float64, forward and in every gradient."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from iwbounds.densities import bernoulli_logits, diagonal_gaussian
from tests.kernels.cases import assert_near

SHAPES = {
    "shared by samples": ((5, 3, 63), (3, 63)),
    "shared by all": ((5, 3, 7), (7,)),
    "nothing shared": ((4, 2, 9), (4, 2, 9)),
    "many events": ((2, 3, 1000), (3, 1000)),
    "no batch": ((4, 5), (5,)),
    "empty batch": ((4, 0, 5), (0, 5)),
    "empty event": ((4, 2, 0), (2, 0)),
}
shapes = pytest.mark.parametrize(("full", "shared"), SHAPES.values(), ids=SHAPES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def with_gradients(function, arguments, upstream):
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def compare(ours, theirs, arguments, dtype, device):
    arguments = [t.to(dtype).to(device) for t in arguments]
    exact = [t.double().cpu() for t in arguments]
    upstream = torch.randn(theirs(*exact).shape, dtype=torch.float64)
    found = with_gradients(ours, arguments, upstream.to(device))
    for got, want in zip(found, with_gradients(theirs, exact, upstream), strict=True):
        assert_near(got, want, dtype, 50.0)


@shapes
@dtypes
@pytest.mark.parametrize("swapped", [False, True], ids=["x shared", "logits shared"])
def test_bernoulli(full, shared, dtype, swapped, device, launches, nan_filled):
    logits, x = torch.randn(shared if swapped else full) * 3, torch.rand(full if swapped else shared)
    compare(
        lambda lg, t: bernoulli_logits(lg, t, kernel=True),
        lambda lg, t: Bernoulli(logits=lg, validate_args=False).log_prob(t).sum(-1),
        (logits, x), dtype, device,
    )  # fmt: skip
    assert "triton_densities_bernoulli" in launches or 0 in full


@shapes
@dtypes
@pytest.mark.parametrize("which", ["z", "mean", "log_scale", "all"])
def test_gaussian(full, shared, dtype, which, device, launches, nan_filled):
    arguments = [torch.randn(full if which in (name, "all") else shared) for name in ("z", "mean", "log_scale")]
    compare(
        lambda z, m, s: diagonal_gaussian(z, m, s, kernel=True),
        lambda z, m, s: Normal(m, s.exp(), validate_args=False).log_prob(z).sum(-1),
        arguments, dtype, device,
    )  # fmt: skip
    assert "triton_densities_gaussian_backward" in launches or 0 in full
