"""Chains are exact: E[W] = p(x) and expected gradients, by quadrature over all their noise, every parameter apart."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from tests.proposals.chains import KINDS, Chains

BOUNDS = {"elbo": iw.ELBO(), "iwae": iw.IWAE(), "renyi(0.5)": iw.Renyi(0.5), "ciwae": iw.CIWAE(0.3)}
JVI = {"jackknife(1)": iw.Jackknife(1)}
NODES = 14


def estimated(chains: Chains, bound: iw.Bound, gradient: iw.Gradient) -> tuple[float, dict[str, float]]:
    value = iw.estimate(chains.log_joint, chains.proposal(), bound, gradient, num_samples=chains.num_samples).value
    expected = (chains.weights * value).sum()
    expected.backward()
    return expected.item(), chains.gradients()


def written_out(chains: Chains, bound: iw.Bound) -> tuple[float, dict[str, float]]:
    expected = (chains.weights * bound(chains.written_out())).sum()
    expected.backward()
    return expected.item(), chains.gradients()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_weight_is_the_evidence(kind, steps, monkeypatch):
    chains = Chains(kind, steps, 1, 60 if steps == 1 else 40).prepared(monkeypatch)
    with torch.no_grad():
        log_w = iw.estimate(chains.log_joint, chains.proposal(), num_samples=1).log_weights
    assert (chains.weights * log_w[0].exp()).sum().item() == pytest.approx(chains.evidence(), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_inverse_weight_of_reversed_paths_is_the_inverse_evidence(kind, steps, monkeypatch):
    """∫ p(x, z_T) ∏B · Q/P = 1, with z_T from a Gaussian that is reweighted to the unnormalised posterior."""
    chains = Chains(kind, steps, 1, 60 if steps == 1 else 40).prepared(monkeypatch)
    reference = Normal(torch.tensor(0.5, dtype=torch.float64), 0.9)
    z = reference.loc + reference.scale * chains.noise[0]
    with torch.no_grad():
        log_w = chains.proposal().posterior_log_weights(chains.log_joint, z)
        mass = chains.weights * (chains.log_joint(z) - reference.log_prob(z) - log_w)[0].exp()
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert log_w.std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("bound", {**BOUNDS, **JVI}.values(), ids={**BOUNDS, **JVI})
@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG()], ids=repr)
@pytest.mark.parametrize("kind", ["ula", "mcd", "cmcd"])
def test_expected_gradients_are_those_of_the_expected_bound(kind, gradient, bound, monkeypatch):
    value, found = estimated(Chains(kind, 1, 2, NODES).prepared(monkeypatch), bound, gradient)
    chains = Chains(kind, 1, 2, NODES)
    truth_value, truth = written_out(chains, bound)
    assert value == pytest.approx(truth_value, abs=1e-12)
    assert min(abs(truth[name]) for name in chains.used()) > 1e-4
    assert found == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_gradients_of_two_steps(kind, monkeypatch):
    """A learned schedule, step sizes and a network that depend on the step; ELBO, as one sample has no other bound."""
    gradient = iw.Reparameterized() if kind == "dais" else iw.DReG()
    value, found = estimated(Chains(kind, 2, 1, 24).prepared(monkeypatch), iw.ELBO(), gradient)
    chains = Chains(kind, 2, 1, 24)
    truth_value, truth = written_out(chains, iw.ELBO())
    assert value == pytest.approx(truth_value, abs=1e-12)
    assert min(abs(truth[name]) for name in chains.used()) > 1e-4
    assert found == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_dais_has_the_total_derivative_by_default(bound, monkeypatch):
    value, found = estimated(Chains("dais", 1, 2, NODES).prepared(monkeypatch), bound, None)
    truth_value, truth = written_out(Chains("dais", 1, 2, NODES), bound)
    assert value == pytest.approx(truth_value, abs=1e-12)
    assert found == pytest.approx(truth, abs=1e-10)


OTHERS = {
    "control variate": (iw.Reparameterized(control_variate=True), iw.IWAE()),
    "stl": (iw.STL(), iw.ELBO()),
    "score": (iw.ScoreFunction(), iw.IWAE()),
    "vimco": (iw.VIMCO(), iw.Renyi(0.5)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "bound"), OTHERS.values(), ids=OTHERS)
def test_what_else_is_unbiased_is_unbiased_on_paths(gradient, bound, monkeypatch):
    _, found = estimated(Chains("cmcd", 1, 2, 18).prepared(monkeypatch), bound, gradient)
    _, truth = written_out(Chains("cmcd", 1, 2, 18), bound)
    assert found == pytest.approx(truth, abs=1e-6)
