"""The bettors' fairness, exactly: what multiplies their wealth has a mean of at most one under the hypothesis."""

import math

import pytest
import torch

from iwbounds.testing import ErrorBudget, assert_not_above, assert_upper_bound
from iwbounds.testing.betting import EProcess, guesses, stakes, symmetric_bets


def test_stakes_on_an_e_value_of_mean_one_are_fair():
    values, probabilities = torch.tensor([0.0, 0.5, 4.0]), torch.tensor([0.5, 2 / 7, 3 / 14], dtype=torch.float64)
    assert (values * probabilities).sum().item() == pytest.approx(1.0, abs=1e-15)
    assert torch.allclose((stakes(values.log()).exp() * probabilities).sum(1), torch.ones(6).double(), atol=1e-15)


def test_guesses_are_fair_when_the_log_odds_are_right():
    odds = torch.randn(4, dtype=torch.float64)
    others = torch.randn(3, 4, dtype=torch.float64)
    # Member k is the one at index 0 with probability softmax(odds)_k: play each case, with k moved to the front.
    orders = torch.stack([torch.tensor([k, *(j for j in range(4) if j != k)]) for k in range(4)], 1)
    factors = guesses(odds[orders], others[:, orders]).exp()
    assert torch.allclose((factors * odds.softmax(0)).sum(1), torch.ones(6, dtype=torch.float64), atol=1e-14)


def test_guesses_leave_out_members_that_the_hypothesis_excludes():
    odds = torch.tensor([[0.0], [-torch.inf]])
    assert torch.equal(guesses(odds, torch.tensor([[[0.0], [5.0]]])), torch.zeros(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0, 1e9])
def test_symmetric_bets_do_not_win_in_expectation(size):
    pair = torch.tensor([[size], [-size]])
    assert (symmetric_bets(pair, torch.ones(1)).exp().mean(1) <= 1 + 1e-15).all()


def test_symmetric_bets_on_signs_where_the_scale_is_unknown():
    pair = torch.tensor([[1e-7], [-1e-7]])
    factors = symmetric_bets(pair, torch.zeros(1))
    assert (factors.exp().mean(1) <= 1).all()
    assert (factors.abs() > 0.01).all()


def test_rejection_is_at_the_first_time_the_average_wealth_reaches_one_over_alpha():
    doubled, ruined = torch.full((30,), math.log(2.0)), torch.full((30,), -torch.inf)
    process = EProcess(alpha=1 / 1000)
    for start in range(0, 30, 4):
        process.add(torch.stack([doubled, ruined])[:, start : start + 4])
    assert process.rejected_at == math.ceil(math.log2(2 * 1000))
    assert process.best == 0
    assert process.count == 30


def test_rejection_stands_although_the_wealth_is_lost_later():
    process = EProcess(alpha=0.1)
    process.add(torch.tensor([[math.log(20.0), -torch.inf]]))
    assert process.rejected_at == 1
    assert process.log_wealth == -math.inf


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_alpha_must_be_a_probability(alpha):
    with pytest.raises(ValueError, match="alpha in"):
        EProcess(alpha)
    with pytest.raises(ValueError, match="alpha in"):
        ErrorBudget(alpha)


def test_nan_is_no_evidence():
    for check in (assert_not_above, assert_upper_bound):
        with pytest.raises(ValueError, match="1 NaN"):
            check(torch.tensor([0.0, torch.nan]), 0.0)


def test_infinite_estimates_refute_at_once_on_the_wrong_side_only():
    assert_not_above(torch.full((9,), -torch.inf), 0.0)
    assert_upper_bound(torch.full((9,), torch.inf), 0.0)
    with pytest.raises(AssertionError, match="after 1 of 9"):
        assert_not_above(torch.full((9,), torch.inf), 0.0)
    with pytest.raises(AssertionError, match="after 1 of 9"):
        assert_upper_bound(torch.full((9,), -torch.inf), 0.0)


def test_shares_of_a_budget_add_up_to_it_and_their_seeds_differ(capsys):
    budget = ErrorBudget(1e-3, seed=3, name="suite")
    shares = [budget.spend() for _ in range(2000)]
    assert budget.spent == pytest.approx(sum(share["alpha"] for share in shares))
    assert 0.999e-3 < budget.spent <= 1e-3
    assert len({share["seed"] for share in shares}) == 2000
    assert f"seed={shares[0]['seed']}" in capsys.readouterr().out


def test_budgets_of_the_same_name_and_seed_hand_out_the_same_shares():
    first, second, other = (ErrorBudget(1e-6, seed=seed, name="a test") for seed in (1, 1, 2))
    assert first.spend("x") == second.spend("x") != other.spend("x")


def test_parts_of_a_budget_add_up_to_it():
    parts = ErrorBudget(1e-6, name="suite").split(7)
    assert sum(part.alpha for part in parts) == pytest.approx(1e-6)
    assert len({part.seed for part in parts}) == 7
    with pytest.raises(ValueError, match="at least 1 part"):
        ErrorBudget().split(0)


def test_a_wealth_of_nan_is_refused_as_it_would_pass_for_the_absence_of_evidence():
    with pytest.raises(ValueError, match="1 NaN"):
        EProcess(0.1).add(torch.tensor([[0.0, torch.nan]]))
