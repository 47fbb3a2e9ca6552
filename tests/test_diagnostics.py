"""Effective sample size and Pareto shapes of log-weights."""

import math

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
