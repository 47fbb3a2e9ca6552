"""Leave-one-out and VIMCO kernels equal the reference in float64, forward and backward."""

import pytest
import torch

from iwbounds import IWAE, VIMCO
from iwbounds.kernels import fused_leave_one_out_log_mean_exp, fused_vimco
from iwbounds.logspace.leave_one_out import plain_leave_one_out
from tests.kernels.cases import DTYPES, INF, ROWS, SIZES, assert_near, log_weights

TWO_OR_MORE = [size for size in SIZES if size[0] > 1]
FINITE_OR_DEAD = {name: row for name, row in ROWS.items() if not {INF} & set(row)}


def value_and_grad(function, x, upstream):
    x = x.detach().clone().requires_grad_()
    out = function(x)
    (grad,) = torch.autograd.grad(out, x, upstream.to(out.dtype))
    return out.detach(), grad


def assert_leave_one_out(x, dtype):
    upstream = torch.randn(x.shape, dtype=torch.float64).to(x.device)
    found = value_and_grad(lambda t: fused_leave_one_out_log_mean_exp(t, kernel=True), x, upstream)
    wanted = value_and_grad(plain_leave_one_out, x.double(), upstream)
    assert_near(found[0], wanted[0], dtype, max(1.0, x[x.isfinite()].abs().max().item()) if x.isfinite().any() else 1)
    alive = ~x.isnan().any(0)
    assert_near(found[1][:, alive], wanted[1][:, alive], dtype, x.shape[0])
    assert found[1][:, ~alive].isnan().all()


@pytest.mark.parametrize("size", TWO_OR_MORE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_leave_one_out_and_its_gradient(size, dtype, device, launches, nan_filled):
    assert_leave_one_out(log_weights(*size, dtype=dtype, device=device), dtype)
    assert "triton_leave_one_out_leave_one_out" in launches
    assert "triton_leave_one_out_backward" in launches


@pytest.mark.parametrize("row", FINITE_OR_DEAD.values(), ids=FINITE_OR_DEAD)
def test_leave_one_out_of_extreme_weights(row, device, launches, nan_filled):
    x = torch.tensor(row, dtype=torch.float64, device=device).unsqueeze(1).repeat(1, 2)
    x[:, 1] = torch.arange(4.0)
    assert_leave_one_out(x, torch.float64)


def test_an_infinite_weight_reaches_all_the_others(device, launches):
    x = torch.tensor([[INF, INF], [1.0, INF], [2.0, 0.0]], dtype=torch.float64, device=device)
    found = fused_leave_one_out_log_mean_exp(x, kernel=True)
    torch.testing.assert_close(found, plain_leave_one_out(x))


def test_parts_of_parts_give_the_same(device, launches, small_tiles, nan_filled):
    x = log_weights(40, 3, dtype=torch.float64, device=device)
    x[7, 0], x[:, 1], x[35:, 2] = -INF, -INF, x[:, 2].max()
    assert_leave_one_out(x, torch.float64)
    assert launches.count("triton_leave_one_out_combine") > 1


def assert_vimco(x, geometric, dtype, kernel=True):
    found = fused_vimco(x, geometric=geometric, kernel=kernel)
    # On the CPU: on a GPU the estimator would ask the kernel under test.
    exact = x.double().cpu()
    wanted = VIMCO(geometric).coefficients(IWAE(), exact)
    largest = exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 1.0
    triples = zip(found, (IWAE()(exact), wanted.model, wanted.score), (max(1.0, largest), 1.0, 10.0), strict=True)
    for got, want, scale in triples:
        assert_near(got, want, dtype, scale)


arithmetic_or_geometric = pytest.mark.parametrize("geometric", [False, True], ids=["arithmetic", "geometric"])


@arithmetic_or_geometric
@pytest.mark.parametrize("size", TWO_OR_MORE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vimco_equals_the_estimator_in_float64(geometric, size, dtype, device, launches, nan_filled):
    assert_vimco(log_weights(*size, dtype=dtype, device=device), geometric, dtype)
    assert "triton_leave_one_out_vimco" in launches


@arithmetic_or_geometric
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_vimco_of_extreme_weights(geometric, row, device, launches, nan_filled):
    x = torch.tensor(row, dtype=torch.float64, device=device).unsqueeze(1).repeat(1, 2)
    x[:, 1] = torch.arange(4.0)
    assert_vimco(x, geometric, torch.float64)
    assert_vimco(x, geometric, torch.float64, kernel=False)


@arithmetic_or_geometric
def test_vimco_of_parts_of_parts(geometric, device, launches, small_tiles, nan_filled):
    x = log_weights(40, 3, dtype=torch.float64, device=device)
    x[7, 0] = -INF
    assert_vimco(x, geometric, torch.float64)


@pytest.mark.parametrize("function", [fused_vimco, fused_leave_one_out_log_mean_exp])
def test_one_sample_leaves_none(function):
    with pytest.raises(ValueError, match="at least 2 samples"):
        function(torch.zeros(1, 3))
