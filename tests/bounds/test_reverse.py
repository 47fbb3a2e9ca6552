"""The reverse bound at posterior draws, by quadrature; as a function of weights it is Rényi's of order 2."""

import math

import pytest
import torch

import iwbounds as iw
from iwbounds.bounds.reverse import ReverseIWAE
from tests.oracles import known_weights


@pytest.mark.parametrize(("count", "excess"), [(1, 0.5), (5, 0.1355), (16, 0.0481), (64, 0.0129)], ids=str)
def test_mirrors_iwae_on_lognormal_weights(count, excess):
    """At posterior draws −log w has the distribution that log w has at draws of q: E U_n = −E L_n."""
    assert -known_weights.lognormal_iwae(1.0, count) == pytest.approx(excess, abs=5e-5)
    nodes, log_weights = _normal_nodes(60)
    posterior = nodes + 0.5  # log w ~ N(+1/2, 1) under the posterior
    grid = torch.stack(torch.meshgrid(posterior, posterior, indexing="ij")).flatten(1)
    expected = (log_weights.exp() @ ReverseIWAE()(posterior.unsqueeze(0))).item()
    assert expected == pytest.approx(0.5, abs=1e-10)
    two = (torch.outer(log_weights.exp(), log_weights.exp()).flatten() * ReverseIWAE()(grid)).sum().item()
    assert two == pytest.approx(-known_weights.lognormal_iwae(1.0, 2), abs=1e-6)


def _normal_nodes(count):
    from tests.oracles.expectation import gauss_hermite

    points, log_weights = gauss_hermite(count, 1)
    return points[0], log_weights


@pytest.mark.parametrize("count", [2, 7])
def test_is_renyi_of_order_two_in_value_and_derivatives(count):
    log_w = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    reverse, renyi = ReverseIWAE(), iw.Renyi(2.0)
    torch.testing.assert_close(reverse(log_w), renyi(log_w))
    torch.testing.assert_close(reverse(log_w), -iw.IWAE()(-log_w), rtol=1e-14, atol=1e-14)
    c, h = reverse.derivatives(log_w)
    v = torch.softmax(-log_w, 0)
    torch.testing.assert_close(c, v)
    torch.testing.assert_close(h, -v * (1 - v))


def test_direction_and_what_it_needs():
    assert ReverseIWAE().direction is iw.Direction.UPPER
    assert ReverseIWAE().needs_posterior_samples


def test_a_draw_outside_the_proposals_support_counts_nothing():
    assert ReverseIWAE()(torch.tensor([0.0, math.inf])).item() == pytest.approx(math.log(2))
    found = ReverseIWAE().differentiate(torch.tensor([0.0, math.inf])).gradient
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]))
    assert ReverseIWAE()(torch.tensor([0.0, -math.inf])) == -math.inf
