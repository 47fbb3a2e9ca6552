"""Several backwards of one call: inputs with a graph, baselines with a state, and ranks that would drift apart.

Root cause: ``accumulate`` ran the backward of every part into whatever led to its inputs, and updated states part by
part.
"""

import functools

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn.parallel import DistributedDataParallel

import iwbounds as iw

B, D, K = 6, 2, 8


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, D).double(), torch.nn.Linear(D, 4).double()

    def forward(self, x):
        q = Independent(Normal(self.encoder(x), 0.5), 1)
        return lambda z: Normal(self.decoder(z), 1.0).log_prob(x).sum(-1) - z.square().sum(-1), q


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"max_live_samples": 2 * K}, {"chunk_size": 3}, {"max_live_samples": 3}], ids=str)
def test_data_and_samples_that_come_from_a_network_train_it(options):
    torch.manual_seed(0)
    model, before, raw = Model(), torch.nn.Linear(4, 4).double(), torch.randn(B, 4, dtype=torch.float64)
    noise = torch.randn(K, B, D, dtype=torch.float64)
    parameters = [*model.parameters(), *before.parameters()]

    def inputs():
        x = before(raw).tanh()
        return x, model.encoder(x) + 0.5 * noise

    x, z = inputs()
    expected = torch.autograd.grad(-iw.estimate(*model(x), samples=z).value.mean(), parameters)
    x, z = inputs()
    iw.accumulate(model, x, samples=z, **options)
    assert_equal([p.grad for p in parameters], expected)


def discrete(x):
    logits = Discrete.weight * x
    q = Independent(Bernoulli(logits=logits), 1)
    return lambda z: -(z - x).square().sum(-1), q


class Discrete:
    weight = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)


def test_a_running_mean_is_read_and_updated_once_per_call():
    x = torch.rand(B, 4, dtype=torch.float64)
    z = Bernoulli(0.5 * torch.ones(K, B, 4, dtype=torch.float64)).sample()
    whole, parts = iw.RunningMean(0.5), iw.RunningMean(0.5)
    for _ in range(3):
        value = iw.estimate(*discrete(x), gradient=iw.ScoreFunction(whole), samples=z).value
        (expected,) = torch.autograd.grad(-value.mean(), Discrete.weight)
        Discrete.weight.grad = None
        iw.accumulate(discrete, x, 2 * K, gradient=iw.ScoreFunction(parts), samples=z)
        torch.testing.assert_close(Discrete.weight.grad, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(parts(), whole())
    with torch.no_grad():
        before = whole().clone()
        iw.estimate(*discrete(x), gradient=iw.ScoreFunction(whole), samples=z)
    assert torch.equal(whole(), before), "no update where nothing is trained"


def test_a_learned_baseline_must_be_of_the_data():
    x = torch.rand(B, 4, dtype=torch.float64)
    level = torch.zeros(B, dtype=torch.float64, requires_grad=True)
    for baseline, call in (
        (lambda: level.unsqueeze(1), lambda g: iw.estimate(*discrete(x), gradient=g)),
        (lambda: level, lambda g: iw.accumulate(discrete, x, 2 * 64, gradient=g)),
    ):
        with pytest.raises(ValueError, match=r"baseline.*expected|expected.*baseline"):
            call(iw.ScoreFunction(baseline))


@pytest.fixture
def group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_distributed_model_is_refused_where_there_would_be_several_backwards():
    module = DistributedDataParallel(Model())
    x = torch.randn(B, 4, dtype=torch.float64)
    calls = {
        "itself": module,
        "in a closure": lambda x: module(x),
        "in a partial": functools.partial(lambda m, x: m(x), module),
    }
    for model in calls.values():
        for options in ({"max_live_samples": 10}, {"chunk_size": 3}):
            with pytest.raises(ValueError, match="DistributedDataParallel synchronises"):
                iw.accumulate(model, x, num_samples=K, **options)
    assert iw.accumulate(module, x, num_samples=K).value.shape == (B,), "one backward is fine"


@pytest.mark.parametrize("gradient", [None, iw.STL(), iw.Reparameterized(), iw.VIMCO()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"backward_samples": 3}], ids=str)
@pytest.mark.parametrize("callables", [False, True], ids=["distribution", "callables"])
def test_backwards_datum_by_datum_are_that_of_their_sum(callables, gradient, options):
    loc = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def value():
        torch.manual_seed(0)
        q = Normal(loc, 1.0)
        q = iw.Proposal(q.sample if gradient == iw.VIMCO() else q.rsample, q.log_prob) if callables else q
        return iw.estimate(lambda z: -(z - 1).square(), q, gradient=gradient, num_samples=K, **options).value

    (expected,) = torch.autograd.grad(value().sum(), loc)
    found = value()
    found[0].backward(retain_graph=True)
    assert (loc.grad[1:] == 0).all()
    found[1].backward(retain_graph=True)
    found[2].backward()
    torch.testing.assert_close(loc.grad, expected)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}], ids=str)
def test_a_second_backward_of_a_graph_that_was_not_kept_is_refused_in_a_sentence(options):
    loc = torch.zeros(3, requires_grad=True)
    q = iw.Proposal(Normal(loc, 1.0).rsample, Normal(loc, 1.0).log_prob)
    value = iw.estimate(lambda z: -(z - 1).square(), q, num_samples=K, **options).value
    value[0].backward()
    with pytest.raises(RuntimeError, match=r"retain_graph"):
        value[1].backward()
