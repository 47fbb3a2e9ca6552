"""Latents that are forgotten and drawn again give the gradient of latents that are held."""

import weakref

import pytest
import torch
from torch.distributions import Bernoulli, Exponential, Independent, Normal, Uniform

import iwbounds as iw
from iwbounds.engine.request import complete
from iwbounds.engine.samples import blocks, chunks
from tests.oracles.memory import peak_of_live_tensors
from tests.registry import BOUNDS, PATHWISE, SCORE

B, D, K = 5, 3, 78


class Model(torch.nn.Module):
    """Its proposal draws ``per_call`` samples at a time."""

    def __init__(self, per_call, reparameterized=True):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, D).double(), torch.nn.Linear(D, 4).double()
        self.per_call, self.reparameterized, self.calls = per_call, reparameterized, []

    def forward(self, x):
        scores = self.encoder(x)
        continuous = Independent(Normal(scores, 0.5), 1)
        q = continuous if self.reparameterized else Independent(Bernoulli(logits=scores), 1)

        def sample(shape):
            self.calls.append(shape[0])
            return q.rsample(shape) if q.has_rsample else q.sample(shape)

        def log_joint(z):
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(self.decoder(z), 1.0).log_prob(x).sum(-1)

        return log_joint, iw.Proposal(sample, q.log_prob, q.has_rsample, samples_per_call=self.per_call)


def gradients(per_call, reparameterized=True, **options):
    torch.manual_seed(0)
    model, x = Model(per_call, reparameterized), torch.randn(B, 4, dtype=torch.float64)
    value = iw.estimate(*model(x), num_samples=K, **options).value.mean()
    wanted = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return [value.detach(), *wanted]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("chunk_size", [1, 16, 20, 77])
@pytest.mark.parametrize("gradient", [*PATHWISE.values(), iw.STL])
def test_pathwise_gradients_of_forgotten_latents_are_those_of_held_ones(gradient, chunk_size):
    held = gradients(None, gradient=gradient(), chunk_size=chunk_size)
    assert_equal(gradients(16, gradient=gradient(), chunk_size=chunk_size), held)


@pytest.mark.parametrize("reparameterized", [True, False], ids=["continuous", "discrete"])
@pytest.mark.parametrize("gradient", SCORE.values(), ids=SCORE)
def test_score_gradients_of_forgotten_latents_are_those_of_held_ones(gradient, reparameterized):
    options = {"gradient": gradient(), "chunk_size": 20, "reparameterized": reparameterized}
    assert_equal(gradients(16, **options), gradients(None, **options))


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_every_bound_takes_forgotten_latents(bound):
    options = {"bound": bound(), "gradient": iw.DReG(), "chunk_size": 20}
    assert_equal(gradients(16, **options), gradients(None, **options))


@pytest.mark.parametrize(
    "distribution", [Normal(0.0, 1.0), Uniform(0.0, 1.0), Exponential(1.0)], ids=lambda q: type(q).__name__
)
@pytest.mark.parametrize("count", [16, 31, 33, 100])
def test_blocks_are_the_samples_of_one_call_on_the_cpu(distribution, count):
    q = distribution.expand((3,))
    torch.manual_seed(0)
    whole = q.rsample((count,))
    torch.manual_seed(0)
    proposal = iw.Proposal(q.rsample, q.log_prob, samples_per_call=16)
    found = [chunk.latents for chunk in chunks(blocks(complete(lambda z: z, proposal, num_samples=count)), 7)]
    assert torch.equal(torch.cat(found), whole)
    assert max(map(len, found)) <= 7


def test_a_distribution_is_drawn_in_calls_of_a_size_that_does_not_depend_on_the_chunks():
    calls = []

    class Counted(Normal):
        def rsample(self, shape=torch.Size()):
            calls.append(shape[0])
            return super().rsample(shape)

    loc, scale = torch.zeros(2**15, requires_grad=True), torch.ones(2**15, requires_grad=True)
    for size in (31, 100):
        calls.clear()
        value = iw.estimate(lambda z: -0.5 * z.square(), Counted(loc, scale), num_samples=108, chunk_size=size).value
        assert calls == 2 * [32] + [44]
        value.sum().backward()
        assert sorted(calls) == sorted(3 * (2 * [32] + [44]))


def test_nothing_is_held_between_forward_and_backward():
    drawn = []

    def sample(shape):
        z = loc + scale * torch.randn(*shape, B)
        drawn.append(weakref.ref(z))
        return z

    loc, scale = torch.zeros(B, requires_grad=True), torch.ones(B, requires_grad=True)
    for gradient in (iw.Reparameterized(), iw.DReG(), iw.STL()):
        drawn.clear()
        q = iw.Proposal(sample, lambda z: Normal(loc, scale).log_prob(z), samples_per_call=32)
        value = iw.estimate(lambda z: -z.square(), q, gradient=gradient, num_samples=K, chunk_size=10).value
        assert len(drawn) == 2
        assert not any(z() is not None for z in drawn), gradient
        value.sum().backward()
        assert len(drawn) > 2, "drawn again"


def test_a_graph_that_is_kept_can_be_walked_twice():
    torch.manual_seed(0)
    model, x = Model(16), torch.randn(B, 4, dtype=torch.float64)
    value = iw.estimate(*model(x), gradient=iw.Reparameterized(), num_samples=K, chunk_size=9).value.mean()
    once = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    assert_equal(torch.autograd.grad(value, list(model.parameters())), once)


