"""Coefficients of the score estimators in float32 against brute force in float64, and the estimators' own rules."""

import math

import pytest
import torch

import iwbounds as iw
from tests.oracles.autograd import by_autograd
from tests.registry import BOUNDS

INF = math.inf

WEIGHTS = {
    "normal": torch.randn(9, generator=torch.Generator().manual_seed(0)),
    "offset -1e4": torch.randn(9, generator=torch.Generator().manual_seed(0)) - 1e4,
    "one dominates by 20": torch.tensor([0.1, -0.2, 20.0, 0.3]),
    "one dominates by 100": torch.tensor([0.1, -0.2, 100.0, 0.3]),
    "one dominates by 1000": torch.tensor([0.1, -0.2, 1000.0, 0.3]),
    "ties": torch.tensor([1.0, 1.0, 0.5, 0.5]),
    "all equal": torch.zeros(5),
    "one dead": torch.tensor([0.3, -INF, 1.0, 0.2]),
    "K=2": torch.tensor([0.4, -0.3]),
    "K=2 dominated": torch.tensor([50.0, -0.3]),
}


def brute_vimco(bound, log_w, geometric):
    """One evaluation of the bound for each sample left out, in float64."""
    log_w = log_w.double()
    value, c = bound(log_w), by_autograd(bound, log_w).gradient
    scores = []
    for k in range(len(log_w)):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        replaced = log_w.clone()
        replaced[k] = others.mean() if geometric else others.logsumexp(0) - math.log(len(others))
        scores.append(value - bound(replaced) - c[k])
    return torch.stack(scores)


@pytest.mark.parametrize("geometric", [False, True], ids=["arithmetic", "geometric"])
@pytest.mark.parametrize("log_w", WEIGHTS.values(), ids=WEIGHTS)
def test_vimco_matches_brute_force_for_iwae(log_w, geometric):
    found = iw.VIMCO(geometric).coefficients(iw.IWAE(), log_w).score
    expected = brute_vimco(iw.IWAE(), log_w - log_w.max(), geometric)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("geometric", [False, True], ids=["arithmetic", "geometric"])
