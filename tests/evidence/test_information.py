"""Entropy and mutual information between two bounds, where both are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MultivariateNormal, Normal

from iwbounds.evidence import entropy_bounds, mutual_information_bounds
from iwbounds.proposals import AggregatedPosterior, HierarchicalProposal
from tests.oracles.linear_gaussian import LinearChannel, LinearHierarchy


def channel(dims: int) -> LinearChannel:
    generator = torch.Generator().manual_seed(1)
    return LinearChannel(torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5)


def trained_encoder(model: LinearChannel) -> Callable[[Tensor], Distribution]:
    z = model.prior().sample((20_000,))
    x = model.likelihood(z).sample()
    gain = torch.linalg.lstsq(x, z).solution
    covariance = (z - x @ gain).T.cov()
    return lambda x: MultivariateNormal(x @ gain, covariance)


@pytest.mark.parametrize("reverse", [True, False], ids=["iwhvi", "sivi"])
def test_entropy_lies_between_its_bounds(reverse) -> None:
    """Six standard errors: false alarms below 1e-8 per side."""
    model = LinearHierarchy()
    bounds = entropy_bounds(model.proposal(5, reverse), num_samples=50_000, chunk_size=20_000)
    exact = model.marginal().entropy().item()
    assert bounds.lower - 6 * bounds.lower_error < exact < bounds.upper + 6 * bounds.upper_error
    assert bounds.upper - bounds.lower < 0.25


def test_a_batch_of_entropies_keeps_its_axis() -> None:
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    q = HierarchicalProposal(
        Normal(torch.zeros(3, dtype=torch.float64), scale), lambda psi: Normal(psi, 1.0), num_aux=50
    )
    bounds = entropy_bounds(q, num_samples=20_000)
    exact = Normal(0.0, (1 + scale**2).sqrt()).entropy()
    assert (bounds.lower - 6 * bounds.lower_error < exact).all()
    assert (exact < bounds.upper + 6 * bounds.upper_error).all()
    assert "lower" in str(bounds)


def test_mutual_information_of_ten_dimensions_is_known_to_a_tenth_of_a_nat() -> None:
    """A linear encoder trained on 20 000 simulated pairs, where least squares is maximum likelihood; K = 1000."""
    model = channel(10)
    q = HierarchicalProposal(model.prior(), model.likelihood, trained_encoder(model), num_aux=1000)
    bounds = mutual_information_bounds(q, num_samples=1000, chunk_size=100)
    exact = model.mutual_information
    assert bounds.upper - bounds.lower < 0.1
    assert bounds.lower - 6 * bounds.lower_error < exact < bounds.upper + 6 * bounds.upper_error
    assert math.isinf(bounds.cap)


def test_an_exact_encoder_leaves_no_gap() -> None:
    model = channel(4)
    q = HierarchicalProposal(model.prior(), model.likelihood, model.encoder, num_aux=1)
    bounds = mutual_information_bounds(q, num_samples=100)
    torch.testing.assert_close(bounds.lower, bounds.upper, rtol=0, atol=1e-10)


def test_without_a_reverse_model_the_lower_side_is_capped_and_says_so() -> None:
    """Mutual information of 8 bits and 15 contrasts: log 16 at most."""
    table = 30 * torch.eye(256)
    q = HierarchicalProposal(Categorical(logits=torch.zeros(256)), lambda n: Categorical(logits=table[n]), None, 15)
    bounds = mutual_information_bounds(q, num_samples=200)
    assert bounds.cap == pytest.approx(math.log(16))
    assert bounds.lower <= bounds.cap + 1e-5 < math.log(256)
    assert "cannot exceed" in str(bounds)


def test_barber_agakov_is_the_case_without_auxiliary_variables() -> None:
    """H(ψ) + E log τ(ψ | z), at the same draws, up to the sampling error of E log q(ψ), which cancels here."""
    model = LinearHierarchy()
    q = model.proposal(0)
    torch.manual_seed(0)
    bounds = mutual_information_bounds(q, num_samples=1000)
    torch.manual_seed(0)
    with torch.no_grad():
        z, psi = q.rsample((1000,))
        by_hand = (model.reverse(z).log_prob(psi) - model.mixing().log_prob(psi)).mean()
    torch.testing.assert_close(bounds.lower, by_hand)
    assert bounds.upper == math.inf
    exact = (model.marginal().entropy() - model.conditional(psi).entropy().mean()).item()
    assert bounds.lower - 6 * bounds.lower_error < exact


def test_an_aggregated_posterior_has_an_entropy_too() -> None:
    """Two far components: log 2 above the entropy of one."""
    means = torch.tensor([-50.0, 50.0])
    q = AggregatedPosterior(lambda n: Normal(means[n], 1.0), 2, num_aux=20, event_dim=0)
    bounds = entropy_bounds(q, num_samples=20_000)
    exact = Normal(0.0, 1.0).entropy().item() + math.log(2)
    assert bounds.lower - 6 * bounds.lower_error < exact < bounds.upper + 6 * bounds.upper_error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: entropy_bounds(q, 10, 0), "num_aux >= 1"),
        (lambda q: entropy_bounds(q, 1), "num_samples >= 2"),
        (lambda q: mutual_information_bounds(q, 10, 0), "num_aux >= 1"),
        (lambda q: entropy_bounds(q, 10, chunk_size=0), "chunk_size >= 1"),
    ],
)
def test_mistakes(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(LinearHierarchy().proposal(2, reverse=False))