def test_the_random_state_after_the_backward_is_that_before_it():
    model, x = Model(16), torch.randn(B, 4, dtype=torch.float64)
    value = iw.estimate(*model(x), num_samples=K, chunk_size=9).value.mean()
    before = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.VIMCO()], ids=repr)
def test_randomness_from_elsewhere_is_noticed(gradient):
    own, loc = torch.Generator().manual_seed(0), torch.zeros(B, requires_grad=True)
    q = iw.Proposal(
        lambda shape: loc + torch.randn(*shape, B, generator=own),
        lambda z: Normal(loc, 1.0).log_prob(z),
        samples_per_call=16,
    )
    value = iw.estimate(lambda z: -z.square() * loc, q, gradient=gradient, num_samples=K, chunk_size=10).value
    with pytest.raises(RuntimeError, match="randomness comes from elsewhere"):
        value.sum().backward()


def test_samples_per_call_must_be_positive():
    q = Normal(torch.zeros(B), 1.0)
    proposal = iw.Proposal(q.sample, q.log_prob, reparameterized=False, samples_per_call=0)
    with pytest.raises(ValueError, match="samples_per_call to be a whole number, 1 or more; got 0"):
        iw.estimate(lambda z: -z.square(), proposal, num_samples=K, chunk_size=5)


def test_without_a_gradient_samples_are_streamed():
    model, x = Model(16), torch.randn(B, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(1)
        streamed = iw.estimate(*model(x), num_samples=K, chunk_size=9).value
        torch.manual_seed(1)
        torch.testing.assert_close(streamed, iw.estimate(*model(x), num_samples=K).value)
    assert model.calls == [16, 16, 16, 30, K]


def accumulated(per_call, budget, kind=Model, **options):
    torch.manual_seed(0)
    model, x = kind(per_call), torch.randn(B, 4, dtype=torch.float64)
    result = iw.accumulate(model, x[:1], max_live_samples=budget, num_samples=K, **options)
    assert not result.value.requires_grad
    return [-result.value.mean(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("per_call", [None, 16], ids=["held", "forgotten"])
@pytest.mark.parametrize("gradient", [*PATHWISE.values(), *SCORE.values(), iw.STL])
def test_two_passes_give_the_gradient_of_one_graph(gradient, per_call):
    for budget in (1, 16, 20, K - 1):
        found = accumulated(per_call, budget, gradient=gradient())
        assert_equal(found, accumulated(None, K, gradient=gradient()))


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_every_bound_takes_two_passes(bound):
    options = {"bound": bound(), "gradient": iw.DReG()}
    assert_equal(accumulated(16, 20, **options), accumulated(None, K, **options))


class Dropping(Model):
    """With dropout inside the log-joint."""

    def forward(self, x):
        log_joint, q = super().forward(x)
        return lambda z: log_joint(torch.nn.functional.dropout(z, 0.5)), q


@pytest.mark.parametrize("per_call", [None, 16], ids=["held", "forgotten"])
def test_the_second_pass_repeats_the_randomness_of_the_log_joint(per_call):
    """The checkpointed chunks of one graph see the same noise, and restore it too."""
    options = {"gradient": iw.Reparameterized()}
    torch.manual_seed(0)
    model, x = Dropping(per_call), torch.randn(B, 4, dtype=torch.float64)
    loss = -iw.estimate(*model(x[:1]), num_samples=K, chunk_size=20, **options).value.mean()
    expected = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    assert_equal(accumulated(per_call, 20, Dropping, **options), expected)


def test_two_passes_train_a_baseline():
    level = torch.zeros((), dtype=torch.float64, requires_grad=True)
    accumulated(16, 20, gradient=iw.ScoreFunction(baseline=lambda: level.expand(1)))
    value = accumulated(16, 20)[0]
    torch.testing.assert_close(level.grad.abs(), value.abs())


def test_two_passes_outside_autograd_give_the_value_alone():
    with torch.no_grad():
        torch.manual_seed(0)
        model, x = Model(16), torch.randn(B, 4, dtype=torch.float64)
        result = iw.accumulate(model, x[:1], max_live_samples=20, num_samples=K)
    torch.testing.assert_close(result.value.mean(), -accumulated(16, 20)[0])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG(), iw.VIMCO()], ids=repr)
def test_peak_memory_does_not_grow_with_the_number_of_samples(gradient):
    """All that grows is a few numbers per sample and datum: far less than the latents, let alone the activations."""
    decoder, loc = torch.nn.Linear(400, 50), torch.zeros(4, 400, requires_grad=True)

    def peak(count):
        q = Independent(Normal(loc, 1.0), 1)
        proposal = iw.Proposal(q.rsample, q.log_prob, samples_per_call=100)

        def step():
            options = {"gradient": gradient, "num_samples": count, "chunk_size": 50}
            value = iw.estimate(lambda z: -decoder(z).square().sum(-1) - z.square().sum(-1), proposal, **options).value
            value.sum().backward()

        return peak_of_live_tensors(step)

    more_latents = 1800 * loc.numel() * loc.element_size()
    assert peak(2000) - peak(200) < more_latents / 10
