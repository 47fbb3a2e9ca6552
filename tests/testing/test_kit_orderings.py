"""Coupled facts on hypothesis' worst log-weights, and what their assertions say when they are broken."""

import pytest
import torch
from hypothesis import given, settings

import iwbounds as iw
from iwbounds.testing import assert_coupled_order, assert_monotone_in_k, assert_same_value, default_chains
from iwbounds.testing.strategies import log_weights
from tests.testing import planted

thorough = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_coupled_order_of_the_library_holds_for_any_weights(dtype):
    @thorough
    @given(log_weights(dtype=dtype))
    def holds(log_w):
        assert_coupled_order(log_w)

    holds()


@pytest.mark.parametrize("bound", [iw.ELBO(), iw.IWAE(), iw.CIWAE(0.4), iw.Renyi(0.5)], ids=repr)
def test_bounds_do_not_decrease_with_the_number_of_samples(bound):
    @settings(thorough, max_examples=25)
    @given(log_weights(min_samples=2, max_samples=7, batch=(2,)))
    def holds(log_w):
        assert_monotone_in_k(log_w, bound)

    holds()


def test_chains_of_the_default_hold_many_bounds_and_scale_to_many_samples():
    named = {type(member).__name__ for chain in default_chains(64) for member in chain}
    assert {"ELBO", "CIWAE", "IWAE", "TVO", "EUBO", "Renyi", "MIWAE", "UStatistic"} <= named
    assert_coupled_order(10 * torch.randn(64, 5))


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)], ids=str)
def test_any_batch_shape(batch):
    assert_coupled_order(torch.randn(6, *batch))
    assert_monotone_in_k(torch.randn(6, *batch))


def test_a_decrease_with_the_number_of_samples_is_reported():
    with pytest.raises(AssertionError, match=r"log_w_max_minus_count of 1 ≤ of 2 samples"):
        assert_monotone_in_k(torch.zeros(3, 2), log_w_max_minus_count)
    with pytest.raises(ValueError, match="at least 2 samples"):
        assert_monotone_in_k(torch.zeros(1, 2))


def log_w_max_minus_count(log_w):
    return log_w.amax(0) - len(log_w)


def test_the_first_datum_out_of_order_is_named():
    log_w = torch.zeros(3, 4)
    log_w[0, 2] = 3.0
    with pytest.raises(AssertionError, match=r"expected IWAE\(\) ≤ ELBO\(\).* at datum \(2,\)"):
        assert_coupled_order(log_w, chain=(iw.IWAE(), iw.ELBO()))


def test_a_bound_that_reduces_the_batch_is_reported():
    with pytest.raises(AssertionError, match=r"return \(\*batch\) = \(4,\); got \(\)"):
        assert_coupled_order(torch.randn(3, 4), chain=(lambda log_w: log_w.mean(),))


def test_a_bound_that_mixes_data_is_reported_although_it_is_in_order():
    with pytest.raises(AssertionError, match="must not mix data"):
        assert_coupled_order(torch.randn(3, 4), chain=(planted.batch_inside_log,))


def test_same_value_draws_the_same_samples_for_each_and_leaves_the_generator_alone():
    q = torch.distributions.Normal(torch.zeros(5), 1.0)
    state = torch.get_rng_state()
    assert_same_value(*[lambda: iw.estimate(lambda z: -(z**2), q, num_samples=7)] * 3, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AssertionError, match="estimators 0 and 1 on the draws of seed=4"):
        assert_same_value(lambda: q.sample(), lambda: q.sample() + 1e-3, seed=4)


def test_same_value_tells_shapes_infinities_and_nan_apart():
    dead = torch.tensor([-torch.inf, 1.0])
    assert_same_value(lambda: dead, lambda: dead.clone())
    for other in (torch.tensor([0.0, 1.0]), torch.tensor([torch.nan, 1.0]), dead.unsqueeze(0)):
        with pytest.raises(AssertionError):
            assert_same_value(lambda: dead, lambda: other)  # noqa: B023
    with pytest.raises(ValueError, match="at least two"):
        assert_same_value(lambda: dead)


def test_same_value_allows_rounding_of_the_log_weights_size():
    value = torch.tensor(1.0)
    assert_same_value(lambda: value, lambda: value + 4 * 2**-23)
    with pytest.raises(AssertionError):
        assert_same_value(lambda: value, lambda: value + 32 * 2**-23)
