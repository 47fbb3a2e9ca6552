"""The nested kernel equals the composition of two log-mean-exps in float64, and its coefficients their autograd."""

import pytest
import torch

from iwbounds import ELBO, IWAE, Renyi, effective_sample_size, log_mean_exp
from iwbounds.logspace.kernels import fused_nested
from tests.logspace.kernels.cases import INF, assert_near, log_densities

BOUNDS = {"IWAE": ((1.0, 0.0), IWAE()), "Renyi 0.5": ((0.5, 0.0), Renyi(0.5)), "ELBO": ((1.0, 1.0), ELBO())}
SIZES = [(1, 1, 2), (2, 3, 1), (63, 11, 5), (20, 100, 3), (200, 2, 17), (7, 1000, 2)]


def densities(samples, inner, batch, dtype, device):
    log_p, _ = log_densities(samples, batch, dtype=dtype, device=device)
    return log_p, log_densities(samples, inner, batch, dtype=dtype, device=device)[1]


def expected(bound, log_p, inner):
    """Value, ESS, log-weights, c, c − h, and the inner gradient and gradient minus curvature, by autograd."""
    log_p, inner = log_p.double(), inner.double().requires_grad_()
    log_w = log_p - log_mean_exp(inner, 1)
    (slope,) = torch.autograd.grad(bound(log_w).sum(), inner)
    # On the CPU: on a GPU the bound would ask the kernel under test.
    c, b = (part.to(log_w.device) for part in bound.differentiate(log_w.detach().cpu(), path=True)[1:])
    v = inner.detach().softmax(1)
    curvature = (c - b).unsqueeze(1) * v * v - c.unsqueeze(1) * (v - v * v)
    log_w = log_w.detach()
    return bound(log_w), effective_sample_size(log_w), log_w, c, b, slope, slope - curvature


def assert_nested(found, bound, log_p, inner, dtype):
    scales = (10.0, log_p.shape[0], 10.0, 1.0, 1.0, 1.0, 1.0)
    for got, want, scale in zip(found, expected(bound, log_p, inner), scales, strict=True):
        assert_near(got, want, dtype, scale)


@pytest.mark.parametrize(("how", "bound"), BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernel_equals_the_composition(how, bound, size, dtype, device, launches, nan_filled):
    log_p, inner = densities(*size, dtype, device)
    found = fused_nested(log_p, inner, power=how[0], share=how[1], kernel=True)
    assert "triton_nested_write" in launches
    assert_nested(found, bound, log_p, inner, dtype)


def test_inner_curvature_is_the_hessians_diagonal(device, launches):
    log_p, inner = densities(3, 4, 1, torch.float64, device)
    found = fused_nested(log_p, inner, kernel=True)

    def bound(v):
        return IWAE()(log_p[:, 0] - log_mean_exp(v.reshape(3, 4), 1))

    flat = inner.flatten()
    slope, hessian = torch.func.grad(bound)(flat), torch.func.hessian(bound)(flat)
    torch.testing.assert_close(found.inner.flatten(), slope)
    torch.testing.assert_close(found.inner_path.flatten(), slope - hessian.diagonal())


def test_small_problems_take_one_launch(device, launches):
    fused_nested(*densities(20, 11, 5, torch.float32, device), kernel=True)
    assert launches == ["triton_nested_write"]


def test_parts_strides_and_dead_weights(device, launches, small_tiles, nan_filled):
    log_p, inner = densities(24, 3, 2, torch.float64, device)
    inner = inner.permute(1, 0, 2).contiguous().permute(1, 0, 2)
    inner[3, :2, 0], log_p[5, 1] = -INF, -INF
    found = fused_nested(log_p, inner, kernel=True)
    assert launches.count("triton_bound_combine") > 1
    assert_nested(found, IWAE(), log_p, inner, torch.float64)


def test_batches_of_several_axes_and_empty_ones(device, launches):
    log_p, inner = torch.randn(4, 2, 3, device=device), torch.randn(4, 5, 2, 3, device=device)
    found = fused_nested(log_p, inner, kernel=True)
    for got, want in zip(found, fused_nested(log_p, inner, kernel=False), strict=True):
        torch.testing.assert_close(got, want)
    assert fused_nested(log_p[:, :0], inner[:, :, :0], kernel=True).inner.shape == (4, 5, 0, 3)


def test_shapes_that_do_not_nest_are_refused():
    with pytest.raises(ValueError, match=r"\(4, J, \*batch\).*got \(4, 3, 5\)"):
        fused_nested(torch.zeros(4, 2), torch.zeros(4, 3, 5))
