"""Strengths learned inside the engine: from the backward alone, the same by every route, and never from their own
samples."""

import ast
import copy
import subprocess
import sys

import pytest
import torch
from torch.distributions import Independent, Normal

import iwbounds as iw
from iwbounds.engine.resampling import resampled
from tests.oracles import expectation

DOUBLE = torch.float64
B, D, K = 120, 3, 6
KEY = "IWAE(), K = 6"


class Model(torch.nn.Module):
    """A linear decoder, and a proposal by location and scale."""

    def __init__(self, dtype=DOUBLE):
        super().__init__()
        torch.manual_seed(3)
        self.decoder = torch.nn.Linear(D, D).to(dtype)
        self.encoder = torch.nn.Linear(D, D).to(dtype)
        self.log_scale = torch.nn.Parameter(torch.full((D,), -0.5, dtype=dtype))

    def forward(self, x):
        q = Independent(Normal(self.encoder(x), self.log_scale.exp().expand(len(x), D)), 1)
        return lambda z: Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(self.decoder(z), 1.0).log_prob(x).sum(-1), q


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def x():
    torch.manual_seed(4)
    return torch.randn(B, D, dtype=DOUBLE)


def step(model, x, gradient, bound=iw.IWAE(), seed=0, **options):
    """One estimate and its backward; the gradients of all parameters."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = -iw.estimate(*model(x), bound, gradient, num_samples=K, **options).value.mean()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def moments(gradient, key=KEY):
    return gradient.state_dict()[key]["moments"]


def by_hand(model, x, bound=iw.IWAE(), seed=0):
    """What is to be learned, from slopes by autograd, one density after the other."""
    torch.manual_seed(seed)
    log_joint, q = model(x)
    z = q.sample((K,)).requires_grad_()
    log_p, log_q = log_joint(z), q.log_prob(z)
    (slope_p,), (slope_q,) = (torch.autograd.grad(density.sum(), z) for density in (log_p, log_q))
    gradient = iw.Controlled()
    gradient.observe(bound, (log_p - log_q).detach(), slope_p, slope_q)
    gradient.update(x)
    return gradient


@pytest.mark.parametrize(
    "bound", [iw.IWAE(), iw.ELBO(), iw.Renyi(0.5), iw.Jackknife(1), iw.EUBO(), iw.TVO(3), iw.MIWAE(2)], ids=repr
)
def test_a_backward_learns_from_the_slopes_that_it_has(model, x, bound):
    """Behind a gate where b/a is bounded, by linearisation where it is not."""
    gradient, expected = iw.Controlled(), by_hand(model, x, bound).state_dict()
    step(model, x, gradient, bound)
    assert set(gradient.state_dict()) == set(expected)
    ((key, wanted),) = expected.items()
    torch.testing.assert_close(moments(gradient, key), wanted["moments"], rtol=1e-9, atol=1e-12)
    assert gradient.state_dict()[key]["count"] == B


@pytest.mark.parametrize("options", [{"chunk_size": 4}, {"chunk_size": 1}], ids=str)
def test_chunks_learn_the_same(model, x, options):
    gradient = iw.Controlled()
    step(model, x, gradient, **options)
    torch.testing.assert_close(moments(gradient), moments(by_hand(model, x)), rtol=1e-9, atol=1e-12)


def test_a_proposal_of_callables_and_of_several_parts_learns_the_same(model, x):
    """The two halves of a latent as two parts: the sums over events are the same."""
    log_joint, q = model(x)

    def sample(shape):
        z = q.rsample(shape)
        return z[..., :1], z[..., 1:]

    halves = iw.Proposal(sample, lambda z: q.log_prob(torch.cat(z, -1)))
    gradient = iw.Controlled()
    torch.manual_seed(0)
    estimate = iw.estimate(lambda z: log_joint(torch.cat(z, -1)), halves, gradient=gradient, num_samples=K)
    estimate.value.mean().backward()
    torch.testing.assert_close(moments(gradient), moments(by_hand(model, x)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("budget", [K * B, K * 50, 4], ids=["whole", "parts of the data", "parts of the samples"])
def test_accumulate_reads_once_and_learns_once(model, x, budget):
    """With what came before: the gradient is that of the strengths of before, and there is one step with one decay."""
    seen = by_hand(model, x, seed=9)
    before, gradient = moments(seen), copy.deepcopy(seen)
    fixed = iw.Controlled(strengths=seen.strengths_for(iw.IWAE(), K).tolist())
    found = []
    for rule in (gradient, fixed):
        torch.manual_seed(0)
        model.zero_grad()
        iw.accumulate(model, x, budget, gradient=rule, num_samples=K)
        found.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert gradient.state_dict()[KEY]["count"] == 2 * B
    assert gradient.state_dict()[KEY]["weight"] == pytest.approx(1.95 * B)
    if budget == K * B:
        torch.testing.assert_close(moments(gradient), 0.95 * before + moments(by_hand(model, x)), rtol=1e-9, atol=0)


def test_the_strengths_are_those_of_before_the_call(model, x):
    gradient = by_hand(model, x, seed=9)
    before = gradient.strengths_for(iw.IWAE(), K)
    found = step(model, x, gradient)
    torch.testing.assert_close(found, step(model, x, iw.Controlled(strengths=before.tolist())), rtol=1e-9, atol=1e-12)
    assert not torch.equal(gradient.strengths_for(iw.IWAE(), K), before)


def test_until_enough_is_seen_it_is_dreg(model, x):
    torch.testing.assert_close(step(model, x, iw.Controlled()), step(model, x, iw.DReG()), rtol=1e-9, atol=1e-12)


def test_nothing_is_learned_without_a_backward(model, x):
    gradient = iw.Controlled()
    estimate = iw.estimate(*model(x), gradient=gradient, num_samples=K)
    gradient.coefficients(iw.IWAE(), estimate.log_weights)
    with torch.no_grad():
        iw.estimate(*model(x), gradient=gradient, num_samples=K)
    assert gradient.state_dict() == {}
    assert gradient.explain() == "nothing seen yet: DReG"


def test_two_estimates_before_their_backwards(model, x):
    """Both read the strengths of before; each learns at the end of its own backward."""
    gradient = by_hand(model, x, seed=9)
    before = gradient.strengths_for(iw.IWAE(), K)
    estimates = [iw.estimate(*model(x), gradient=gradient, num_samples=K) for _ in range(2)]
    for estimate in estimates:
        c = iw.Controlled(strengths=before.tolist()).coefficients(iw.IWAE(), estimate.log_weights)
        torch.testing.assert_close(estimate.coefficients.path, c.path)
        estimate.value.mean().backward()
    assert gradient.state_dict()[KEY]["count"] == 3 * B


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter_and_data_out_of_it_teach_nothing(model, x, scale):
    gradient, expected = iw.Controlled(), by_hand(model, x)
    torch.manual_seed(0)
    (scale * iw.estimate(*model(x), gradient=gradient, num_samples=K).value.sum()).backward()
    torch.testing.assert_close(moments(gradient), moments(expected), rtol=1e-9, atol=1e-12)
    masked = iw.Controlled()
    torch.manual_seed(0)
    value = iw.estimate(*model(x), gradient=masked, num_samples=K).value
    (scale * value[: B // 2].sum()).backward()
    assert not torch.equal(moments(masked), moments(expected))
    torch.testing.assert_close(
        masked.strengths_for(iw.IWAE(), K), _strengths_of_first_half(model, x), rtol=1e-9, atol=1e-9
    )


def _strengths_of_first_half(model, x):
    gradient = iw.Controlled()
    torch.manual_seed(0)
    q = model(x)[1]
    z = q.rsample((K,))[:, : B // 2]
    half = Independent(Normal(q.mean[: B // 2], q.stddev[: B // 2]), 1)
    estimate = iw.estimate(
        lambda z: Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(model.decoder(z), 1.0).log_prob(x[: B // 2]).sum(-1),
        half,
        gradient=gradient,
        samples=z,
    )
    estimate.value.sum().backward()
    learned = gradient.state_dict()
    learned[KEY]["count"] = B  # half of the data are too few to count by themselves
    gradient.load_state_dict(learned)
    return gradient.strengths_for(iw.IWAE(), K)


@pytest.mark.parametrize("bound", [iw.IWAE(), iw.EUBO()], ids=repr)
def test_weights_that_underflow_lose_no_slope(bound):
    """Sharp likelihoods in float32: most coefficients are 0, and 0/0 is met nowhere. Float64 says what is right."""
    found = []
    for dtype in (torch.float32, DOUBLE):
        loc = torch.zeros(200, 2, dtype=dtype, requires_grad=True)
        torch.manual_seed(0)
        z = loc + torch.randn(16, 200, 2, dtype=torch.float32).to(dtype)
        gradient = iw.Controlled()
        q = Independent(Normal(loc, 1.0), 1)
        estimate = iw.estimate(lambda z: -50 * z.square().sum(-1), q, bound, gradient, samples=z)
        estimate.value.sum().backward()
        found.append(gradient.strengths_for(bound, 16))
        assert dtype == DOUBLE or (estimate.coefficients.model == 0).any()
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_a_proposal_bound_has_strengths_of_its_own(model, x):
    gradient = iw.Controlled()
    step(model, x, gradient, proposal_bound=iw.MIWAE(2))
    expected = by_hand(model, x, iw.MIWAE(2))
    torch.testing.assert_close(
        moments(gradient, "MIWAE(groups=2), K = 6"), moments(expected, "MIWAE(groups=2), K = 6"), rtol=1e-9, atol=1e-12
    )


def test_a_backward_on_few_samples_learns_on_them(model, x):
    """The sums of the chosen samples have the expectation of all: over 40 000 choices, within 5 standard errors."""
    log_w, p, q = torch.randn(3, 8, 1, dtype=DOUBLE)
    many = [t.expand(8, 40_000).contiguous() for t in (log_w, p, q)]
    heard = []
    for few in (None, 3):
        found = iw.Controlled().coefficients(iw.IWAE(), many[0])
        slopes = (many[1], many[2])
        if few is not None:
            slopes, found = resampled(slopes, found, few)
        found.lesson.notes.learn, found.lesson.notes.upstream = heard.append, torch.ones(40_000, dtype=DOUBLE)
        listeners = found.lesson.of_p(1), found.lesson.of_q(1)
        for listener, slope in zip(listeners, slopes, strict=True):
            listener(0, slope)
    everything, few = (sums.squeeze(-1) for sums in heard)
    error = few.std(1) / 200
    assert error.max() > 1e-4
    assert ((few.mean(1) - everything[:, 0]).abs() < 5 * error).all()
    gradient = iw.Controlled()
    step(model, x, gradient, backward_samples=3)
    assert gradient.state_dict()[KEY]["count"] == B


@pytest.mark.parametrize("peek", [False, True], ids=["earlier steps", "its own samples"])
def test_learned_strengths_leave_the_engine_unbiased_and_peeking_ones_would_not(peek):
    """One datum a step, K = 2, every pair of 14 nodes a step of its own that starts from the same state.

    The exact expectation over a step's samples is the gradient of the expected bound; where the strengths have seen
    these very samples before, it is off by more than a hundredth.
    """
    oracle = expectation.gaussian(2, 14)
    truth, samples, probability = oracle.truth(iw.IWAE()), oracle.samples(), oracle.log_probability().exp()
    torch.manual_seed(1)
    state = iw.Controlled(decay=0.0)
    state.observe(iw.IWAE(), torch.zeros(2, 100), torch.randn(2, 100), torch.randn(2, 100))
    state.update(torch.zeros(100))
    found = [torch.zeros_like(t) for t in truth]
    for i, p in enumerate(probability):
        gradient = copy.deepcopy(state)
        for _ in range(2 if peek else 1):
            value = iw.estimate(oracle.log_joint, oracle.q, gradient=gradient, samples=samples[:, i : i + 1]).value
            slopes = torch.autograd.grad(value.sum(), oracle.parameters, retain_graph=True)
        found = [total + p * slope for total, slope in zip(found, slopes, strict=True)]
        assert gradient.state_dict()["IWAE(), K = 2"]["count"] == 100 + (2 if peek else 1)
    split = len(oracle.model)
    errors = [(a - b).abs().item() for a, b in zip(found, truth, strict=True)]
    assert max(errors[:split]) < 1e-5
    assert min(errors[split:]) > 1e-2 if peek else max(errors[split:]) < 1e-5


class TestRefusals:
    def test_an_extended_latent(self):
        mixing = Normal(torch.zeros(3, requires_grad=True), 1.0)
        q = iw.HierarchicalProposal(mixing, lambda psi: Normal(psi, 1.0), num_aux=2)
        for gradient in (iw.Controlled(), iw.Controlled(strengths=(0.5, 0.0))):
            with pytest.raises(ValueError, match=r"draws of one density; got .*HierarchicalProposal.*Use DReG\(\)"):
                iw.estimate(lambda z: -z.square(), q, gradient=gradient, num_samples=4)

    def test_mixed_parts(self):
        oracle = expectation.mixed(4, True)
        with pytest.raises(ValueError, match="not all parts"):
            oracle.estimated(iw.IWAE(), iw.Controlled())

    def test_a_bound_that_jumps(self, model, x):
        with pytest.raises(ValueError, match="smooth = False"):
            step(model, x, iw.Controlled(), iw.Renyi(float("inf")))


def test_what_it_has_learned_is_said(model, x):
    gradient = iw.Controlled()
    step(model, x, gradient)
    assert gradient.explain().startswith("IWAE(), K = 6: strengths (")
    assert repr(gradient) == "Controlled(basis=2, decay=0.95)"


RANKS = """
import sys, torch, iwbounds as iw
rank, path = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(path, 2), rank=rank, world_size=2)
torch.manual_seed(5)
log_w, p, q = torch.randn(3, 4, 200, dtype=torch.float64)
mine = slice(0, 150) if rank == 0 else slice(150, 200)
gradient = iw.Controlled()
gradient.observe(iw.IWAE(), log_w[:, mine], p[:, mine], q[:, mine])
gradient.update(log_w[0])
for _ in range(2):  # a second time changes nothing
    gradient.average_over_ranks()
