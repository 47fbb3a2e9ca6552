"""The jackknife's bias, by quadrature: E L_n = ∫ (e^{-t} − φ(t/n)^n) dt/t with φ the Laplace transform of a weight."""

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

import iwbounds as iw
from tests.oracles.subsets import coefficient

LOG_T = np.arange(-45.0, 45.0, 0.05)
HERMITE = tuple(part.copy() for part in np.polynomial.hermite_e.hermegauss(160))


def _expected_iwae(log_laplace, count):
    t = np.exp(LOG_T)
    return 0.05 * np.sum(np.exp(-t) - np.exp(count * log_laplace(t / count)))


def _log_laplace_logn(t, variance=0.25):
    """log w is N(−variance/2, variance), so that E w = 1."""
    nodes, weights = HERMITE
    w = np.exp(math.sqrt(variance) * nodes - variance / 2)
    return np.log(np.exp(-np.outer(t, w)) @ (weights / weights.sum()) + 1e-300)


def _log_laplace_exp(t):
    return -np.log1p(t)


def _bias(log_laplace, count, order):
    return sum(coefficient(count, order, j) * _expected_iwae(log_laplace, count - j) for j in range(order + 1))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_quadrature_agrees_with_the_closed_form(count):
    assert _expected_iwae(_log_laplace_exp, count) == pytest.approx(digamma(count) - math.log(count), abs=1e-13)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_bias_falls_as_one_power_of_the_samples_more_per_order(order):
    counts = np.array([12, 16, 24, 32])
    biases = [abs(_bias(_log_laplace_logn, count, order)) for count in counts]
    slope = np.polyfit(np.log(counts), np.log(biases), 1)[0]
    assert slope == pytest.approx(-(order + 1), abs=0.1)


@pytest.mark.parametrize(("order", "expected"), [(0, -6.380e-2), (1, 1.480e-3), (2, 1.043e-5)])
def test_bias_for_exponential_weights_at_eight_samples(order, expected):
    assert _bias(_log_laplace_exp, 8, order) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_implementation_has_this_expectation(order):
    """E of Jackknife(order) itself over three log-normal weights, on a three-dimensional grid."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    log_w = torch.from_numpy(0.5 * nodes - 0.125)
    grid = torch.stack(torch.meshgrid(log_w, log_w, log_w, indexing="ij"))
    share = torch.from_numpy(weights / weights.sum())
    expectation = torch.einsum("abc,a,b,c->", iw.Jackknife(order)(grid), share, share, share)
    assert expectation.item() == pytest.approx(_bias(_log_laplace_logn, 3, order), abs=1e-12)
