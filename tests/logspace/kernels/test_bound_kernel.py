"""The bound's kernel equals the bounds' own classes in float64: value, effective sample size and both coefficients."""

import pytest
import torch

from iwbounds import ELBO, IWAE, Renyi, effective_sample_size, log_mean_exp
from iwbounds.logspace.kernels import fused_bound
from tests.logspace.kernels.cases import DTYPES, INF, ROWS, SIZES, assert_near, log_densities

BOUNDS = {
    "IWAE": ((1.0, 0.0), IWAE()),
    "Renyi 0.3": ((0.7, 0.0), Renyi(0.3)),
    "Renyi -1": ((2.0, 0.0), Renyi(-1.0)),
    "Renyi 2": ((-1.0, 0.0), Renyi(2.0)),
    "Renyi 1 - 2^-20": ((2.0**-20, 0.0), Renyi(1 - 2.0**-20)),
    "ELBO": ((1.0, 1.0), ELBO()),
    "ELBO as power 0": ((0.0, 0.0), Renyi(1.0)),
}
bounds = pytest.mark.parametrize(("how", "bound"), BOUNDS.values(), ids=BOUNDS)


def expected(bound, x):
    # On the CPU: on a GPU the bound would ask the kernel under test.
    value, c, b = (part.to(x.device) for part in bound.differentiate(x.cpu(), path=True))
    return value, effective_sample_size(x), x, c, b


def assert_bound(found, bound, x, dtype):
    scales = (max(1.0, x[x.isfinite()].abs().max().item()), x.shape[0], 1.0, 1.0, 1.0)
    for got, want, scale in zip(found, expected(bound, x), scales, strict=True):
        assert_near(got, want, dtype, scale)


@bounds
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, size) for size in SIZES] + [(torch.float64, size) for size in SIZES[2::3]],
    ids=str,
)
def test_kernel_equals_the_bound_in_float64(how, bound, size, dtype, device, launches, nan_filled):
    log_p, log_q = log_densities(*size, dtype=dtype, device=device)
    found = fused_bound(log_p, log_q, power=how[0], share=how[1], kernel=True)
    assert any(name.startswith("triton_bound") for name in launches)
    assert_bound(found, bound, log_p.double() - log_q.double(), dtype)


@pytest.mark.parametrize("size", [(1, 3), (63, 5), (2000, 9)], ids=str)
@pytest.mark.parametrize("beta", [0.25, 0.9])
def test_ciwae_is_the_convex_mixture(size, beta, device, launches):
    log_p, log_q = log_densities(*size, dtype=torch.float64, device=device)
    found = fused_bound(log_p, log_q, share=beta, kernel=True)
    pairs = zip(expected(ELBO(), log_p - log_q), expected(IWAE(), log_p - log_q), strict=True)
    for got, (elbo, iwae) in zip(found, pairs, strict=True):
        assert_near(got, beta * elbo + (1 - beta) * iwae, torch.float64, size[0])


@bounds
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_extreme_weights_follow_the_reference(how, bound, row, device, launches, nan_filled):
    x = torch.tensor(row, dtype=torch.float64, device=device).unsqueeze(1).repeat(1, 2)
    x[:, 1] = torch.arange(4.0)
    found = fused_bound(x, power=how[0], share=how[1], kernel=True)
    assert_bound(found, bound, x, torch.float64)


@bounds
def test_parts_of_parts_give_the_same(how, bound, device, launches, small_tiles, nan_filled):
    log_p, log_q = log_densities(40, 3, dtype=torch.float64, device=device)
    log_p[7, 0], log_p[:, 1] = -INF, -INF
    found = fused_bound(log_p, log_q, power=how[0], share=how[1], kernel=True)
    assert launches.count("triton_bound_combine") > 1
    assert_bound(found, bound, log_p - log_q, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_half_types_are_read_as_they_are_and_summed_in_float32(dtype, device, launches):
    log_p, log_q = log_densities(100, 3, dtype=dtype, device=device)
    found = fused_bound(log_p, log_q, kernel=True)
    assert {out.dtype for out in found} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert_bound(found, IWAE(), log_p.double() - log_q.double(), dtype)


LAYOUTS = {
    "batch of two axes": lambda p, q: (p, q),
    "transposed": lambda p, q: (p.transpose(1, 2).contiguous().transpose(1, 2), q),
    "every other sample": lambda p, q: (p[::2], q[::2]),
    "samples last in memory": lambda p, q: (p.permute(1, 2, 0).contiguous().permute(2, 0, 1), q),
    "log q of one sample, expanded": lambda p, q: (p, q[:1].expand_as(q)),
    "log q of one datum, expanded": lambda p, q: (p, q[:, :1, :1].expand_as(q)),
    "empty batch": lambda p, q: (p[:, :0], q[:, :0]),
    "no batch": lambda p, q: (p[:, 0, 0], q[:, 0, 0]),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides(layout, device, launches, nan_filled):
    log_p, log_q = layout(*log_densities(20, 3, 4, dtype=torch.float64, device=device))
    found = fused_bound(log_p, log_q, power=0.5, kernel=True)
    for got, want in zip(found, expected(Renyi(0.5), log_p - log_q), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [1e-8, 1e-4, 1.0])
def test_value_is_precise_relative_to_the_spread(spread, device, launches):
    x, _ = log_densities(1000, 2, dtype=torch.float32, device=device, spread=spread)
    value = fused_bound(x, kernel=True).value.double()
    exact = log_mean_exp(x.double())
    assert ((value - exact).abs() <= 8 * torch.finfo(torch.float32).eps * x.abs().max()).all()
    assert (value >= x.double().mean(0) - 8e-7 * x.abs().max()).all()


def test_coefficients_are_constants_and_doubly_false_has_one_tensor(device, launches):
    log_p, log_q = log_densities(5, 2, dtype=torch.float32, device=device)
    found = fused_bound(log_p.requires_grad_(), log_q, doubly=False, kernel=True)
    assert found.path is found.model
    assert not any(out.requires_grad for out in found)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"power": torch.inf}, ValueError, "finite power"),
        ({"share": 1.5}, ValueError, r"share in \[0, 1\]"),
    ],
    ids=str,
)
def test_wrong_means_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        fused_bound(torch.zeros(3), **options)


def test_densities_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"one shape; got \(3, 2\) and \(3, 1\)"):
        fused_bound(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(TypeError, match="one precision"):
        fused_bound(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.float64))