print(gradient.strengths_for(iw.IWAE(), 4).tolist())
world = torch.distributed.group.WORLD


def model(x):  # a location of its own for each process's data, and the slopes that autograd finds
    q = torch.distributions.Normal(loc.expand(len(x)), 0.7)
    return lambda z: -(z - x).square() - (z - 0.3).abs().pow(3), q


loc = torch.full((), 0.2, dtype=torch.float64, requires_grad=True)
x, z = torch.randn(200, dtype=torch.float64), torch.randn(4, 200, dtype=torch.float64)
learned = []
for group, rows, part in ((None, slice(None), slice(None)), (world, slice(2 * rank, 2 * rank + 2), mine)):
    for kind in ("estimate", "accumulate"):
        gradient = iw.Controlled()
        if kind == "estimate":
            samples = loc + 0.7 * z[rows]
            iw.estimate(*model(x), gradient=gradient, samples=samples, process_group=group).value.mean().backward()
        else:
            samples = loc + 0.7 * z[:, part]
            iw.accumulate(model, x[part], 160, gradient=gradient, samples=samples, process_group=group)
        learned.append(gradient.state_dict()["IWAE(), K = 4"])
for one, other in zip(learned[:2], learned[2:]):
    torch.testing.assert_close(one["moments"], other["moments"])
    assert one["count"] == other["count"] == 200
if rank == 1:
    gradient = iw.Controlled()
    gradient.observe(iw.IWAE(), log_w, p, q)
    gradient._learned["other"] = gradient._learned["IWAE(), K = 4"]
try:
    gradient.average_over_ranks()
except ValueError as error:
    print("same bounds and K" in str(error))
torch.distributed.destroy_process_group()
"""


def test_ranks_can_average_what_they_have_learned(tmp_path):
    """Two processes with unequal shares of the data: the strengths of all of it, on both."""
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=100)[0].decode().splitlines() for rank in ranks]
    torch.manual_seed(5)
    gradient = iw.Controlled()
    gradient.observe(iw.IWAE(), *torch.randn(3, 4, 200, dtype=DOUBLE))
    gradient.update(torch.zeros(1))
    for strengths, refused in said:
        torch.testing.assert_close(
            torch.tensor(ast.literal_eval(strengths), dtype=DOUBLE), gradient.strengths_for(iw.IWAE(), 4)
        )
        assert refused == "True"
