"""AIS: weights by enumeration, HMC moves by integration, gradients refused, the evidence from both sides."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

import iwbounds as iw
from iwbounds.proposals import LearnedSchedule
from iwbounds.proposals.annealed import hmc
from iwbounds.proposals.annealed.adaptation import even_schedule
from iwbounds.proposals.annealed.annealing import annealed, annealed_back, conditional_ess

LOG_P = torch.tensor([-0.3, -2.0, 0.4], dtype=torch.float64)
LOG_Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
BETAS = torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=torch.float64)


def metropolis(beta: Tensor) -> Tensor:
    """A kernel on three states, to the next or the one before, that leaves π_β invariant and is reversible."""
    log_pi = beta * LOG_P + (1 - beta) * LOG_Q
    kernel = torch.zeros(3, 3, dtype=torch.float64)
    for i, j in itertools.permutations(range(3), 2):
        kernel[i, j] = 0.5 * (log_pi[j] - log_pi[i]).exp().clamp_max(1.0)
    return kernel + torch.diag(1 - kernel.sum(1))


def last_weight(walk) -> Tensor:
    *_, end = walk
    return end.log_w


@pytest.fixture
def paths() -> Tensor:
    """All 27 paths z_0, z_1, z_2."""
    return torch.cartesian_prod(*[torch.arange(3)] * 3).T


def test_forward_weights_have_the_evidence_as_their_mean_by_enumeration(paths):
    increments = list(BETAS.diff())
    log_w = last_weight(annealed(paths[0], increments, lambda z: (LOG_P - LOG_Q)[z], lambda _, t: paths[t + 1]))
    probability = LOG_Q.exp()[paths[0]]
    for t in (1, 2):
        probability = probability * metropolis(BETAS[t])[paths[t - 1], paths[t]]
    assert (probability * log_w.exp()).sum().item() == pytest.approx(LOG_P.exp().sum().item(), abs=1e-13)


def test_reverse_weights_have_the_inverse_evidence_as_their_mean_by_enumeration(paths):
    increments = list(BETAS.diff())
    log_w = last_weight(annealed_back(paths[2], increments, lambda z: (LOG_P - LOG_Q)[z], lambda _, t: paths[t]))
    posterior = LOG_P.softmax(0)
    probability = posterior[paths[2]]
    for t in (2, 1):
        probability = probability * metropolis(BETAS[t])[paths[t], paths[t - 1]]
    assert (probability * (-log_w).exp()).sum().item() == pytest.approx(1 / LOG_P.exp().sum().item(), abs=1e-13)
    # The same path has the same weight in both directions.
    there = last_weight(annealed(paths[0], increments, lambda z: (LOG_P - LOG_Q)[z], lambda _, t: paths[t + 1]))
    torch.testing.assert_close(log_w, there)


def bumpy(z: Tensor) -> Tensor:
    """An unnormalised density without a name; its integral is had by the same grid."""
    return -0.5 * (z - 1) ** 2 - 0.3 * torch.sin(2 * z) - 0.5


@pytest.mark.parametrize("leapfrogs", [1, 3])
def test_an_hmc_move_leaves_its_density_invariant(leapfrogs, monkeypatch):
    """E[w] of T = 2 over a grid of z_0 and momenta, the Metropolis decision summed over: both ends and their rate."""
    axis = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    z, v = (g.flatten() for g in torch.meshgrid(axis, axis, indexing="ij"))
    unit = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    chain = iw.AnnealedProposal(unit.expand((len(z),)), iw.HMC(0.7, leapfrogs), 2, [0.0, 0.4, 1.0])
    bridge = chain._bridge(bumpy)
    start = chain.transition.chain_at(bridge, z.unsqueeze(0))
    monkeypatch.setattr(hmc, "standard_normal_like", lambda _: v.unsqueeze(0))
    monkeypatch.setattr(hmc, "uniform_like", lambda x: torch.zeros_like(x))
    accepted = chain.transition.move(bridge, start, 0)
    log_ratio = [c.values.log_p[0] - c.values.log_q[0] for c in (start, accepted)]
    stay, go = 0.4 * log_ratio[0] + 0.6 * log_ratio[0], 0.4 * log_ratio[0] + 0.6 * log_ratio[1]
    rate = accepted.acceptance[0]
    assert 0.02 < rate.min() < 0.6
    area = (axis[1] - axis[0]) ** 2
    mass = (unit.log_prob(z) + unit.log_prob(v)).exp() * area
    found = (mass * (rate * go.exp() + (1 - rate) * stay.exp())).sum()
    evidence = (bumpy(axis).exp() * (axis[1] - axis[0])).sum()
    # The rate has a kink: the grid's own error is of second order, 2e-6 here.
    assert found.item() == pytest.approx(evidence.item(), rel=1e-5)


def test_a_rejected_move_stays_where_it_was(monkeypatch):
    chain = iw.AnnealedProposal(Normal(torch.zeros(4), 1.0), iw.HMC(0.5), 2)
    bridge = chain._bridge(bumpy)
    start = chain.transition.chain_at(bridge, torch.randn(5, 4))
    monkeypatch.setattr(hmc, "uniform_like", lambda x: torch.ones_like(x))
    kept = chain.transition.move(bridge, start, 0)
    stayed = kept.acceptance < 1
    assert stayed.any()
    assert torch.equal(kept.z[stayed], start.z[stayed])
    assert torch.equal(kept.values.slope_p[stayed], start.values.slope_p[stayed])


def linear_gaussian(d: int, data: int):
    """z ~ N(0, I), x | z ~ N(Wz, I): log-joint, prior, exact log p(x), and a draw of each posterior by simulation."""
    weight = torch.randn(d, d, dtype=torch.float64) / d**0.5
    z = torch.randn(data, d, dtype=torch.float64)
    x = z @ weight.T + torch.randn(data, d, dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    truth = MultivariateNormal(torch.zeros(d, dtype=torch.float64), weight @ weight.T + eye).log_prob(x)
    precision = eye + weight.T @ weight
    posterior = MultivariateNormal(torch.linalg.solve(precision, weight.T @ x.T).T, precision_matrix=precision)

    def log_joint(z: Tensor) -> Tensor:
        squares = z.square().sum(-1) + (x - z @ weight.T).square().sum(-1)
        return -0.5 * squares - d * math.log(2 * math.pi)

    return log_joint, Independent(Normal(torch.zeros(data, d, dtype=torch.float64), 1.0), 1), truth, posterior


def test_ais_is_within_a_tenth_of_a_nat_in_ten_dimensions():
    """Mean over 200 data of 2 chains of 300 steps; the spread of a log-weight is 0.4: ± 0.02 per standard error."""
    log_joint, prior, truth, _ = linear_gaussian(10, 200)
    chain = iw.AnnealedProposal(prior, iw.HMC(0.5), 300)
    with torch.no_grad():
        estimate = iw.estimate(log_joint, chain, num_samples=2)
    assert -0.05 < (truth - estimate.value).mean() < 0.1


def test_the_certified_sandwich_encloses_the_truth_for_all_of_200_data():
    """99 % certificates on either side, 400 in all; betting on light-tailed weights fails far less often than 1 %."""
    log_joint, prior, truth, posterior = linear_gaussian(10, 200)
    chain = iw.AnnealedProposal(prior, iw.HMC(0.5), 40)
    found = iw.sandwich(log_joint, chain, posterior.sample((12,)), 12, exact=True)
    assert ((found.lower.certificate <= truth) & (truth <= found.upper.certificate)).all()
    assert (found.lower.value - truth).mean() < 0.02
    assert (found.upper.value - truth).mean() > -0.02
    assert found.width.mean() < 0.3


def test_an_upper_bound_takes_one_posterior_draw_and_a_chain():
    log_joint, prior, truth, posterior = linear_gaussian(2, 300)
    chain = iw.AnnealedProposal(prior, iw.HMC(0.5), 20)
    upper = iw.upper_bound(log_joint, chain, posterior.sample(), num_samples=4)
    assert upper.direction is iw.Direction.UPPER
    assert upper.log_weights.shape == (5, 300)
    assert -0.02 < (upper.value - truth).mean() < 0.2


def test_the_gradient_of_an_upper_bound_fits_the_chain():
    """Its value at fixed posterior draws is differentiated as it stands, through the path that is walked back."""
    log_joint, prior, _, posterior = linear_gaussian(2, 5)
    step = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    z = posterior.sample((3,))

    def mean(size: Tensor) -> Tensor:
        torch.manual_seed(2)
        return iw.AnnealedProposal(prior, iw.ULA(size), 3).posterior_log_weights(log_joint, z).mean()

    (found,) = torch.autograd.grad(mean(step), step)
    with torch.no_grad():
        numeric = (mean(step + 1e-5) - mean(step - 1e-5)) / 2e-5
    assert found.item() == pytest.approx(numeric.item(), rel=1e-6)


def test_gradients_through_accept_steps_are_refused_wherever_something_requires_grad():
    theta = torch.ones((), requires_grad=True)
    unit = Normal(torch.zeros(3), 1.0)
    trained = Normal(torch.zeros(3, requires_grad=True), 1.0)
    cases = [
        (lambda z: theta * bumpy(z), iw.AnnealedProposal(unit, iw.HMC(0.3), 3), "log_joint requires"),
        (bumpy, iw.AnnealedProposal(trained, iw.HMC(0.3), 3), "the proposal requires"),
        (bumpy, iw.AnnealedProposal(unit, iw.HMC(0.3 * theta), 3), "the proposal requires"),
        (bumpy, iw.AnnealedProposal(unit, iw.HMC(0.3), 3, LearnedSchedule(3)), "the proposal requires"),
    ]
    for log_joint, chain, message in cases:
        for gradient in (None, iw.VIMCO(), iw.Wake()):
            with pytest.raises(ValueError, match=message):
                iw.estimate(log_joint, chain, gradient=gradient, num_samples=4)
        with pytest.raises(ValueError, match=message):
            iw.upper_bound(log_joint, chain, torch.zeros(3), 2)
        with torch.no_grad():
            assert iw.estimate(log_joint, chain, num_samples=4).value.isfinite().all()
    with pytest.raises(ValueError, match="differentiates through the samples"):
        iw.estimate(bumpy, cases[0][1], gradient=iw.DReG(), num_samples=4)
    frozen = iw.estimate(bumpy, cases[0][1], num_samples=4)
    assert not frozen.value.requires_grad


@pytest.mark.parametrize("gradient", [None, iw.Wake()], ids=repr)
def test_the_explicit_model_gradient_is_fishers_identity_at_the_last_states(gradient):
    theta = torch.tensor(0.7, requires_grad=True)
    log_joint = lambda z: -0.5 * z**2 + theta * torch.sin(z)  # noqa: E731
    chain = iw.AnnealedProposal(Normal(torch.zeros(3), 1.0), iw.HMC(0.3, model_gradient=True), 5)
    estimate = iw.estimate(log_joint, chain, gradient=gradient, num_samples=6, keep_samples=True)
    estimate.value.sum().backward()
    expected = (estimate.log_weights.softmax(0) * torch.sin(estimate.samples)).sum()
    torch.testing.assert_close(theta.grad, expected)


def test_a_pilot_run_sets_step_sizes_for_each_datum_and_is_left_alone():
    """Data whose posteriors differ in scale by a factor of 8: so do their steps at the end."""
    scales = torch.tensor([0.125, 1.0], dtype=torch.float64)
    log_joint = lambda z: Normal(0.0, scales).log_prob(z)  # noqa: E731
    first = iw.AnnealedProposal(Normal(torch.zeros(2, dtype=torch.float64), 1.0), iw.HMC(0.01), 60)
    chain = first.adapted(log_joint, num_samples=32)
    assert first.transition.step_size == 0.01
    last = chain.transition.step_size(58)
    assert 4 < (last[1] / last[0]).item() < 14
    report = chain.report(log_joint, 64)
    assert report.acceptance.shape == (59, 2)
    assert report.acceptance[20:].mean().item() == pytest.approx(0.9, abs=0.05)
    # log Z = 0 for both. The first has a gap of 0.3, and one of 0.9 with a linear schedule.
    assert report.log_weights.mean(0).abs().max() < 0.5
    assert "acceptance" in str(report)
    with torch.no_grad():
        torch.manual_seed(3)
        one = iw.estimate(log_joint, chain, num_samples=8).value
        torch.manual_seed(3)
        assert torch.equal(iw.estimate(log_joint, chain, num_samples=8).value, one)  # frozen


def test_the_adapted_schedule_evens_out_the_conditional_effective_sample_size():
    """A posterior a tenth as wide as q: a linear schedule loses most of it in the first steps."""
    log_joint = lambda z: Normal(0.0, 0.1).log_prob(z)  # noqa: E731
    first = iw.AnnealedProposal(Normal(torch.zeros(20, dtype=torch.float64), 1.0), iw.HMC(0.3), 30)
    least = {
        name: chain.report(log_joint, 64).conditional_ess.mean(1).min().item()
        for name, chain in (
            ("linear", first.adapted(log_joint, adapt_schedule=False)),
            ("even", first.adapted(log_joint)),
        )
    }
    assert least["even"] > 0.9 > 0.75 > least["linear"]


def test_an_even_spread_gives_a_linear_schedule_and_a_growing_one_smaller_steps():
    betas = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    torch.testing.assert_close(even_schedule(betas, torch.ones(40, 3)), betas)
    # ∫ (1 + β) dβ in equal parts: β = √(1 + 3 s) − 1.
    found = even_schedule(betas, (1 + betas[:-1]).unsqueeze(1))
    torch.testing.assert_close(found, (1 + 3 * betas).sqrt() - 1, atol=5e-3, rtol=0)


def test_conditional_ess_is_one_for_equal_increments_and_counts_the_rest():
    log_w = torch.randn(6, 2, dtype=torch.float64)
    even = conditional_ess(log_w, torch.full_like(log_w, 0.7))
    torch.testing.assert_close(even, torch.ones(2, dtype=torch.float64))
    half = torch.tensor([0.0, -math.inf], dtype=torch.float64)
    assert conditional_ess(torch.zeros(2), half).item() == pytest.approx(0.5)
    assert conditional_ess(half, torch.randn(2)).item() == pytest.approx(1.0)  # the dead chain counts for nothing


def test_the_memory_of_a_run_does_not_grow_with_its_steps():
    from tests.oracles.memory import peak_of_live_tensors

    unit = Normal(torch.zeros(100), 1.0)
    peaks = []
    for steps in (5, 20):
        chain = iw.AnnealedProposal(unit, iw.HMC(0.3, 1), steps)

        def run(chain=chain):
            with torch.no_grad():
                iw.estimate(bumpy, chain, num_samples=50)

        peaks.append(peak_of_live_tensors(run))
    assert peaks[1] < 1.1 * peaks[0]


WRONG = {
    "schedule below one": (lambda: iw.AnnealedProposal(UNIT, iw.HMC(0.1), 2, [0.0, 0.5, 0.9]), "exactly 1"),
    "schedule that falls": (lambda: iw.AnnealedProposal(UNIT, iw.HMC(0.1), 3, [0.0, 0.6, 0.5, 1.0]), "increases"),
    "leapfrogs": (lambda: iw.HMC(0.1, 0), "num_leapfrogs"),
    "pilot of one": (lambda: iw.AnnealedProposal(UNIT, iw.HMC(0.1), 3).adapted(bumpy, 1), "num_samples"),
    "target": (lambda: iw.AnnealedProposal(UNIT, iw.HMC(0.1), 3).adapted(bumpy, 4, 1.0), "target_acceptance"),
    "adapted ULA": (lambda: iw.AnnealedProposal(UNIT, iw.ULA(0.1), 3).adapted(bumpy), "HMC"),
    "report of ULA": (lambda: iw.AnnealedProposal(UNIT, iw.ULA(0.1), 3).report(bumpy), "HMC"),
}
UNIT = Normal(torch.zeros(2), 1.0)


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_for_ais_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_evaluate_adapts_ais_on_top_of_an_encoder_once_a_batch():
    """x ~ N(0, 1 + 1) exactly, and an encoder that is off; a seed settles pilots and draws alike."""

    def model(x):
        log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)  # noqa: E731
        return log_joint, iw.AnnealedProposal(Normal(0.2 * x, 1.3), iw.HMC(0.1), 12).adapted(log_joint, 8)

    x = torch.linspace(-2, 2, 20, dtype=torch.float64)
    first, again = (iw.evaluate(model, x, num_samples=64, progress=False, seed=0) for _ in range(2))
    assert torch.equal(first.log_evidence, again.log_evidence)
    torch.testing.assert_close(first.log_evidence, Normal(0.0, 2**0.5).log_prob(x), atol=0.15, rtol=0)
    assert first.certified_nll > -Normal(0.0, 2**0.5).log_prob(x).mean()


def test_posterior_expectations_are_those_of_the_last_states():
    log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.ones(()))  # noqa: E731
    chain = iw.AnnealedProposal(Normal(torch.tensor(-1.0), 1.0), iw.HMC(0.5), 10)
    found = iw.posterior_expectation(log_joint, chain, lambda z: z, num_samples=4000)
    # The standard error is 0.015: five of them, false-fail rate 6e-7.
    assert found.mean.item() == pytest.approx(0.5, abs=0.08)


def test_a_short_chain_makes_no_move_and_is_importance_sampling():
    chain = iw.AnnealedProposal(UNIT, iw.HMC(0.1), 1)
    with torch.no_grad():
        estimate = iw.estimate(bumpy, chain, num_samples=4, keep_samples=True)
    torch.testing.assert_close(estimate.log_weights, bumpy(estimate.samples) - UNIT.log_prob(estimate.samples))
    assert chain.adapted(bumpy).report(bumpy).acceptance.shape == (0, 2)
