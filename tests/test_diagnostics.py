"""Effective sample size and Pareto shapes of log-weights."""

import math

import numpy as np
import pytest
import torch

import iwbounds as iw


def test_ess_of_equal_weights_is_their_number_and_of_one_is_one():
    log_w = torch.tensor([[0.0, 0.0, -1e4], [0.0, -torch.inf, 1e4], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(iw.effective_sample_size(log_w), torch.tensor([3.0, 2.0, 1.0]))


def test_ess_of_a_dead_datum_is_zero():
    assert iw.effective_sample_size(torch.full((5,), -torch.inf)) == 0


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_pareto_shape_is_recovered(shape):
    """w = U^(-shape) is Pareto with that shape. K = 20000: the estimate's standard error is below 0.07."""
    u = torch.rand(20_000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = iw.pareto_k(-shape * u.log())
    assert found.mean().item() == pytest.approx(shape, abs=0.06)


def test_pareto_shape_does_not_depend_on_scale_or_batch():
    log_w = torch.randn(500, 6, dtype=torch.float64)
    found = iw.pareto_k(log_w)
    torch.testing.assert_close(iw.pareto_k(log_w + 300.0), found, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.stack([iw.pareto_k(column) for column in log_w.T]), found)


def test_pareto_shape_of_hopeless_input():
    assert iw.pareto_k(torch.zeros(24, 2)).isnan().all()
    assert iw.pareto_k(torch.zeros(100)) == -math.inf
    dead = torch.full((100,), -torch.inf)
    dead[0] = 0.0
    assert iw.pareto_k(dead).isnan()
    broken = torch.randn(100)
    broken[7] = torch.nan
    assert iw.pareto_k(broken).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("equal", [20, 30, 100])
def test_pareto_shape_of_an_equal_tail_is_minus_infinity(equal, dtype):
    """K = 100 has a tail of 20: equal to each other, whether or not what lies below is."""
    log_w = torch.randn(100, dtype=dtype)
    log_w[log_w.argsort()[-equal:]] = 4.0
    assert iw.pareto_k(log_w) == -math.inf


def _pareto_shape_of_the_paper(log_w):
    """PSIS written out in numpy, one loop per grid point: Zhang and Stephens (2009), section 4, and Vehtari et al.,
    appendix C: the shape is shrunk towards 0.5 by ten observations."""
    x = np.sort(np.exp(log_w - log_w.max()))
    size = min(len(x) // 5, math.ceil(3 * math.sqrt(len(x))))
    tail = x[-size:] - x[-size - 1]
    grid = 30 + int(math.sqrt(size))
    theta, log_likelihood = [], []
    for j in range(1, grid + 1):
        theta.append(1 / tail[-1] + (1 - math.sqrt(grid / (j - 0.5))) / (3 * tail[int(size / 4 + 0.5) - 1]))
        shape = np.mean(np.log1p(-theta[-1] * tail))
        log_likelihood.append(size * (math.log(-theta[-1] / shape) - shape - 1))
    weights = [1 / sum(math.exp(other - own) for other in log_likelihood) for own in log_likelihood]
    best = sum(w * t for w, t in zip(weights, theta, strict=True))
    return (size * np.mean(np.log1p(-best * tail)) + 10 * 0.5) / (size + 10)


@pytest.mark.parametrize("count", [25, 40, 100, 1000])
def test_pareto_shape_is_that_of_the_paper_prior_included(count):
    """At K = 25 the tail has 5 weights, and the prior of 10 observations is two thirds of the estimate."""
    log_w = 1.5 * torch.randn(count, 4, dtype=torch.float64)
    expected = [_pareto_shape_of_the_paper(column.numpy()) for column in log_w.T]
    torch.testing.assert_close(iw.pareto_k(log_w), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
