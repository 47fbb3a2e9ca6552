"""Self-normalised expectations, resampling and Pareto smoothing of given weights."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from iwbounds.posterior import pareto_smoothed, resample_indices, self_normalized_mean, take_samples


def test_mean_and_error_are_those_of_the_formula_per_datum():
    generator = torch.Generator().manual_seed(0)
    log_w = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    f = torch.randn(50, 3, 2, dtype=torch.float64, generator=generator)
    found = self_normalized_mean(log_w + 700.0, {"f": f, "g": (f > 0,)})
    for datum in range(3):
        w = (log_w[:, datum].exp() / log_w[:, datum].exp().sum()).unsqueeze(1)
        mean = (w * f[:, datum]).sum(0)
        torch.testing.assert_close(found.mean["f"][datum], mean)
        error = (w**2 * (f[:, datum] - mean) ** 2).sum(0).sqrt()
        torch.testing.assert_close(found.standard_error["f"][datum], error)
        torch.testing.assert_close(found.mean["g"][0][datum], (w * (f[:, datum] > 0)).sum(0))


def test_samples_of_weight_zero_do_not_count_and_a_dead_datum_is_unknown():
    log_w = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf], [0.0, -math.inf]])
    f = torch.tensor([[1.0, 1.0], [math.nan, 1.0], [3.0, 1.0]])
    found = self_normalized_mean(log_w, f)
    assert found.mean[0] == 2.0
    assert found.mean[1].isnan()
    assert found.standard_error[1].isnan()


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected one value per sample and datum, of shape \(5, 2\)"):
        self_normalized_mean(torch.zeros(5, 2), torch.zeros(5))


def test_resampling_has_the_probabilities_of_the_weights():
    """Per datum, 40 000 draws over 4 samples, χ² with 3 degrees of freedom: false-fail rate 1e-4 each; sees 1 %."""
    log_w = torch.tensor([[0.0, -3.0], [1.0, -math.inf], [-1.0, 0.0], [-math.inf, 500.0]])
    log_w[:, 1] -= torch.tensor([0.0, 0.0, 0.0, 499.0])
    torch.manual_seed(0)
    index = resample_indices(log_w, 40_000)
    for datum in range(2):
        p = log_w[:, datum].double().softmax(0).numpy()
        counts = np.bincount(index[:, datum].numpy(), minlength=4)
        assert (counts[p == 0] == 0).all()
        assert stats.chisquare(counts[p > 0], 40_000 * p[p > 0]).pvalue > 1e-4


def test_samples_are_taken_for_each_datum_and_in_every_part():
    z = torch.arange(24.0).reshape(4, 3, 2)
    index = torch.tensor([[0, 1, 2], [3, 3, 0]])
    found = take_samples((z, {"a": z[..., 0].long()}), index)
    for j in range(2):
        for i in range(3):
            assert found[0][j, i].equal(z[index[j, i], i])
            assert found[1]["a"][j, i] == z[index[j, i], i, 0]
    with pytest.raises(ValueError, match="batch shape"):
        take_samples(torch.zeros(4, 1), index)


def test_resampling_refuses_a_datum_without_weights():
    with pytest.raises(ValueError, match="1 of 2"):
        resample_indices(torch.tensor([[0.0, -math.inf], [0.0, -math.inf]]), 5)
    with pytest.raises(ValueError, match="at least 1"):
        resample_indices(torch.zeros(3), 0)


@pytest.mark.parametrize("shape", [0.3, 0.8])
def test_smoothed_tail_is_the_fitted_distributions(shape):
    """A Pareto distribution's own quantiles are left nearly as they are; the order and the body are kept."""
    p = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    log_w = -shape * torch.log1p(-p)
    mixed = log_w[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    smoothed = pareto_smoothed(mixed)
    tail = mixed.argsort()[-100:]
    assert smoothed.argsort().equal(mixed.argsort()) or (smoothed[tail] == smoothed.max()).any()
    assert (smoothed <= mixed.max() + 1e-12).all()
    body = mixed.argsort()[:1800]
    assert smoothed[body].equal(mixed[body])
    torch.testing.assert_close(smoothed[tail].exp().mean(), mixed[tail].exp().mean(), rtol=0.05, atol=0)


def test_smoothing_lessens_the_error_of_an_expectation():
    """Infinite-variance weights: mean square error over 400 runs below the raw weights' (about half of it)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 400, dtype=torch.float64, generator=generator)
    posterior = torch.distributions.Normal(0.0, 1.6)
    log_w = posterior.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)
    raw, smooth = (self_normalized_mean(w, z).mean for w in (log_w, pareto_smoothed(log_w)))
    assert smooth.square().mean() < 0.9 * raw.square().mean()


def test_nothing_is_smoothed_without_a_tail():
    for log_w in (torch.randn(24), torch.zeros(100), torch.cat([torch.zeros(3), torch.full((97,), -math.inf)])):
        assert pareto_smoothed(log_w).equal(log_w)


def test_smoothing_is_shift_invariant_and_per_datum():
    log_w = 3 * torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = pareto_smoothed(log_w)
    torch.testing.assert_close(pareto_smoothed(log_w - 1000) + 1000, found, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.stack([pareto_smoothed(column) for column in log_w.T], 1), found)
