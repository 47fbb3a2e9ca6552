"""Discrete ψ: expected gradients by enumerating every outcome, with a continuous z over a grid of its noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

import iwbounds as iw
from iwbounds.proposals import HierarchicalProposal
from tests.oracles.nodes import gauss_hermite_grid

NUM_PSI, NUM_Z = 3, 4
SCORE = {
    "vimco": iw.VIMCO(),
    "vimco-geometric": iw.VIMCO(geometric=True),
    "score": iw.ScoreFunction(),
    "default": None,
}
BOUNDS = {"iwae": iw.IWAE(), "elbo": iw.ELBO(), "renyi(0.5)": iw.Renyi(0.5)}


class Tables:
    """A finite hierarchy and model: every probability is a parameter of its own."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        shapes = {
            "mixing": (NUM_PSI,),
            "conditional": (NUM_PSI, NUM_Z),
            "reverse": (NUM_Z, NUM_PSI),
            "model": (NUM_Z,),
        }
        self.parameters = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for name, shape in shapes.items()
        }

    def log_joint(self, z: Tensor) -> Tensor:
        return self.parameters["model"][z]

    def mixing(self, batch: tuple[int, ...] = ()) -> Categorical:
        return Categorical(logits=self.parameters["mixing"].expand(*batch, NUM_PSI))

    def conditional(self, psi: Tensor) -> Categorical:
        return Categorical(logits=self.parameters["conditional"][psi])

    def reverse(self, z: Tensor) -> Categorical:
        return Categorical(logits=self.parameters["reverse"][z])

    def proposal(self, batch: int, num_aux: int, reverse: bool) -> HierarchicalProposal:
        return HierarchicalProposal(self.mixing((batch,)), self.conditional, self.reverse if reverse else None, num_aux)

    def gradients(self) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]


def outcomes(num_samples: int, num_aux: int) -> tuple[Tensor, Tensor]:
    """Every z ``(M, n)`` and ψ ``(M, n, K + 1)``."""
    ranges = [range(NUM_Z), *[range(NUM_PSI)] * (num_aux + 1)]
    one = list(itertools.product(*ranges))
    all_of_them = torch.tensor(list(itertools.product(one, repeat=num_samples))).movedim(1, 0)
    return all_of_them[..., 0], all_of_them[..., 1:]


def log_probability(tables: Tables, z: Tensor, psi: Tensor, reverse: bool) -> Tensor:
    """Of each outcome ``(n)``, as it is drawn."""
    own = tables.mixing().log_prob(psi[..., 0]) + tables.conditional(psi[..., 0]).log_prob(z)
    fresh = tables.reverse(z.unsqueeze(-1)) if reverse else tables.mixing()
    return (own + fresh.log_prob(psi[..., 1:]).sum(-1)).sum(0)


def log_weights(tables: Tables, z: Tensor, psi: Tensor, reverse: bool) -> Tensor:
    v = tables.conditional(psi).log_prob(z.unsqueeze(-1))
    if reverse:
        v = v + tables.mixing().log_prob(psi) - tables.reverse(z.unsqueeze(-1)).log_prob(psi)
    return tables.log_joint(z) - v.logsumexp(-1) + math.log(psi.shape[-1])


