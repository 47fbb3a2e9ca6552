"""Fused log-densities equal torch.distributions in value and every derivative, in every mode of a training loop."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

import iwbounds as iw
from iwbounds.densities import bernoulli_logits, diagonal_gaussian, events


def bernoulli(logits, x):
    return Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1)


def gaussian(z, mean, log_scale):
    return Normal(mean, log_scale.exp(), validate_args=False).log_prob(z).sum(-1)


SHAPES = {
    "shared by the samples": ((5, 3, 7), (3, 7)),
    "shared by two leading axes": ((2, 5, 3, 7), (3, 7)),
    "shared by all": ((5, 3, 7), (7,)),
    "nothing shared": ((5, 3, 7), (5, 3, 7)),
    "no batch": ((5, 7), (7,)),
    "one row": ((7,), (7,)),
    "no samples": ((0, 3, 7), (3, 7)),
    "no data": ((5, 0, 7), (0, 7)),
    "no events": ((5, 3, 0), (3, 0)),
}
shapes = pytest.mark.parametrize(("full", "shared"), SHAPES.values(), ids=SHAPES)


@pytest.fixture(params=[1 << 20, 10], ids=["one block", "many blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(events, "BLOCK", request.param)


def value_and_gradients(density, arguments, upstream):
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    out = density(*leaves)
    return [out, *torch.autograd.grad(out, leaves, upstream)]


def assert_same(ours, theirs, arguments):
    upstream = torch.randn(theirs(*arguments).shape, dtype=torch.float64)
    for got, want in zip(*(value_and_gradients(f, arguments, upstream) for f in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, want)


@shapes
@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("swapped", [False, True], ids=["x shared", "logits shared"])
def test_bernoulli(full, shared, swapped):
    logits = torch.randn(shared if swapped else full, dtype=torch.float64) * 3
    x = torch.rand(full if swapped else shared, dtype=torch.float64)
    assert_same(bernoulli_logits, bernoulli, (logits, x))


@shapes
@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("which", ["z", "mean", "log_scale", "all"])
def test_gaussian(full, shared, which):
    names = ("z", "mean", "log_scale")
    arguments = [torch.randn(full if which in (name, "all") else shared, dtype=torch.float64) for name in names]
    assert_same(diagonal_gaussian, gaussian, arguments)


def test_several_event_axes_and_numbers():
    logits, x = torch.randn(4, 2, 3, 5), torch.rand(2, 3, 5).round()
    expected = Independent(Bernoulli(logits=logits), 2).log_prob(x)
    torch.testing.assert_close(bernoulli_logits(logits, x, event_dims=2), expected)
    torch.testing.assert_close(
        diagonal_gaussian(logits, 0.5, -1.0, 2), gaussian(logits.flatten(2), 0.5, torch.tensor(-1.0))
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_data_of_any_type(dtype):
    logits, x = torch.randn(4, 2, 6), torch.rand(2, 6).round()
    torch.testing.assert_close(bernoulli_logits(logits, x.to(dtype)), bernoulli(logits, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_summed_in_float32(dtype):
    logits, x = torch.randn(4, 2, 784).to(dtype).requires_grad_(), torch.rand(2, 784).round()
    value = bernoulli_logits(logits, x)
    torch.testing.assert_close(value, bernoulli(logits.float(), x), rtol=1e-6, atol=1e-3)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(grad, (x - logits.detach().float().sigmoid()).to(dtype))


def test_confident_pixels_lose_no_digits():
    x = torch.tensor([0.0, 1.0]).repeat(392)
    for size in (20.0, 60.0, 80.0):
        logits = (2 * x - 1) * size
        exact = -784 * torch.log1p(torch.exp(-torch.tensor(size, dtype=torch.float64)))
        torch.testing.assert_close(bernoulli_logits(logits, x).double(), exact, rtol=1e-5, atol=0.0)


DENSITIES = {
    "bernoulli": (bernoulli_logits, bernoulli, lambda: (torch.randn(3, 2, 4).double(), torch.rand(2, 4).double())),
    "gaussian": (
        diagonal_gaussian,
        gaussian,
        lambda: tuple(torch.randn(*s).double() for s in ((3, 2, 4), (2, 4), (4,))),
    ),
}
densities = pytest.mark.parametrize(("ours", "theirs", "draw"), DENSITIES.values(), ids=DENSITIES)


@densities
def test_second_derivatives(ours, theirs, draw):
    leaves = [t.requires_grad_() for t in draw()]
    assert torch.autograd.gradgradcheck(ours, leaves)


@densities
def test_functional_transforms_and_forward_mode(ours, theirs, draw):
    arguments = draw()
    upstream = torch.randn(3, 2).double()
    for got, want in zip(*(torch.func.vjp(f, *arguments)[1](upstream) for f in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, want)
    tangents = tuple(torch.randn_like(t) for t in arguments)
    torch.testing.assert_close(*(torch.func.jvp(f, arguments, tangents)[1] for f in (ours, theirs)))
    full, *shared = arguments
    rows = torch.func.vmap(lambda first: ours(first, *shared))(full)
    torch.testing.assert_close(rows, theirs(*arguments))


@pytest.fixture
def _validation_kept():
    """The compiler turns off the validation of torch.distributions when it is imported."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_validation_kept")
