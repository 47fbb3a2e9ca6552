"""The torch.library operators: forward, derivatives, fakes, batching and graphs, on the reference and the kernel."""

import pytest
import torch

from iwbounds import leave_one_out_log_mean_exp, log_mean_exp, normalized_weights
from iwbounds.logspace.kernels import fused_leave_one_out_log_mean_exp, fused_log_mean_exp, operators
from tests.logspace.kernels.cases import DTYPES, INF, ROWS, SIZES, assert_near, log_densities

PAIRS = {
    "mean": (fused_log_mean_exp, log_mean_exp),
    "leave one out": (fused_leave_one_out_log_mean_exp, leave_one_out_log_mean_exp),
}
operators_and_references = pytest.mark.parametrize(("operator", "reference"), PAIRS.values(), ids=PAIRS)
both_paths = pytest.mark.parametrize("kernel", [False, True], ids=["reference", "kernel"])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mean_and_its_gradient(size, dtype, device, launches, nan_filled):
    x = log_densities(*size, dtype=dtype, device=device)[0].requires_grad_()
    value = fused_log_mean_exp(x, kernel=True)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert {"triton_mean_mean", "triton_mean_backward"} <= set(launches)
    assert_near(value, log_mean_exp(x.detach().double()), dtype, 10.0)
    assert grad.dtype == dtype
    assert_near(grad, normalized_weights(x.detach().double()), dtype)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_mean_of_extreme_weights(row, device, launches, nan_filled):
    x = torch.tensor(row, dtype=torch.float64, device=device, requires_grad=True)
    value = fused_log_mean_exp(x, kernel=True)
    (grad,) = torch.autograd.grad(value, x)
    assert_near(value, log_mean_exp(x.detach()), torch.float64, 1e4)
    assert_near(grad, normalized_weights(x.detach()), torch.float64)


def test_mean_of_parts_of_parts(device, launches, small_tiles, nan_filled):
    x, _ = log_densities(40, 3, dtype=torch.float64, device=device)
    x[:, 1] = -INF
    assert_near(fused_log_mean_exp(x, kernel=True), log_mean_exp(x), torch.float64, 10.0)
    assert launches.count("triton_bound_combine") > 1


@operators_and_references
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_any_axis(operator, reference, dim, device, launches):
    x = torch.randn(4, 3, 5, device=device)
    torch.testing.assert_close(operator(x, dim, kernel=True), reference(x, dim))


@operators_and_references
@both_paths
def test_derivatives_to_second_order(operator, reference, kernel, launches):
    x = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: operator(t, kernel=kernel), x)
    assert torch.autograd.gradgradcheck(lambda t: operator(t, kernel=kernel), x)


@pytest.fixture
def _validation_kept():
    """The compiler turns off the validation of torch.distributions when it is imported."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


def operator_inputs():
    x = torch.randn(5, 3, requires_grad=True)
    _, maximum, total = operators._mean(x.detach(), False)
    grads = torch.randn(3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    return {
        "mean": (operators._mean, (x, False)),
        "mean backward": (operators._mean_backward, (grads[0], x, maximum, total, False)),
        "leave one out": (operators._leave_one_out, (x, False)),
        "leave one out backward": (operators._leave_one_out_backward, (grads[1], x, False)),
    }


@pytest.mark.usefixtures("_validation_kept")
@pytest.mark.parametrize("name", ["mean", "mean backward", "leave one out", "leave one out backward"])
def test_opcheck(name):
    operator, inputs = operator_inputs()[name]
    results = torch.library.opcheck(operator, inputs)
    assert set(results.values()) == {"SUCCESS"}


@operators_and_references
@both_paths
def test_vmap(operator, reference, kernel, launches):
    x = torch.randn(5, 3, 4)
    found = torch.func.vmap(lambda t: operator(t, kernel=kernel), in_dims=2)(x)
    torch.testing.assert_close(found, torch.func.vmap(reference, in_dims=2)(x))


@operators_and_references
def test_functional_transforms_and_forward_mode_take_the_reference(operator, reference):
    x, tangent = torch.randn(5, 3), torch.randn(5, 3)
    gradients = [torch.func.grad(lambda t, f=f: f(t).sin().sum())(x) for f in (operator, reference)]
    slopes = [torch.func.jvp(f, (x,), (tangent,))[1] for f in (operator, reference)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*slopes)


@pytest.mark.usefixtures("_validation_kept")
@operators_and_references
@pytest.mark.parametrize("kernel", [None, False, True])
def test_one_graph_under_compile(operator, reference, kernel, launches):
    x = torch.randn(5, 3, requires_grad=True)
    compiled = torch.compile(lambda t: operator(t, kernel=kernel).sin().sum(), fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(reference(x).sin().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@operators_and_references
def test_cuda_graph_replays_on_new_data(operator, reference, launches):
    x = torch.randn(64, 32, device="cuda")
    operator(x, kernel=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operator(x, kernel=True)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(out, reference(x))
