"""The bound's kernel equals the bounds' own classes in float64: the value and both coefficients."""

import pytest
import torch

from iwbounds import ELBO, IWAE, Renyi, log_mean_exp
from iwbounds.kernels import fused_bound
from tests.kernels.cases import DTYPES, INF, ROWS, SIZES, assert_near, log_weights

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
    return bound.differentiate(x.cpu(), path=True)


def assert_bound(found, bound, x, dtype):
    scales = (max(1.0, x.nan_to_num(0.0, 0.0, 0.0).abs().max().item()), 1.0, 1.0)
    for got, want, scale in zip(found, expected(bound, x), scales, strict=True):
        assert_near(got, want, dtype, scale)


@bounds
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, size) for size in SIZES] + [(torch.float64, size) for size in SIZES[2::3]],
    ids=str,
)
def test_kernel_equals_the_bound_in_float64(how, bound, size, dtype, device, launches, nan_filled):
    x = log_weights(*size, dtype=dtype, device=device)
    found = fused_bound(x, *how, kernel=True)
    assert any(name.startswith("triton_bound") for name in launches)
    assert_bound(found, bound, x.double(), dtype)


@bounds
@pytest.mark.parametrize("row", [*ROWS.values(), None], ids=[*ROWS, "many"])
def test_the_plain_reference_equals_the_bound(how, bound, row):
    x = log_weights(63, 1, dtype=torch.float64, device="cpu") if row is None else torch.tensor(row).double()[:, None]
    assert_bound(fused_bound(x, *how, kernel=False), bound, x, torch.float64)


@pytest.mark.parametrize("size", [(1, 3), (63, 5), (2000, 9)], ids=str)
@pytest.mark.parametrize("beta", [0.25, 0.9])
def test_ciwae_is_the_convex_mixture(size, beta, device, launches):
    x = log_weights(*size, dtype=torch.float64, device=device)
    found = fused_bound(x, elbo_part=beta, kernel=True)
    for got, elbo, iwae in zip(found, expected(ELBO(), x), expected(IWAE(), x), strict=True):
        assert_near(got, beta * elbo + (1 - beta) * iwae, torch.float64, size[0])


@bounds
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_extreme_weights_follow_the_reference(how, bound, row, device, launches, nan_filled):
    x = torch.tensor(row, dtype=torch.float64, device=device).unsqueeze(1).repeat(1, 2)
    x[:, 1] = torch.arange(4.0)
    found = fused_bound(x, *how, kernel=True)
    assert_bound(found, bound, x, torch.float64)


@bounds
def test_parts_of_parts_give_the_same(how, bound, device, launches, small_tiles, nan_filled):
    x = log_weights(40, 3, dtype=torch.float64, device=device)
    x[7, 0], x[:, 1] = -INF, -INF
    found = fused_bound(x, *how, kernel=True)
    assert launches.count("triton_bound_combine") > 1
    assert_bound(found, bound, x, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_half_types_are_read_as_they_are_and_summed_in_float32(dtype, device, launches):
    x = log_weights(100, 3, dtype=dtype, device=device)
    found = fused_bound(x, kernel=True)
    assert {out.dtype for out in found} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert_bound(found, IWAE(), x.double(), dtype)


LAYOUTS = {
    "batch of two axes": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every other sample": lambda x: x[::2],
    "samples last in memory": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "one sample, expanded": lambda x: x[:1].expand_as(x),
    "one datum, expanded": lambda x: x[:, :1, :1].expand_as(x),
    "empty batch": lambda x: x[:, :0],
    "no batch": lambda x: x[:, 0, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides(layout, device, launches, nan_filled):
    x = layout(log_weights(20, 3, 4, dtype=torch.float64, device=device))
    found = fused_bound(x, 0.5, kernel=True)
    for got, want in zip(found, expected(Renyi(0.5), x), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [1e-8, 1e-4, 1.0])
def test_value_is_precise_relative_to_the_spread(spread, device, launches):
    x = log_weights(1000, 2, dtype=torch.float32, device=device, spread=spread)
    value = fused_bound(x, kernel=True).value.double()
    exact = log_mean_exp(x.double().cpu()).to(device)
    assert ((value - exact).abs() <= 8 * torch.finfo(torch.float32).eps * x.abs().max()).all()
    assert (value >= x.double().mean(0) - 8e-7 * x.abs().max()).all()


def test_coefficients_are_constants_and_the_path_is_made_on_request(device, launches):
    x = log_weights(5, 2, dtype=torch.float32, device=device).requires_grad_()
    for kernel in (True, False):
        value, model, path = fused_bound(x, path=False, kernel=kernel)
        assert path is None
        assert not value.requires_grad
        assert not model.requires_grad


@pytest.mark.parametrize(
    ("options", "words"),
    [({"power": torch.inf}, "finite power"), ({"elbo_part": 1.5}, r"elbo_part in \[0, 1\]")],
    ids=str,
)
def test_wrong_means_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        fused_bound(torch.zeros(3), **options)


def test_what_is_no_float_tensor_with_samples_is_refused():
    with pytest.raises(ValueError, match=r"at least one sample.*\(0, 2\)"):
        fused_bound(torch.zeros(0, 2))
    with pytest.raises(TypeError, match=r"torch.int64.*\.float\(\)"):
        fused_bound(torch.zeros(3, dtype=torch.int64))
