"""The upper bound of log p(x) from one posterior sample."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.evidence import upper_bound
from iwbounds.proposals import HierarchicalProposal
from iwbounds.testing import assert_not_above, assert_upper_bound
from tests.oracles.linear_gaussian import LinearHierarchy

COUNT = 20_000
PROPOSALS = {
    "distribution": lambda model: Normal(torch.zeros(COUNT, dtype=torch.float64), 1.3),
    "iwhvi": lambda model: HierarchicalProposal(model.mixing((COUNT,)), model.conditional, model.reverse, 2),
    "hvm": lambda model: HierarchicalProposal(model.mixing((COUNT,)), model.conditional, model.reverse, 0),
    "sivi": lambda model: HierarchicalProposal(model.mixing((COUNT,)), model.conditional, None, 2),
}


@pytest.mark.parametrize("make", PROPOSALS.values(), ids=PROPOSALS)
def test_it_is_above_and_tightens_with_the_number_of_draws(make) -> None:
    """20 000 posterior samples: the steps are above 10 standard errors; false alarms of the test below 1e-6."""
    model = LinearHierarchy()
    means = []
    with torch.no_grad():
        for num_samples in (0, 2, 20):
            estimate = upper_bound(model.log_joint, make(model), model.posterior().sample((COUNT,)), num_samples)
            assert estimate.direction is iw.Direction.UPPER
            assert estimate.log_weights.shape == (num_samples + 1, COUNT)
            assert_upper_bound(estimate.value, model.log_evidence())
            means.append(estimate.value.mean().item())
    chain = [*means, model.log_evidence()]
    assert all(high > low + 1e-3 for high, low in itertools.pairwise(chain))


def test_without_a_posterior_sample_it_would_not_be_an_upper_bound() -> None:
    model = LinearHierarchy()
    q = Normal(torch.full((COUNT,), -1.0, dtype=torch.float64), 1.0)
    with torch.no_grad():
        estimate = upper_bound(model.log_joint, q, q.sample(), num_samples=2)
    assert_not_above(estimate.value, model.log_evidence())
    with pytest.raises(AssertionError, match="refuted"):
        assert_upper_bound(estimate.value, model.log_evidence())


def test_its_gradient_is_the_derivative_for_the_proposal() -> None:
    """At q = p(z|x) the value is log p(x) whatever is drawn; away from it the gradient points back."""
    model = LinearHierarchy()
    posterior = model.posterior()
    samples = posterior.sample((COUNT,))
    exact = Normal(posterior.loc.expand(COUNT), posterior.scale)
    at_posterior = upper_bound(model.log_joint, exact, samples, 3).value.detach()
    torch.testing.assert_close(at_posterior, torch.full_like(at_posterior, model.log_evidence()), rtol=0, atol=1e-12)
    loc = (posterior.loc + 0.8).requires_grad_()
    upper_bound(model.log_joint, Normal(loc.expand(COUNT), posterior.scale), samples, 3).value.mean().backward()
    assert loc.grad > 0.01


def test_shapes_are_checked() -> None:
    q = Normal(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="log_joint must return shape"):
        upper_bound(lambda z: z.sum(-1), q, torch.zeros(3), 2)
    with pytest.raises(ValueError, match="num_samples >= 0"):
        upper_bound(lambda z: z, q, torch.zeros(3), -1)