@pytest.mark.parametrize("name", [name for name in BOUNDS if not name.startswith("miwae")])
def test_vimco_matches_brute_force_for_every_bound(name, geometric):
    """All but MIWAE, which leaves out within the group and has its own test."""
    bound, log_w = BOUNDS[name](), torch.randn(8, dtype=torch.float64)
    found = iw.VIMCO(geometric).coefficients(bound, log_w).score
    torch.testing.assert_close(found, brute_vimco(bound, log_w, geometric), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("log_w", WEIGHTS.values(), ids=WEIGHTS)
def test_ovis_matches_its_definition(log_w, gamma):
    found = iw.OVIS(gamma).coefficients(iw.IWAE(), log_w).score
    x, count = (log_w - log_w.max()).double(), len(log_w)
    w = x.softmax(0)
    left = torch.stack([torch.cat([x[:k], x[k + 1 :]]).logsumexp(0) - math.log(count - 1) for k in range(count)])
    control = left - gamma * w + (1 - gamma) * math.log(1 - 1 / count)
    expected = x.logsumexp(0) - math.log(count) - w - control
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", [iw.VIMCO(), iw.VIMCO(geometric=True), iw.OVIS(0.0), iw.OVIS(1.0)], ids=repr)
def test_no_finite_baseline_means_no_score(gradient):
    only_one_alive = torch.tensor([-INF, 0.7, -INF])
    found = gradient.coefficients(iw.IWAE(), only_one_alive)
    assert not found.score.isnan().any()
    assert found.score.isfinite().all()
    assert torch.equal(found.model, torch.tensor([0.0, 1.0, 0.0]))


def test_vimco_of_one_sample_is_reinforce():
    log_w = torch.tensor([[-3.0]])
    found, expected = (g.coefficients(iw.IWAE(), log_w) for g in (iw.VIMCO(), iw.ScoreFunction()))
    assert torch.equal(found.score, expected.score)


def test_a_learned_baseline_is_trained_in_the_same_backward_and_adds_no_bias():
    log_w = torch.randn(4, 3)
    table = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    logits = torch.zeros(3, 2, requires_grad=True)
    q = torch.distributions.Categorical(logits=logits)
    z = q.sample((4,))
    estimate = iw.estimate(
        lambda z: log_w + q.log_prob(z).detach(),
        q,
        gradient=iw.ScoreFunction(baseline=lambda: 1.0 * table),
        samples=z,
    )
    estimate.value.sum().backward()
    torch.testing.assert_close(table.grad, estimate.value.detach() - table.detach())
    with_table = iw.ScoreFunction(baseline=lambda: table).coefficients(iw.IWAE(), log_w)
    without = iw.ScoreFunction().coefficients(iw.IWAE(), log_w)
    torch.testing.assert_close(with_table.score, without.score - table.detach())


def test_a_running_mean_uses_earlier_calls_only():
    baseline = iw.RunningMean(decay=0.9)
    gradient = iw.ScoreFunction(baseline=baseline)
    first, second = torch.full((2, 3), 4.0), torch.full((2, 3), 8.0)
    assert torch.equal(gradient.coefficients(iw.IWAE(), first).score, torch.full((2, 3), 4.0 - 0.5))
    gradient.update(first[0])
    assert torch.equal(gradient.coefficients(iw.IWAE(), second).score, torch.full((2, 3), 8.0 - 4.0 - 0.5))
    gradient.update(second[0])
    assert baseline().item() == pytest.approx(0.9 * 4 + 0.1 * 8)


def test_dreg_is_wrong_for_a_jump_by_the_amount_the_theory_says():
    """For the maximum of K = 2, c - h = c misses the jump: -1/sqrt(2) against the true gradient. Hence the refusal."""

    class Pretends(iw.Bound):
        def __call__(self, log_w):
            return log_w.amax(0)

    log_w = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    _, h = Pretends().derivatives(log_w)
    assert (h == 0).all()
    for gradient in (iw.DReG(), iw.DReGWake()):
        with pytest.raises(ValueError, match="smooth"):
            gradient.coefficients(iw.Renyi(-INF), log_w)


def test_a_users_own_gradient_needs_coefficients_only():
    class Half(iw.Gradient):
        pathwise = True

        def coefficients(self, bound, log_w):
            return iw.Coefficients(model=None, path=0.5 * bound.differentiate(log_w).gradient)

    loc, scale = torch.zeros(3, requires_grad=True), torch.ones((), requires_grad=True)
    q = torch.distributions.Normal(loc, 1.0)
    z = q.rsample((4,))
    log_joint = lambda z: -scale * (z - 1) ** 2  # noqa: E731
    found, stl = (
        torch.autograd.grad(
            iw.estimate(log_joint, q, gradient=g, samples=z).value.sum(), (loc, scale), retain_graph=True
        )
        for g in (Half(), iw.STL())
    )
    torch.testing.assert_close(found[0], 0.5 * stl[0])
    assert found[1].abs() < 1e-12 < stl[1].abs()


# Baselines.


def test_coefficients_change_no_state_and_update_hands_the_value_to_the_baseline():
    baseline = iw.RunningMean(decay=0.5)
    gradient, log_w = iw.ScoreFunction(baseline), torch.randn(4, 3)
    first = gradient.coefficients(iw.IWAE(), log_w)
    again = gradient.coefficients(iw.IWAE(), log_w)
    assert baseline.state is None
    assert torch.equal(first.score, again.score)
    gradient.update(torch.tensor([2.0, 4.0, 6.0]))
    assert baseline() == 4
    gradient.evaluate(iw.IWAE(), log_w)
    assert baseline() == 4
    iw.ScoreFunction().update(torch.zeros(3))
    iw.ScoreFunction(lambda: torch.zeros(())).update(torch.zeros(3))


def test_a_batch_without_a_finite_value_leaves_the_running_mean_as_it_is():
    baseline, broken = iw.RunningMean(decay=0.5), torch.tensor([-INF, math.nan, INF])
    baseline.update(broken)
    assert baseline() == 0
    baseline.update(torch.tensor([3.0, -INF, 5.0]))
    assert baseline() == 4, "the first batch that counts is the whole mean"
    baseline.update(broken)
    assert baseline() == 4
    baseline.update(torch.empty(0))
    assert baseline() == 4
    baseline.update(torch.tensor([8.0]))
    assert baseline() == 6


def test_a_running_mean_keeps_no_graph():
    baseline = iw.RunningMean()
    baseline.update(torch.ones(3, requires_grad=True) * 2)
    assert not baseline().requires_grad


@pytest.mark.parametrize("shape", [(3, 1), (1,), (1, 3), (6,), (4, 3)], ids=str)
def test_a_baseline_of_another_shape_is_refused_with_both_shapes(shape):
    gradient = iw.ScoreFunction(lambda: torch.zeros(shape, requires_grad=True))
    with pytest.raises(ValueError, match=r"shape \(3,\) = \(\*batch\), or a scalar; got \(.*squeeze.*accumulate"):
        gradient.coefficients(iw.IWAE(), torch.randn(4, 3))


def test_a_baseline_may_be_a_scalar_or_of_the_batch():
    log_w = torch.randn(4, 3)
    plain = iw.ScoreFunction().coefficients(iw.IWAE(), log_w).score
    for baseline in (2.0, torch.tensor(2.0), torch.full((3,), 2.0)):
        found = iw.ScoreFunction(lambda baseline=baseline: baseline).coefficients(iw.IWAE(), log_w)
        torch.testing.assert_close(found.score, plain - 2)


# Digits of the score estimators.


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 5e-6), (torch.float64, 3e-10)], ids=str)
@pytest.mark.parametrize("largest", [1e-3, 0.01, 0.03, 0.0499, 0.0501, 0.2])
def test_ovis_keeps_the_digits_of_small_weights(largest, dtype, rtol):
    """−log(1 − w) − w is about w²/2: the difference has lost 4 of 7 digits at w = 0.01, all of them at 1e-4.

    Cut after w⁸/8, the series is 1.7e-10 off at the largest weights; 1/9 for 1/8 would add 4e-10.
    """
    rest = (1 - largest) / 2000
    w = torch.cat([torch.tensor([largest], dtype=torch.float64), torch.full((2000,), rest, dtype=torch.float64)])
    log_w = w.log().to(dtype)
    w = log_w.double().softmax(0)
    # w²/2 + w³/3 + …, far enough for every w here, summed from the smallest term.
    exact = sum(w**n / n for n in range(40, 1, -1))
    found = iw.OVIS(0.0).coefficients(iw.IWAE(), log_w).score
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=0)


