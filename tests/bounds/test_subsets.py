"""Jackknife and U-statistic against enumeration of every subset, K = 14."""

import numpy as np
import pytest
import torch

import iwbounds as iw
from tests.oracles.subsets import coefficient, first_two_derivatives, jackknife, subset_average

K, BATCH = 14, 8
ORDERS = [1, 2, 3]
SIZES = list(range(2, 14))


def _weights(kind):
    base = torch.randn(K, BATCH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind == "wide":
        return 300 * (base - base.amin(0)) / (base.amax(0) - base.amin(0))
    if kind == "dominating":
        return base + 40.0 * (torch.arange(K) == 5).unsqueeze(1)
    return {"normal": base, "tied": (2 * base).round(), "equal": torch.full_like(base, 3.0)}[kind]


KINDS = ["normal", "wide", "dominating", "tied", "equal"]
CASES = [(iw.Jackknife(order), lambda x, order=order: jackknife(x, order)) for order in ORDERS] + [
    (iw.UStatistic(size), lambda x, size=size: subset_average(x, size)) for size in SIZES
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bound", "oracle"), CASES, ids=lambda case: repr(case) if isinstance(case, iw.Bound) else "")
def test_value_gradient_and_curvature_agree_with_enumeration(bound, oracle, kind):
    log_w = _weights(kind).requires_grad_()
    value = oracle(log_w)
    c, h = first_two_derivatives(value, log_w)
    found_c, found_h = bound.derivatives(log_w.detach())
    torch.testing.assert_close(bound(log_w.detach()), value.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found_c, c, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found_h, h, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bound", "oracle"), CASES, ids=lambda case: repr(case) if isinstance(case, iw.Bound) else "")
def test_float32_agrees_with_float64_enumeration_of_the_same_weights(bound, oracle, kind):
    log_w = _weights(kind).float()
    wide = log_w.double().requires_grad_()
    value = oracle(wide)
    (c,) = torch.autograd.grad(value.sum(), wide)
    assert bound(log_w).dtype == torch.float32
    torch.testing.assert_close(bound(log_w).double(), value.detach(), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(bound.differentiate(log_w).gradient.double(), c, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("order", [4, 5, 6])
def test_high_orders_agree_with_enumeration_to_what_their_coefficients_leave(order):
    log_w = _weights("normal").requires_grad_()
    value = jackknife(log_w, order)
    c, h = first_two_derivatives(value, log_w)
    found_c, found_h = iw.Jackknife(order).derivatives(log_w.detach())
    amplified = 1e-13 * (K**order / torch.arange(1.0, order + 1).prod().item())
    torch.testing.assert_close(iw.Jackknife(order)(log_w.detach()), value.detach(), rtol=0, atol=amplified)
    torch.testing.assert_close(found_c, c, rtol=0, atol=amplified)
    torch.testing.assert_close(found_h, h, rtol=0, atol=amplified)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_jackknife_of_many_samples_agrees_with_the_combination_of_u_statistics(order, scale):
    """K = 60: the series of the jackknife against the quadrature, two algorithms that share nothing."""
    log_w = scale * torch.randn(60, 5, dtype=torch.float64)
    parts = [(coefficient(60, order, j), iw.UStatistic(60 - j)) for j in range(order + 1)]
    value = sum(share * part(log_w) for share, part in parts)
    c = sum(share * part.differentiate(log_w).gradient for share, part in parts)
    rounding = 1e-15 * scale * sum(abs(share) for share, _ in parts)
    torch.testing.assert_close(iw.Jackknife(order)(log_w), value, rtol=0, atol=10 * rounding)
    torch.testing.assert_close(iw.Jackknife(order).differentiate(log_w).gradient, c, rtol=0, atol=10 * rounding)


@pytest.mark.parametrize("bound", [iw.Jackknife(2), iw.Jackknife(3), iw.UStatistic(3), iw.UStatistic(12)], ids=repr)
def test_gaps_far_beyond_the_range_of_exp_agree_with_enumeration(bound):
    log_w = torch.tensor([0.0, -1.0, -900.0, -900.5, -5e4, -1e6, -1e6, -3e6, -4e6, -5e6, -6e6, -7e6, -8e6, -9e6])
    log_w = log_w.double().unsqueeze(1).requires_grad_()
    is_jackknife = isinstance(bound, iw.Jackknife)
    value = jackknife(log_w, bound.order) if is_jackknife else subset_average(log_w, bound.size)
    (c,) = torch.autograd.grad(value.sum(), log_w)
    torch.testing.assert_close(bound(log_w.detach()), value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(bound.differentiate(log_w.detach()).gradient, c, rtol=1e-10, atol=1e-10)


def test_complete_u_statistic_of_32_of_64_samples_lies_between_its_neighbours():
    log_w = torch.randn(64, 4, dtype=torch.float64)
    lower, middle, upper = (iw.UStatistic(size)(log_w) for size in (31, 32, 33))
    assert (lower < middle).all()
    assert (middle < upper).all()
    c, c_minus_h = iw.UStatistic(32).differentiate(log_w, path=True)[1:]
    torch.testing.assert_close(c.sum(0), torch.ones(4, dtype=torch.float64), rtol=1e-13, atol=0)
    assert (c_minus_h < c).all()


def test_incomplete_u_statistic_is_the_average_over_its_blocks():
    log_w = torch.randn(7, 3, dtype=torch.float64)
    bound = iw.IncompleteUStatistic(3, permutations=5, seed=2)
    generator = np.random.default_rng(2)
    blocks = [torch.from_numpy(generator.permutation(7)[:6]).view(2, 3) for _ in range(5)]
    averages = [log_w[block].exp().mean(0).log() for pair in blocks for block in pair]
    torch.testing.assert_close(bound(log_w), torch.stack(averages).mean(0))


def test_incomplete_u_statistic_approaches_the_complete_one():
    log_w = torch.randn(6, 50, dtype=torch.float64)
    complete = iw.UStatistic(2)(log_w)
    few, many = ((iw.IncompleteUStatistic(2, r)(log_w) - complete).square().mean() for r in (4, 400))
    assert many < few / 25
