"""Orderings that hold for every fixed set of weights, within 8 ulp of the largest log-weight: none can flake."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import iwbounds as iw

DTYPES = [torch.float32, torch.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
thorough = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def log_weights(draw, min_samples=1, max_samples=9):
    """K numbers of a scale between 1e-8 and 1e6 about an offset of up to 1e8, with ties, outliers and dead weights."""
    count = draw(st.integers(min_samples, max_samples))
    scale = 10.0 ** draw(st.floats(-8, 6))
    offset = draw(st.sampled_from([0.0, 1.0, -1.0])) * 10.0 ** draw(st.floats(-8, 8))
    unit = st.floats(-1, 1, allow_subnormal=False, width=32) | st.sampled_from([0.0, 1.0, -1.0, 0.5])
    base = draw(st.lists(unit, min_size=count, max_size=count))
    outlier = draw(st.sampled_from([0.0, 0.0, 40.0, 1000.0]))
    values = [offset + scale * value + outlier * (k == 1) for k, value in enumerate(base)]
    dead = draw(st.lists(st.booleans(), min_size=count, max_size=count)) if draw(st.booleans()) else []
    return torch.tensor(
        [-math.inf if k < len(dead) and dead[k] else value for k, value in enumerate(values)], dtype=torch.float64
    )


def _slack(log_w):
    """8 ulp of the largest finite |log w|; with dead weights, which shift a mean by up to log K, at least of log K."""
    dead = log_w.isinf()
    largest = log_w.abs().masked_fill(dead, math.log(len(log_w))).amax()
    return 8 * (torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest)


def _assert_rising(log_w, *bounds):
    """Each bound is at most the next, −inf included, and all are at most the largest log-weight."""
    values = [bound(log_w) for bound in bounds] + [log_w.amax(0)]
    for low, high, bound in zip(values, values[1:], bounds, strict=False):
        assert low == -torch.inf or low - high <= _slack(log_w), (bound, low, high)


@each_dtype
@thorough
@given(log_w=log_weights(), beta=st.floats(0, 1))
def test_ciwae_lies_between_elbo_and_iwae(dtype, log_w, beta):
    _assert_rising(log_w.to(dtype), iw.ELBO(), iw.CIWAE(beta), iw.IWAE())


@each_dtype
@thorough
@given(log_w=log_weights(), inner=st.lists(st.floats(1e-3, 0.999), max_size=4, unique=True))
def test_tvo_sides_lie_on_either_side_of_iwae(dtype, log_w, inner):
    partition = [0.0, *sorted(inner), 1.0]
    left, right = iw.TVO(partition), iw.TVO(partition, side="right")
    _assert_rising(log_w.to(dtype), iw.ELBO(), left, iw.IWAE(), right, iw.EUBO())


@each_dtype
@thorough
@given(log_w=log_weights(min_samples=2))
def test_averages_over_all_sets_rise_with_their_size(dtype, log_w):
    sizes = range(1, len(log_w) + 1)
    _assert_rising(log_w.to(dtype), iw.ELBO(), *map(iw.UStatistic, sizes), iw.IWAE())


@each_dtype
@thorough
@given(log_w=log_weights(min_samples=8, max_samples=8), seed=st.integers(0, 20))
def test_averages_over_blocks_lie_between_elbo_and_iwae(dtype, log_w, seed):
    log_w = log_w.to(dtype)
    _assert_rising(log_w, iw.ELBO(), iw.MIWAE(4), iw.MIWAE(2), iw.IWAE())
    blocks = iw.IncompleteUStatistic(2, permutations=2, seed=seed)  # 2 divides 8: every sample counts equally often
    _assert_rising(log_w, iw.ELBO(), blocks, iw.IWAE())


@each_dtype
@thorough
@given(log_w=log_weights(), order=st.floats(1, 20))
def test_power_means_rise_with_their_power(dtype, log_w, order):
    _assert_rising(log_w.to(dtype), iw.ELBO(), iw.Renyi(0.5), iw.IWAE(), iw.CUBO(order), iw.CUBO(2 * order))