@pytest.mark.parametrize("bound", [iw.IWAE(), iw.Renyi(0.0), iw.CIWAE(0.0), iw.CUBO(1)], ids=repr)
def test_vimco_keeps_the_digits_of_many_samples(bound):
    """K = 20 000 in float32: scores of about −5e-5, whose digits a difference of two bounds near 0.5 would lose."""
    log_w = torch.randn(20_000, 1)
    found = iw.VIMCO().coefficients(bound, log_w).score
    w = log_w.double().softmax(0)
    expected = -torch.log1p(-w) + math.log1p(-1 / len(w)) - w
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_vimcos_baseline_lowers_the_variance_and_is_the_bound_without_the_sample():
    """Where the weights do not depend on the sample, L − L₋ₖ is 0: the score is −c alone."""
    log_w = torch.full((6, 2), 3.0)
    found = iw.VIMCO().coefficients(iw.ELBO(), log_w)
    torch.testing.assert_close(found.score, -found.model)
    for name in ("iwae", "renyi(0.3)", "u-statistic(2)", "tvo-right(3)", "user's own"):
        bound = BOUNDS[name]()
        found = iw.VIMCO().coefficients(bound, torch.full((6, 2), 3.0, dtype=torch.float64))
        torch.testing.assert_close(found.score, -found.model, rtol=1e-7, atol=1e-9)


def test_what_each_estimator_needs():
    """(fixed support, independence) of every estimator of the package."""
    needs = {
        iw.Reparameterized(): (False, False),
        iw.STL(): (True, True),
        iw.DReG(): (True, True),
        iw.ScoreFunction(): (True, True),
        iw.VIMCO(): (True, True),
        iw.OVIS(): (True, True),
        iw.Wake(): (True, False),
        iw.DReGWake(): (True, True),
    }
    for gradient, expected in needs.items():
        assert (gradient.needs_fixed_support, gradient.needs_independence) == expected, gradient
