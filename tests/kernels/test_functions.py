"""Log-mean-exp and leave-one-out by a kernel: forward, derivatives of any order, transforms, and graphs."""

import pytest
import torch

from iwbounds import normalized_weights
from iwbounds.kernels import fused_leave_one_out_log_mean_exp, fused_log_mean_exp
from iwbounds.logspace.leave_one_out import plain_leave_one_out
from iwbounds.logspace.mean import plain_log_mean_exp
from tests.kernels.cases import DTYPES, INF, ROWS, SIZES, assert_near, log_weights

PAIRS = {
    "mean": (fused_log_mean_exp, plain_log_mean_exp),
    "leave one out": (fused_leave_one_out_log_mean_exp, plain_leave_one_out),
}
both = pytest.mark.parametrize(("function", "reference"), PAIRS.values(), ids=PAIRS)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mean_and_its_gradient(size, dtype, device, launches, nan_filled):
    x = log_weights(*size, dtype=dtype, device=device).requires_grad_()
    value = fused_log_mean_exp(x, kernel=True)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert {"triton_bound_mean", "triton_bound_backward"} <= set(launches)
    assert_near(value, plain_log_mean_exp(x.detach().double()), dtype, 10.0)
    assert grad.dtype == dtype
    assert_near(grad, normalized_weights(x.detach().double()), dtype)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_mean_of_extreme_weights(row, device, launches, nan_filled):
    x = torch.tensor(row, dtype=torch.float64, device=device, requires_grad=True)
    value = fused_log_mean_exp(x, kernel=True)
    (grad,) = torch.autograd.grad(value, x)
    assert_near(value, plain_log_mean_exp(x.detach()), torch.float64, 1e4)
    assert_near(grad, normalized_weights(x.detach()), torch.float64)


def test_mean_of_parts_of_parts(device, launches, small_tiles, nan_filled):
    x = log_weights(40, 3, dtype=torch.float64, device=device)
    x[:, 1] = -INF
    assert_near(fused_log_mean_exp(x, kernel=True), plain_log_mean_exp(x), torch.float64, 10.0)
    assert launches.count("triton_bound_combine") > 1


@both
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_any_axis(function, reference, dim, device, launches):
    x = torch.randn(4, 3, 5, device=device)
    torch.testing.assert_close(function(x, dim, kernel=True), reference(x, dim))


@both
def test_derivatives_to_second_order(function, reference, launches):
    x = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: function(t, kernel=True), x)
    assert torch.autograd.gradgradcheck(lambda t: function(t, kernel=True), x)


@pytest.fixture
def _validation_kept():
    """The compiler turns off the validation of torch.distributions when it is imported."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@both
def test_functional_transforms_and_forward_mode_take_the_reference(function, reference):
    x, tangent = torch.randn(5, 3), torch.randn(5, 3)
    gradients = [torch.func.grad(lambda t, f=f: f(t).sin().sum())(x) for f in (function, reference)]
    slopes = [torch.func.jvp(f, (x,), (tangent,))[1] for f in (function, reference)]
    rows = [torch.func.vmap(f, in_dims=1)(x) for f in (function, reference)]
    for pair in (gradients, slopes, rows):
        torch.testing.assert_close(*pair)


@pytest.mark.usefixtures("_validation_kept")
@both
def test_one_graph_under_compile(function, reference):
    x = torch.randn(5, 3, requires_grad=True)
    compiled = torch.compile(lambda t: function(t).sin().sum(), fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(reference(x).sin().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@both
def test_cuda_graph_replays_on_new_data(function, reference, launches):
    x = torch.randn(64, 32, device="cuda")
    function(x, kernel=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(x, kernel=True)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(out, reference(x))
