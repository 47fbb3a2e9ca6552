"""The whole kit on a small variational autoencoder of scikit-learn's digits, in less than the 30 seconds promised."""

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

import iwbounds as iw
from iwbounds.testing import (
    ErrorBudget,
    GradientProblem,
    assert_coupled_order,
    assert_grad_unbiased,
    assert_monotone_in_k,
    assert_sandwich,
    check_contract,
)

LATENT, BATCH = 8, 50


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 50), nn.Tanh(), nn.Linear(50, 64))

    def proposal(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return Independent(Normal(loc, log_scale.exp()), 1)

    def log_joint(self, x, z):
        log_prior = Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)
        return log_prior + Independent(Bernoulli(logits=self.decoder(z)), 1).log_prob(x)

    @torch.no_grad()
    def simulate(self):
        z = torch.randn(BATCH, LATENT)
        return Bernoulli(logits=self.decoder(z)).sample(), z


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn holds the digits")
    return (torch.as_tensor(datasets.load_digits().data, dtype=torch.float32) > 7.5).float()


@pytest.fixture(scope="module")
def vae(digits):
    """Trained for 100 steps of DReG."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for batch in digits[torch.randperm(len(digits))].split(BATCH)[:33] * 3:
            optimizer.zero_grad()
            estimate = iw.estimate(lambda z: model.log_joint(batch, z), model.proposal(batch), num_samples=5)  # noqa: B023
            (-estimate.value.mean()).backward()
            optimizer.step()
    return model


def test_the_whole_kit_passes_a_trained_vae(vae, digits):
    budget = ErrorBudget(1e-6, name="digits")
    x = digits[:BATCH]
    q = vae.proposal(x)
    check_contract(lambda z: vae.log_joint(x, z), q, x=x, **budget.spend("contract"))
    assert_sandwich(vae.simulate, vae.log_joint, vae.proposal, **budget.spend("sandwich"))
    with torch.no_grad():
        log_w = iw.estimate(lambda z: vae.log_joint(x, z), q, num_samples=16).log_weights
    assert_coupled_order(log_w)
    assert_monotone_in_k(log_w)
    problem = GradientProblem(
        lambda: (lambda z: vae.log_joint(x, z), vae.proposal(x)),
        list(vae.decoder.parameters()),
        list(vae.encoder.parameters()),
    )
    assert_grad_unbiased(iw.DReG(), iw.IWAE(), "sequential", problem=problem, **budget.spend("gradient"))


class Scaled(VAE):
    """A VAE whose proposal averages its log-density over the latent dimensions."""

    def proposal(self, x):
        right = super().proposal(x)
        return iw.Proposal(right.rsample, lambda z: right.base_dist.log_prob(z).mean(-1))


def test_the_same_vae_with_a_planted_mistake_fails_contract_and_sandwich(vae, digits):
    wrong = Scaled()
    wrong.load_state_dict(vae.state_dict())
    x = digits[:BATCH]
    with pytest.raises(AssertionError, match="not the log-density of what is sampled"):
        check_contract(lambda z: wrong.log_joint(x, z), wrong.proposal(x), x=x)
    with pytest.raises(AssertionError, match="simulated data sets"):
        assert_sandwich(wrong.simulate, wrong.log_joint, wrong.proposal)
