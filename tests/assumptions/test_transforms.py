"""torch.func, make_fx and compilers: right, or refused in a sentence of ours.

Root cause: hooks, custom Functions without rules for transforms, and random permutations inside a traced region.
"""

import pytest
import torch
from torch.distributions import Normal
from torch.fx.experimental.proxy_tensor import make_fx

import iwbounds as iw

K, B = 5, 4
SUBSETS = [iw.Jackknife(1), iw.Jackknife(2), iw.UStatistic(2), iw.IncompleteUStatistic(2)]


def log_weights():
    return torch.randn(K, B, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("bound", SUBSETS, ids=repr)
def test_vmap_and_jacobians_of_subset_bounds(bound):
    x = log_weights()
    torch.testing.assert_close(torch.vmap(bound, in_dims=1)(x), bound(x), rtol=1e-12, atol=1e-12)
    stacked = torch.stack([x, 2 * x])
    torch.testing.assert_close(
        torch.vmap(bound)(stacked), torch.stack([bound(x), bound(2 * x)]), rtol=1e-12, atol=1e-12
    )
    one = x[:, 0]
    expected = bound.differentiate(one).gradient
    for jacobian in (torch.func.jacrev, torch.func.jacfwd, torch.func.grad):
        torch.testing.assert_close(jacobian(bound)(one), expected, rtol=1e-10, atol=1e-12)


def test_a_traced_incomplete_statistic_replays_its_own_permutations():
    bound, x = iw.IncompleteUStatistic(2), log_weights()
    torch.testing.assert_close(make_fx(bound)(x)(2 * x), bound(2 * x), rtol=1e-12, atol=1e-12)


def test_what_hides_the_range_of_the_weights_from_a_u_statistic_is_refused():
    bound, x = iw.UStatistic(2), log_weights()
    for call in (lambda: make_fx(bound)(x), lambda: torch.vmap(torch.func.grad(bound), in_dims=1)(x)):
        with pytest.raises(RuntimeError, match="iwbounds: a U-statistic chooses its quadrature"):
            call()


@pytest.fixture
def compiler():
    before = torch.distributions.Distribution._validate_args
    torch._dynamo.reset()
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("bound", SUBSETS, ids=repr)
def test_compiled_subset_bounds_are_right_or_refused(bound):
    x, compiled = log_weights(), torch.compile(bound, fullgraph=True, backend="aot_eager")
    if bound in (iw.Jackknife(2), iw.UStatistic(2)):
        with pytest.raises(Exception, match=rf"iwbounds: torch\.compile cannot trace {type(bound).__name__}, whose"):
            compiled(x)
        return
    torch.testing.assert_close(compiled(x), bound(x), rtol=1e-10, atol=1e-12)


def estimate(loc, gradient, **options):
    q = Normal(loc, 1.0, validate_args=False)
    return iw.estimate(lambda z: -(z - 1).square(), q, iw.IWAE(), gradient, num_samples=8, **options).value.sum()


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()], ids=repr)
def test_functional_transforms_of_an_estimate_are_refused(gradient):
    for transform in (torch.func.grad, torch.func.hessian):
        with pytest.raises(RuntimeError, match=r"iwbounds.estimate cannot be differentiated by torch.func transforms"):
            transform(lambda loc: estimate(loc, gradient))(torch.zeros(3))
    with torch.no_grad():
        assert estimate(torch.zeros(3), gradient).shape == ()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_chunks_under_a_compiler_are_refused():
    compiled = torch.compile(lambda loc: estimate(loc, iw.DReG(), chunk_size=4), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="chunk_size draws and evaluates samples anew"):
        compiled(torch.zeros(3, requires_grad=True))


def with_derivative(z):
    (slope,) = torch.autograd.grad(z.square().sum(), z, create_graph=True)
    return -z.square() - 0.1 * slope.square()


def with_its_own_derivative(z):
    with torch.enable_grad():
        at = z if z.requires_grad else z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(at.square().sum(), at, create_graph=True)
    return -z.square() - 0.1 * slope.square()


def test_a_derivative_inside_the_log_joint():
    loc = torch.zeros(3, requires_grad=True)
    for options in ({}, {"chunk_size": 3}):
        assert iw.estimate(with_derivative, Normal(loc, 1.0), num_samples=8, **options).value.requires_grad
    with pytest.raises(RuntimeError, match=r"backward_samples first evaluates log_joint.*torch.enable_grad\(\)"):
        iw.estimate(with_derivative, Normal(loc, 1.0), num_samples=8, backward_samples=3)
    few = iw.estimate(with_its_own_derivative, Normal(loc, 1.0), num_samples=8, backward_samples=3).value
    assert torch.autograd.grad(few.sum(), loc)[0].any()