@densities
def test_one_graph_under_compile(ours, theirs, draw):
    arguments, upstream = draw(), torch.randn(3, 2).double()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = value_and_gradients(compiled, arguments, upstream)
    for got, want in zip(found, value_and_gradients(theirs, arguments, upstream), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("gradient", [iw.DReG(), iw.STL(), iw.Reparameterized()], ids=repr)
def test_estimate_is_the_same_with_either(gradient):
    x, weight = torch.rand(4, 6).round().double(), torch.randn(3, 6).double()
    noise = torch.randn(10, 4, 3).double()

    def gradients(likelihood, normal):
        mean, log_scale, w = (t.clone().requires_grad_() for t in (torch.zeros(4, 3).double(),) * 2 + (weight,))
        q = iw.Proposal(lambda shape: mean + log_scale.exp() * noise, lambda z: normal(z, mean, log_scale))
        zero = torch.zeros(()).double()
        estimate = iw.estimate(
            lambda z: likelihood(z @ w, x) + normal(z, zero, zero), q, gradient=gradient, num_samples=10
        )
        return estimate.value, *torch.autograd.grad(estimate.value.sum(), (mean, log_scale, w))

    for got, want in zip(gradients(bernoulli_logits, diagonal_gaussian), gradients(bernoulli, gaussian), strict=True):
        torch.testing.assert_close(got, want)


def test_nothing_of_the_size_of_the_event_is_kept_for_the_backward():
    logits, x = torch.randn(5, 3, 7, requires_grad=True), torch.rand(3, 7)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        bernoulli_logits(logits, x)
    assert sorted(t.untyped_storage().data_ptr() for t in kept) == sorted(
        t.untyped_storage().data_ptr() for t in (logits, x)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(5, 3, 7), torch.zeros(3, 1)), ValueError, r"x to have the trailing .*\(5, 3, 7\).*got \(3, 1\)"),
        ((torch.zeros(5, 3, 7), torch.zeros(5, 1, 7)), ValueError, r"lack leading \(sample\) axes only"),
        ((torch.zeros(3, 7), torch.zeros(7), 3), ValueError, "event_dims between 1 and 2"),
        ((torch.zeros(7), torch.zeros(7), 0), ValueError, "event_dims between 1 and 1"),
        ((torch.zeros(7), torch.zeros(7).double()), TypeError, r"one precision; got logits: torch.float32, x"),
        ((torch.zeros(7).long(), torch.zeros(7).long()), TypeError, "floating-point argument"),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        bernoulli_logits(*arguments)
