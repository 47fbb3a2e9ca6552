"""Chunks, micro-batches and resampled backwards give the gradient of the plain call, or its exact expectation."""

import gc
import itertools
import weakref

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

import iwbounds as iw
from iwbounds.engine.resampling import copy_probabilities, resampled, systematic_indices
from tests.registry import BOUNDS, PATHWISE, SCORE

B, D, K = 5, 3, 12


class PathAndScore(iw.Gradient):
    """Uses all three channels, each with a coefficient of its own."""

    pathwise = True

    def coefficients(self, bound, log_w):
        c = bound.differentiate(log_w).gradient
        return iw.Coefficients(c, 0.7 * c, 0.3 - c)


GRADIENTS = {**PATHWISE, **SCORE, "stl": iw.STL, "wake": iw.Wake, "all three channels": PathAndScore}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, D).double(), torch.nn.Linear(D, 4).double()
        self.dropout = torch.nn.Dropout(0.0)
        self.sizes = []

    def forward(self, x):
        q = Independent(Normal(self.encoder(x), 0.5), 1)

        def log_joint(z):
            self.sizes.append(z.shape[0])
            mean = self.decoder(self.dropout(z))
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(mean, 1.0).log_prob(x).sum(-1)

        return log_joint, q


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def x():
    return torch.randn(B, 4, dtype=torch.float64)


def gradients(model, x, **options):
    torch.manual_seed(7)
    value = iw.estimate(*model(x), num_samples=K, **options).value.mean()
    return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("bound", [iw.IWAE(), iw.Renyi(0.5)], ids=repr)
def test_any_chunking_gives_the_same_numbers(model, x, bound, gradient, chunk_size):
    options = {"bound": bound, "gradient": gradient()}
    assert_equal(gradients(model, x, **options, chunk_size=chunk_size), gradients(model, x, **options))


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_every_bound_can_be_chunked(model, x, bound):
    options = {"bound": bound(), "gradient": iw.DReG()}
    assert_equal(gradients(model, x, **options, chunk_size=5), gradients(model, x, **options))


def test_chunks_restore_the_random_state_of_the_log_joint(model, x):
    """With dropout the second evaluation must repeat the first: the gradient is that of the values that were seen."""
    model.dropout.p = 0.5
    model.train()
    options = {"gradient": iw.Reparameterized()}
    assert_equal(gradients(model, x, **options, chunk_size=K - 1), gradients(model, x, **options, chunk_size=K - 1))
    torch.manual_seed(7)
    loss = iw.estimate(*model(x), num_samples=K, chunk_size=4, **options).value.mean()
    with torch.no_grad():
        before = [p.clone() for p in model.decoder.parameters()]
    found = torch.autograd.grad(loss, list(model.decoder.parameters()))
    step, direction = 1e-6, [g / sum(h.square().sum() for h in found).sqrt() for g in found]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, q, d in zip(model.decoder.parameters(), before, direction, strict=True):
                p.copy_(q + sign * step * d)
        torch.manual_seed(7)
        with torch.no_grad():
            values.append(iw.estimate(*model(x), num_samples=K, chunk_size=4, **options).value.mean())
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(
        slope, sum((g * d).sum() for g, d in zip(found, direction, strict=True)), rtol=1e-5, atol=0
    )


def test_chunks_hold_few_samples_at_once(model, x):
    gradients(model, x, gradient=iw.DReG(), chunk_size=5)
    assert sorted(set(model.sizes)) == [2, 5]
    assert sum(model.sizes) == 2 * K


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"backward_samples": 0}])
def test_empty_chunks_and_backwards_are_refused(model, x, options):
    with pytest.raises(ValueError, match="at least 1"):
        iw.estimate(*model(x), **options)


# Micro-batches.