@pytest.mark.parametrize("reverse", [True, False], ids=["iwhvi", "sivi"])
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("gradient", SCORE.values(), ids=SCORE)
def test_expected_score_gradient_is_the_gradient_of_the_expected_bound(gradient, bound, reverse) -> None:
    z, psi = outcomes(num_samples=2, num_aux=1)
    tables = Tables()
    probability = log_probability(tables, z, psi, reverse).exp().detach()
    q = tables.proposal(z.shape[1], 1, reverse)
    estimate = iw.estimate(tables.log_joint, q, bound, gradient, samples=(z, psi))
    (probability * estimate.value).sum().backward()

    exact = Tables()
    probability = log_probability(exact, z, psi, reverse).exp()
    value = (probability * bound(log_weights(exact, z, psi, reverse))).sum()
    value.backward()
    assert (probability * estimate.value).sum().item() == pytest.approx(value.item(), abs=1e-12)
    assert value.item() <= exact.parameters["model"].logsumexp(0).item()
    for found, truth in zip(tables.gradients(), exact.gradients(), strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reverse", [True, False], ids=["iwhvi", "sivi"])
def test_bounds_of_log_q_are_ordered_exactly(reverse) -> None:
    """U_0 ≥ U_1 ≥ U_2 ≥ log q ≥ Λ_2 ≥ Λ_1, for every z, by enumeration; strictly, as τ is not q(ψ | z)."""
    tables = Tables()
    every_z = torch.arange(NUM_Z)
    joint = tables.mixing().logits.unsqueeze(0) + tables.conditional(torch.arange(NUM_PSI)).logits.T
    log_q = joint.logsumexp(1)
    upper = [expected_bound(tables, every_z, k, reverse, own=True) for k in range(3)]
    lower = [expected_bound(tables, every_z, k, reverse, own=False) for k in (2, 1)]
    chain = [*upper, log_q, *lower]
    for higher, less in itertools.pairwise(chain):
        assert (higher > less).all()


def expected_bound(tables: Tables, z: Tensor, num_aux: int, reverse: bool, own: bool) -> Tensor:
    """E[U_K] or E[Λ_K] for each z, with the library's densities, over all ψ."""
    psi = torch.tensor(list(itertools.product(range(NUM_PSI), repeat=num_aux + own)))  # (n, K + own)
    fresh = tables.reverse(z) if reverse else tables.mixing((NUM_Z,))
    log_p = fresh.log_prob(psi.T.unsqueeze(-1).expand(-1, -1, NUM_Z)[own:].movedim(1, 0).movedim(0, 1)).sum(0)
    if own:
        posterior = tables.mixing().logits + tables.conditional(torch.arange(NUM_PSI)).logits[:, z].T
        log_p = log_p + posterior.log_softmax(1).T[psi[:, 0]]
    q = tables.proposal(NUM_Z, num_aux, reverse)
    values = [
        iw.IWAE()(q._model.log_weights(z.unsqueeze(0), row.reshape(-1, 1, 1).expand(-1, 1, NUM_Z))) for row in psi
    ]
    return (log_p.exp() * torch.cat(values)).sum(0)


@pytest.mark.parametrize("reverse", [True, False], ids=["iwhvi", "sivi"])
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("follow", [(True, False), (False, False)], ids=["path through z", "score"])
def test_discrete_psi_with_a_continuous_z(follow, bound, reverse) -> None:
    """M = 2, K = 1: the noise of two z on a grid, times every ψ."""
    noise, weights = gauss_hermite_grid(32, 2)
    psi = torch.tensor(list(itertools.product(range(2), repeat=4))).reshape(-1, 2, 2).movedim(1, 0)
    psi = psi.repeat_interleave(noise.shape[1], 1)
    noise, weights = noise.repeat(1, 16), weights.repeat(16)

    model = Mixture()
    z = model.conditional(psi[..., 0]).loc + 0.9 * noise
    probability = (weights * log_probability_of_psi(model, z, psi, reverse).exp()).detach()
    q = HierarchicalProposal(
        Categorical(logits=model.parameters[0].expand(z.shape[1], 2)),
        model.conditional,
        model.reverse if reverse else None,
        1,
        reparameterized=follow,
    )
    estimate = iw.estimate(model.log_joint, q, bound, iw.VIMCO(), samples=(z, psi))
    (probability * estimate.value).sum().backward()
    found = [p.grad for p in model.parameters[: 3 if reverse else 2]]

    exact = Mixture()
    z = exact.conditional(psi[..., 0]).loc + 0.9 * noise
    v = exact.conditional(psi).log_prob(z.unsqueeze(-1))
    if reverse:
        mixing = Categorical(logits=exact.parameters[0])
        v = v + mixing.log_prob(psi) - exact.reverse(z.unsqueeze(-1)).log_prob(psi)
    log_w = exact.log_joint(z) - v.logsumexp(-1) + math.log(2)
    value = (weights * log_probability_of_psi(exact, z, psi, reverse).exp() * bound(log_w)).sum()
    value.backward()
    assert (probability * estimate.value).sum().item() == pytest.approx(value.item(), abs=1e-12)
    for ours, parameter in zip(found, exact.parameters, strict=False):
        torch.testing.assert_close(ours, parameter.grad, rtol=0, atol=1e-4)


class Mixture:
    """Two components of one continuous z, with a reverse model that depends on z."""

    def __init__(self) -> None:
        values = [[0.2, -0.3], [-0.6, 0.7], [0.8, -0.4]]
        self.parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]

    def conditional(self, psi: Tensor) -> Normal:
        return Normal(self.parameters[1][psi], 0.9)

    def reverse(self, z: Tensor) -> Categorical:
        slope, shift = self.parameters[2]
        return Categorical(logits=torch.stack([slope * z + shift, -slope * z], -1))

    def log_joint(self, z: Tensor) -> Tensor:
        return Normal(0.3, 1.1).log_prob(z) - 0.4


def log_probability_of_psi(model: Mixture, z: Tensor, psi: Tensor, reverse: bool) -> Tensor:
    """Of the ψ of each outcome as they are drawn, given the noise of z."""
    mixing = Categorical(logits=model.parameters[0])
    fresh = model.reverse(z) if reverse else mixing
    return (mixing.log_prob(psi[..., 0]) + fresh.log_prob(psi[..., 1])).sum(0)
