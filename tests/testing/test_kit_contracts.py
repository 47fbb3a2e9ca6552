"""Each clause of the contract: kept by what is right, and named when it is broken."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import AffineTransform, ExpTransform

import iwbounds as iw
from iwbounds.proposals import HierarchicalProposal
from iwbounds.testing import ContractError, check_contract

N, D = 4, 2
X = torch.randn(N, 5)
LOC = torch.randn(N, D)


def gaussian():
    return Independent(Normal(LOC, 0.8), 1)


def standard(z):
    return -0.5 * z.square().sum(-1)


def broken(log_joint, proposal, match, **options):
    with pytest.raises(ContractError, match=match):
        check_contract(log_joint, proposal, **options)


PROPOSALS = {
    "normal": Normal(torch.randn(3), 0.5),
    "global": Normal(3.0, 100.0),
    "independent": gaussian(),
    "full covariance": MultivariateNormal(torch.zeros(3), 0.1 * torch.eye(3) + 1),
    "hundred dimensions": Independent(Normal(torch.randn(3, 100), 1.0), 1),
    "positive": Gamma(torch.full((3,), 0.7), 2.0),
    "log-normal": LogNormal(torch.zeros(3), 1.0),
    "unit interval": Beta(torch.full((3,), 0.7), 2.0),
    "simplex": Dirichlet(torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]])),
    "heavy tail": StudentT(2.0, torch.zeros(3), 1.0),
    "bounded": Uniform(torch.zeros(3), 2.0),
    "mixture": MixtureSameFamily(Categorical(torch.ones(3, 2)), Normal(torch.tensor([-3.0, 3.0]).expand(3, 2), 1.0)),
    "flow": TransformedDistribution(Normal(torch.zeros(3), 0.5), [AffineTransform(1.0, 2.0), ExpTransform()]),
    "binary": Bernoulli(torch.tensor([0.2, 0.6])),
    "fifty bits": Independent(Bernoulli(torch.rand(3, 50)), 1),
    "categorical": Categorical(logits=torch.randn(4, 5)),
    "one-hot": OneHotCategorical(logits=torch.randn(4, 5)),
    "counts": Poisson(torch.tensor([0.5, 4.0])),
    "global categorical": Categorical(logits=torch.randn(6)),
    "global simplex": Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
}


@pytest.mark.parametrize("name", PROPOSALS)
def test_right_proposals_of_every_support_keep_it(name):
    q = PROPOSALS[name]
    check_contract(lambda z: q.log_prob(z) - 1.0, q)


@pytest.mark.parametrize("name", [name for name in PROPOSALS if name != "bounded"])
@pytest.mark.parametrize("factor", [0.5, 2.0], ids=["halved", "doubled"])
def test_a_scaled_log_prob_is_seen_on_every_support(name, factor):
    q = PROPOSALS[name]
    wrong = iw.Proposal(q.sample, lambda z: factor * q.log_prob(z), reparameterized=False)
    wrong_of_kind = _with_log_prob(q, wrong.log_prob)
    broken(lambda z: q.log_prob(z), wrong_of_kind, "log_prob is not the log-density|log_prob is not the log-prob")


@pytest.mark.parametrize("offset", [-1.0, 1.0], ids=["less", "more"])
@pytest.mark.parametrize("name", [name for name in PROPOSALS if name != "fifty bits"])
def test_a_wrong_normaliser_is_seen_on_every_support(name, offset):
    q = PROPOSALS[name]
    broken(
        lambda z: q.log_prob(z), _with_log_prob(q, lambda z: q.log_prob(z) + offset), "log_prob is not the log-density"
    )


def _with_log_prob(q, log_prob):
    """A distribution of the same support, sampler and shapes, whose log_prob is another function."""

    class Changed(type(q)):
        def __init__(self):
            self.__dict__.update(q.__dict__)

        def log_prob(self, value):
            return log_prob(value)

    return Changed()


def test_latents_of_several_parts_and_mixed_ones_keep_it():
    both = iw.Proposal(
        lambda shape: {"a": gaussian().rsample(shape), "b": (Normal(torch.zeros(N), 2.0).rsample(shape),)},
        lambda z: gaussian().log_prob(z["a"]) + Normal(torch.zeros(N), 2.0).log_prob(z["b"][0]),
    )
    check_contract(lambda z: standard(z["a"]) + z["b"][0], both, x=X)
    logits = torch.randn(N, 3)
    mixed = iw.Proposal(
        lambda shape: (gaussian().rsample(shape), Categorical(logits=logits).sample(shape)),
        lambda z: (gaussian().log_prob(z[0]), Categorical(logits=logits).log_prob(z[1])),
        reparameterized=(True, False),
    )
    check_contract(lambda z: standard(z[0]) + z[1], mixed, x=X)


def test_event_not_summed_gets_the_words_of_estimate():
    with pytest.raises(ValueError, match="forget to sum log_joint over the event"):
        check_contract(lambda z: -(z**2), gaussian())


def test_mixed_precision_gets_the_words_of_estimate():
    with pytest.raises(TypeError, match="float32 and float64 are not mixed"):
        check_contract(lambda z: standard(z).double(), gaussian())


def test_proposal_event_not_summed_shows_against_the_data():
    q = Normal(LOC.T, 0.8)
    broken(lambda z: -z.square(), q, r"leading axes batch = \(2, 4\)", x=X)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(bad):
    broken(lambda z: torch.full(z.shape[:-1], bad), gaussian(), "finite values from log_joint")


def test_rare_draws_outside_the_models_support_are_refused():
    q = Independent(Normal(torch.full((N, D), 2.0), 1.0), 1)
    truncated = lambda z: torch.where((z > 0).all(-1), standard(z), -torch.inf)  # noqa: E731
    broken(truncated, q, "outside the model's support")


def test_dropout_and_counters_are_refused():
    dropout = nn.Dropout(0.5)
    broken(lambda z: standard(dropout(z)), gaussian(), "two values for the same latents")
    calls = itertools.count()
    broken(lambda z: standard(z) + next(calls), gaussian(), "two values for the same latents")


def test_batch_norm_in_training_is_refused_and_fine_in_eval():
    norm = nn.BatchNorm1d(D)
    log_joint = lambda z: standard(norm(z.reshape(-1, D)).reshape(z.shape))  # noqa: E731
    broken(log_joint, gaussian(), "BatchNorm in training")
    norm.eval()
    check_contract(log_joint, gaussian())


def test_densities_that_mix_data_or_samples_are_refused():
    broken(lambda z: standard(z - z.mean(1, keepdim=True)), gaussian(), "latents of other data")
    broken(lambda z: standard(z).log_softmax(0), gaussian(), "sample changes with the other samples")
    broken(lambda z: standard(z) + 0.01 * standard(z).sum(1, keepdim=True), gaussian(), "latents of other data")


def test_a_number_of_samples_that_is_built_in_is_refused():
    broken(lambda z: standard(z) + torch.zeros(3, N), gaussian(), "another value")


def test_changed_data_are_refused():
    x = X.clone()

    def log_joint(z):
        x.clamp_(max=0.0)
        return standard(z)

    broken(log_joint, gaussian(), "data x were changed", x=x)


def mixture_by_choice():
    """rsample that chooses a component: its path misses the gradient of the weights."""
    logits, means = torch.tensor([0.0, 0.5], requires_grad=True), torch.tensor([-1.0, 1.0], requires_grad=True)
    q = MixtureSameFamily(Categorical(logits=logits), Normal(means, 1.0))

    def rsample(shape):
        chosen = Categorical(logits=logits).sample(shape)
        return Normal(means, 1.0).rsample(shape).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

    return iw.Proposal(rsample, q.log_prob)


def half_detached():
    loc, log_scale = torch.zeros(N, D, requires_grad=True), torch.zeros(N, D, requires_grad=True)
    path = Independent(Normal(loc, log_scale.exp().detach()), 1)
    return iw.Proposal(path.rsample, lambda z: Independent(Normal(loc, log_scale.exp()), 1).log_prob(z))


@pytest.mark.parametrize("q", [mixture_by_choice(), half_detached()], ids=["choice", "half detached"])
def test_a_path_that_is_not_the_densitys_gradient_is_refused(q):
    broken(lambda z: q.log_prob(z).detach(), q, "along their paths")


def test_samples_without_the_graph_they_claim_are_refused():
    loc = torch.zeros(3, requires_grad=True)
    q = Normal(loc, 1.0)
    broken(lambda z: -(z**2), iw.Proposal(q.sample, q.log_prob), "carry no graph")
    check_contract(lambda z: -(z**2), iw.Proposal(q.sample, q.log_prob, reparameterized=False))


TRAINED = {
    "normal": lambda a: Normal(a, a.exp()),
    "gamma": lambda a: Gamma(a.exp(), 2.0),
    "beta": lambda a: Beta(a.exp(), 2 * a.exp()),
    "dirichlet": lambda a: Dirichlet(a.exp()),
    "student": lambda a: StudentT(2.5, a, 1.0),
    "log-normal": lambda a: LogNormal(a, 0.5),
}


@pytest.mark.parametrize("name", TRAINED)
def test_reparameterised_samplers_of_torch_keep_their_claim(name):
    q = TRAINED[name](torch.tensor([0.3, -0.2, 0.5], requires_grad=True))
    check_contract(lambda z: q.log_prob(z).detach(), q)


def test_parameters_and_generators_are_left_alone():
    loc = torch.zeros(N, D, requires_grad=True)
    state = torch.get_rng_state()
    check_contract(standard, Independent(Normal(loc, 1.0), 1), x=X)
    assert loc.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_one_sample_cannot_tell_samples_apart():
    with pytest.raises(ValueError, match="at least 2"):
        check_contract(standard, gaussian(), K=1)


def test_a_proposal_without_a_density_is_sent_elsewhere():
    q = HierarchicalProposal(Normal(torch.zeros(3), 1.0), lambda psi: Normal(psi, 1.0), num_aux=2)
    with pytest.raises(TypeError, match="density is an integral"):
        check_contract(lambda z: -(z**2), q)