@pytest.mark.parametrize("budget", [1, K - 1, K, 2 * K + 1, 10_000])
@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
def test_accumulate_adds_the_gradient_of_the_whole_batch(model, x, gradient, budget):
    z = torch.randn(K, B, D, dtype=torch.float64)
    options = {"bound": iw.IWAE(), "gradient": gradient()}
    if gradient in (iw.STL, PathAndScore) or gradient in PATHWISE.values():
        q = model(x)[1]
        noise = (z - q.mean.detach()) / 0.5

        def with_path(x):
            log_joint, q = model(x[0])
            return log_joint, iw.Proposal(lambda shape: q.mean + 0.5 * x[1].movedim(1, 0), q.log_prob)

        options["num_samples"], data = K, (x, noise.movedim(0, 1))
    else:
        with_path, data = lambda x: model(x[0]), (x,)
        options["samples"] = z
    whole = iw.estimate(*with_path(data), **options)
    expected = torch.autograd.grad(-whole.value.mean(), list(model.parameters()), allow_unused=True)
    result = iw.accumulate(with_path, data, max_live_samples=budget, **options)
    for p, e in zip(model.parameters(), expected, strict=True):
        if e is not None:
            torch.testing.assert_close(p.grad, e, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(result.value, whole.value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.log_weights, whole.log_weights)
    assert not result.value.requires_grad


def test_accumulate_keeps_within_its_budget(model, x):
    rows = []

    def watched(part):
        log_joint, q = model(part)
        return lambda z: (rows.append(z.shape[0] * z.shape[1]), log_joint(z))[1], q

    iw.accumulate(watched, x, max_live_samples=2 * K + 1, num_samples=K)
    assert rows == [2 * K, 2 * K, K]
    rows.clear()
    iw.accumulate(watched, x, max_live_samples=5, num_samples=K)
    assert max(rows) == 5


def test_accumulate_takes_chunks_of_more_data(model, x):
    """A part of the batch is as large as its chunks allow, not as all of its samples would."""
    shapes = []

    def watched(part):
        log_joint, q = model(part)
        return lambda z: (shapes.append(z.shape[:2]), log_joint(z))[1], q

    options = {"gradient": iw.Reparameterized(), "num_samples": K}
    z = torch.randn(K, B, D, dtype=torch.float64)
    for budget, chunk_size, expected in [
        (20, 4, {(4, B)}),
        (10, 5, {(5, 2), (2, 2), (5, 1), (2, 1)}),
        (3, 5, {(3, 1)}),
    ]:
        iw.accumulate(watched, x, budget, chunk_size=chunk_size, **options)
        assert set(shapes) == expected
        shapes.clear()
    model.zero_grad()
    fixed = {"gradient": iw.VIMCO(), "samples": z}
    whole = -iw.estimate(*model(x), **fixed).value.mean()
    expected = torch.autograd.grad(whole, list(model.parameters()))
    iw.accumulate(model, x, 20, chunk_size=4, **fixed)
    assert_equal([p.grad for p in model.parameters()], expected)


def test_accumulate_refuses_tensors_of_different_batches(model, x):
    with pytest.raises(ValueError, match=r"share their first axis.*\[3, 5\]"):
        iw.accumulate(lambda x: model(x[0]), (x, x[:3]))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_accumulate_refuses_a_proposal_that_is_not_of_the_data(model, shape):
    loc = torch.zeros(shape, requires_grad=True)
    with pytest.raises(ValueError, match=rf"starts with the 3 data it was given; got \({'1,' if shape else ''}\)"):
        iw.accumulate(lambda x: (lambda z: -z.square(), Normal(loc, 1.0)), torch.zeros(3), num_samples=K)
    assert loc.grad is None


# Backward on few samples.


def intervals(probabilities, count):
    """The values of the one uniform number at which systematic resampling changes, and the widths between them."""
    edges = (count * probabilities.cumsum(0)).remainder(1)
    edges = torch.cat([edges.new_zeros(1), edges, edges.new_ones(1)]).unique()
    return (edges[1:] + edges[:-1]) / 2, edges[1:] - edges[:-1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_systematic_resampling_copies_each_sample_in_proportion(count):
    p = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.25], dtype=torch.float64)
    expected_copies = torch.zeros(5, dtype=torch.float64)
    for u, width in zip(*intervals(p, count), strict=True):
        copies = systematic_indices(p, u, count).bincount(minlength=5)
        assert ((copies - count * p).abs() < 1).all()
        expected_copies += width * copies
    torch.testing.assert_close(expected_copies, count * p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
def test_resampled_backward_is_exactly_unbiased(model, x, monkeypatch, gradient, count):
    """The gradient is averaged over every interval of the uniform number, for one datum of four samples."""
    x = x[:1]
    torch.manual_seed(3)
    z = torch.randn(4, 1, D, dtype=torch.float64)

    def grads(**options):
        log_joint, q = model(x)
        samples = q.mean + 0.5 * z if gradient().pathwise else z
        value = iw.estimate(log_joint, q, iw.IWAE(), gradient(), samples=samples, **options)
        found = torch.autograd.grad(value.value.sum(), list(model.parameters()), allow_unused=True)
        return value.coefficients, [
            torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)
        ]

    coefficients, expected = grads()
    mean = [torch.zeros_like(g) for g in expected]
    for u, width in zip(*intervals(copy_probabilities(coefficients)[:, 0], count), strict=True):
        monkeypatch.setattr(torch, "rand", lambda shape, u=u, **_: u.expand(shape).clone())
        for total, g in zip(mean, grads(backward_samples=count)[1], strict=True):
            total += width * g
    assert_equal(mean, expected)


