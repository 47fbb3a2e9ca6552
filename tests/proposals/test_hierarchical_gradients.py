"""Expected gradients of M-IWHVI and SIVI, M = 2, K = 1, for every parameter, over a six-dimensional grid of noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import iwbounds as iw
from iwbounds.proposals import HierarchicalProposal
from tests.oracles.linear_gaussian import LinearHierarchy
from tests.oracles.nodes import NodeNormal, gauss_hermite_grid

POINTS = 8
BOUNDS = {"iwae": iw.IWAE(), "renyi(0.5)": iw.Renyi(0.5), "elbo": iw.ELBO()}
ESTIMATORS = {
    "reparameterized": (iw.Reparameterized(), None),
    "reparameterized, no inner rule": (iw.Reparameterized(), iw.Reparameterized()),
    "diwhvi": (iw.DReG(), None),
    "extended dreg": (iw.DReG(), iw.Reparameterized()),
}
MILD = {**LinearHierarchy().values, "conditional_slope": 0.5, "conditional_scale": 0.9}


@pytest.fixture(scope="module")
def grid() -> tuple[Tensor, Tensor]:
    return gauss_hermite_grid(POINTS, 6)


def proposal(model: LinearHierarchy, noise: Tensor, reverse: bool, inner: iw.Gradient | None) -> HierarchicalProposal:
    """Two samples of one auxiliary variable each; the batch is the grid."""
    mixing = model.mixing((noise.shape[1],))

    def conditional(psi):
        return NodeNormal(model.conditional(psi), noise[2:4])

    if not reverse:
        return HierarchicalProposal(NodeNormal(mixing, noise[[0, 1, 4, 5]]), conditional, None, 1)

    def backwards(z):
        return NodeNormal(model.reverse(z), noise[4:6].unsqueeze(0))

    return HierarchicalProposal(NodeNormal(mixing, noise[:2]), conditional, backwards, 1, inner)


def expected_gradients(model, grid, reverse, bound, gradient, inner) -> tuple[float, dict[str, float]]:
    noise, weights = grid
    estimate = iw.estimate(model.log_joint, proposal(model, noise, reverse, inner), bound, gradient, num_samples=2)
    value = (weights * estimate.value).sum()
    value.backward()
    return value.item(), model.gradients()


def exact_gradients(model, grid, reverse, bound) -> tuple[float, dict[str, float]]:
    """The derivative of the expected bound, written out without the library's proposals and estimators."""
    noise, weights = grid
    mixing = model.mixing()
    own = mixing.loc + mixing.scale * noise[:2]
    z = model.conditional(own).loc + model.parameters["conditional_scale"] * noise[2:4]
    fresh_from = model.reverse(z) if reverse else mixing
    v = [model.conditional(psi).log_prob(z) for psi in (own, fresh_from.loc + fresh_from.scale * noise[4:6])]
    if reverse:
        psis = (own, fresh_from.loc + fresh_from.scale * noise[4:6])
        v = [a + mixing.log_prob(psi) - fresh_from.log_prob(psi) for a, psi in zip(v, psis, strict=True)]
    log_w = model.log_joint(z) - (torch.logsumexp(torch.stack(v), 0) - math.log(2))
    value = (weights * bound(log_w)).sum()
    value.backward()
    return value.item(), model.gradients()


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize(("gradient", "inner"), ESTIMATORS.values(), ids=ESTIMATORS)
def test_expected_gradient_of_iwhvi_is_the_gradient_of_the_expected_bound(grid, bound, gradient, inner) -> None:
    value, found = expected_gradients(LinearHierarchy(), grid, True, bound, gradient, inner)
    truth_value, truth = exact_gradients(LinearHierarchy(), grid, True, bound)
    assert value == pytest.approx(truth_value, abs=1e-12)
    assert min(map(abs, truth.values())) > 1e-4
    assert found == pytest.approx(truth, abs=1e-4)


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.DReG()], ids=["reparameterized", "dreg"])
def test_expected_gradient_of_sivi_is_the_gradient_of_the_expected_bound(grid, bound, gradient) -> None:
    value, found = expected_gradients(LinearHierarchy(values=MILD), grid, False, bound, gradient, None)
    truth_value, truth = exact_gradients(LinearHierarchy(values=MILD), grid, False, bound)
    assert value == pytest.approx(truth_value, abs=1e-12)
    assert found == pytest.approx(truth, abs=1e-4)


def test_the_total_derivative_is_the_same_with_and_without_the_inner_rule(grid) -> None:
    both = [
        expected_gradients(LinearHierarchy(), grid, True, iw.IWAE(), iw.Reparameterized(), inner)[1]
        for inner in (iw.DReG(), iw.Reparameterized())
    ]
    assert both[0] == pytest.approx(both[1], abs=1e-13)


def test_shared_mixing_samples_have_the_total_derivative_of_a_lower_bound() -> None:
    """Two samples, one shared ψ: five dimensions of noise."""
    noise, weights = gauss_hermite_grid(POINTS, 5)
    model = LinearHierarchy(values=MILD)
    mixing = NodeNormal(model.mixing((noise.shape[1],)), noise[[0, 1, 4]])

    def conditional(psi):
        return NodeNormal(model.conditional(psi), noise[2:4])

    q = HierarchicalProposal(mixing, conditional, None, 1, shared=True)
    estimate = iw.estimate(model.log_joint, q, num_samples=2)
    value = (weights * estimate.value).sum()
    value.backward()

    truth = LinearHierarchy(values=MILD)
    drawn = truth.mixing()
    own, shared = drawn.loc + drawn.scale * noise[:2], drawn.loc + drawn.scale * noise[4]
    z = truth.conditional(own).loc + truth.parameters["conditional_scale"] * noise[2:4]
    v = torch.stack([truth.conditional(own).log_prob(z), truth.conditional(shared).log_prob(z)])
    expected = (weights * iw.IWAE()(truth.log_joint(z) - v.logsumexp(0) + math.log(2))).sum()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    assert value.item() < model.log_evidence()
    assert model.gradients() == pytest.approx(truth.gradients(), abs=1e-12)


def test_a_reverse_model_that_fits_has_little_noise_under_the_inner_rule() -> None:
    """At τ = q(ψ | z) only ψ_0's score is left, weighted 1/(K+1): (K+1)³ = 125 times less variance than without.

    Variances of 4000 draws are off by less than 20 % (chance of a false alarm below 1e-10): 125 against 60 is safe.
    """
    variances = {}
    for name, inner in (("inner", None), ("outer", iw.Reparameterized())):
        model = LinearHierarchy()
        shift = torch.zeros(4000, dtype=torch.float64, requires_grad=True)

        def reverse(z, shift=shift, model=model):
            return shifted(model.exact_reverse(z), shift)

        q = HierarchicalProposal(model.mixing((4000,)), model.conditional, reverse, 4, inner)
        iw.estimate(model.log_joint, q, iw.ELBO(), num_samples=1).value.sum().backward()
        variances[name] = shift.grad.var().item()
    assert variances["outer"] / variances["inner"] > 60


def shifted(normal: torch.distributions.Normal, shift: Tensor) -> torch.distributions.Normal:
    return torch.distributions.Normal(normal.loc + shift, normal.scale)