def test_resampled_backward_sees_few_samples(model, x):
    value = iw.estimate(*model(x), num_samples=K, backward_samples=4).value
    value.sum().backward()
    assert model.sizes == [K, 4]


def test_resampled_backward_keeps_dead_data_dead():
    coefficients = iw.Coefficients(torch.zeros(6, 2), torch.zeros(6, 2))
    _, kept = resampled(torch.randn(6, 2, 3), coefficients, 2)
    assert (kept.model == 0).all()


def test_resampling_variance_is_that_of_uncorrelated_gradients():
    """Orthonormal gradients g_k: the extra variance is exactly the sum over k of the variance of its coefficient."""
    c = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).unsqueeze(1)
    coefficients, count = iw.Coefficients(c), 3
    p = copy_probabilities(coefficients)[:, 0]
    second = torch.zeros(5, dtype=torch.float64)
    for u, width in zip(*intervals(p, count), strict=True):
        copies = systematic_indices(p, u, count).bincount(minlength=5)
        second += width * (copies * c[:, 0] / (count * p)).square()
    expected = (second - c[:, 0].square()).sum() / c.square().sum()
    torch.testing.assert_close(iw.resampling_variance(coefficients, count)[0], expected)
    assert iw.resampling_variance(coefficients, 1000)[0] < 1e-3


def test_chunks_and_resampling_go_together(model, x):
    torch.manual_seed(0)
    options = {"num_samples": K, "backward_samples": 4}
    value = iw.estimate(*model(x), chunk_size=3, **options).value.sum()
    found = torch.autograd.grad(value, list(model.parameters()))
    torch.manual_seed(0)
    value = iw.estimate(*model(x), **options).value.sum()
    assert_equal(found, torch.autograd.grad(value, list(model.parameters())))


def test_discrete_latents_can_be_resampled_and_chunked():
    logits = torch.zeros(B, 4, dtype=torch.float64, requires_grad=True)
    theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    z = torch.tensor(list(itertools.product(range(4), repeat=2))).T.unsqueeze(-1).expand(2, 16, B)[:, 3]

    def grads(**options):
        q = Categorical(logits=logits)
        value = iw.estimate(lambda z: theta[z], q, gradient=iw.VIMCO(), samples=z, **options).value.sum()
        return torch.autograd.grad(value, (logits, theta))

    assert_equal(grads(chunk_size=1), grads())


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"backward_samples": 2}], ids=str)
@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()], ids=repr)
def test_a_step_leaves_nothing_for_the_garbage_collector(gradient, options):
    """A reference cycle through the graph would hold every activation until the collector happens to run."""
    loc, seen = torch.zeros(3, requires_grad=True), []

    def log_joint(z):
        result = -(z**2)
        seen.append(weakref.ref(result))
        return result

    gc.disable()
    try:
        iw.estimate(log_joint, Normal(loc, 1.0), gradient=gradient, num_samples=6, **options).value.sum().backward()
        assert [reference() for reference in seen] == [None] * len(seen)
    finally:
        gc.enable()
