"""SUMO: its expectation over T, its frozen randomness, the distribution of T."""

import pytest
import torch

import iwbounds as iw

K = 7
OPTIONS = [{}, {"start": 3}, {"alpha": 3, "decay": 0.5}, {"start": 2, "alpha": 1, "decay": 0.7}]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def _probabilities(sumo):
    """P(T = 1), …, P(T = K − 1), the last one with all that is cut off."""
    survival = sumo.survival(K - 1)
    return survival - torch.cat([survival[1:], torch.zeros(1, dtype=torch.float64)])


@each_option
def test_expectation_over_the_stop_is_iwae_of_all_samples(options):
    sumo, log_w = iw.SUMO(**options), torch.randn(K, dtype=torch.float64)
    bounds = [sumo.stopped_at(torch.tensor(stop)) for stop in range(1, K)]
    value = sum(p * bound(log_w) for p, bound in zip(_probabilities(sumo), bounds, strict=True))
    c = sum(p * bound.differentiate(log_w).gradient for p, bound in zip(_probabilities(sumo), bounds, strict=True))
    torch.testing.assert_close(value, iw.IWAE()(log_w))
    torch.testing.assert_close(c, iw.IWAE().differentiate(log_w).gradient)


@each_option
def test_value_is_the_telescoping_sum_of_the_definition(options):
    sumo, log_w = iw.SUMO(**options), torch.randn(K, dtype=torch.float64)
    iwae = [None] + [iw.IWAE()(log_w[:k]) for k in range(1, K + 1)]
    for stop in range(sumo.start, K):
        steps = range(sumo.start, stop + 1)
        terms = [(iwae[k + 1] - iwae[k]) / sumo.survival(K)[k - 1] for k in steps]
        torch.testing.assert_close(sumo.stopped_at(torch.tensor(stop))(log_w), iwae[sumo.start] + sum(terms))


def test_published_truncation_is_harmonic_then_geometric():
    survival = iw.SUMO().survival(100)
    torch.testing.assert_close(survival[:79], 1 / torch.arange(1.0, 80.0, dtype=torch.float64))
    expected = 0.9 ** torch.arange(21.0, dtype=torch.float64) / 80
    torch.testing.assert_close(survival[79:], expected)


@each_option
def test_stops_follow_their_distribution(options):
    """400 000 draws: the frequency of T ≥ k is within 5 standard errors (false-fail rate below 1e-5; it sees an error
    of the probability of 0.004)."""
    sumo, count = iw.SUMO(**options), 400_000
    stops = sumo.draw_stops((count,), generator=torch.Generator().manual_seed(5))
    for k, expected in enumerate(sumo.survival(12).tolist(), 1):
        error = (expected * (1 - expected) / count) ** 0.5
        assert abs((stops >= k).double().mean().item() - expected) <= 5 * error


def test_frozen_value_and_gradient_share_their_stops():
    log_w = torch.randn(K, 200, dtype=torch.float64)
    frozen = iw.SUMO().frozen(log_w)
    leaf = log_w.clone().requires_grad_()
    (c,) = torch.autograd.grad(frozen(leaf).sum(), leaf)
    torch.testing.assert_close(frozen.differentiate(log_w).gradient, c)
    assert torch.equal(frozen(log_w), frozen(log_w))
    assert frozen.stops.shape == (200,)
    assert len(frozen.stops.unique()) > 3


def test_frozen_stops_do_not_look_at_the_weights():
    weights = [torch.zeros(K, 50), torch.full((K, 50), -torch.inf)]
    stops = []
    for log_w in weights:
        torch.manual_seed(4)
        stops.append(iw.SUMO().frozen(log_w).stops)
    assert torch.equal(*stops)


def test_later_start_and_slower_tail_reduce_the_variance_over_stops():
    log_w = torch.randn(60, 1, dtype=torch.float64).expand(60, 20_000)

    def variance(**options):
        sumo = iw.SUMO(**options)
        stops = sumo.draw_stops((20_000,), generator=torch.Generator().manual_seed(0))
        return sumo.stopped_at(stops)(log_w).var().item()

    assert variance(start=8) < 0.5 * variance()
    assert variance(alpha=80) < 0.5 * variance(alpha=5, decay=0.6)


def test_directions_say_what_is_bounded():
    assert iw.SUMO().direction is iw.Direction.LOWER
    assert iw.SUMO().frozen(torch.zeros(3, 2)).direction is iw.Direction.LOWER
    assert iw.SUMO().stopped_at(torch.tensor([1, 2])).direction is iw.Direction.NONE


def test_a_call_draws_its_own_stops_per_datum_and_batches_may_be_scalar():
    log_w = torch.randn(K, dtype=torch.float64)
    values = torch.stack([iw.SUMO()(log_w) for _ in range(50)])
    assert len(values.unique()) > 2
    assert values.shape == (50,)


def test_a_dead_first_sample_matters_only_where_its_coefficient_is_not_zero():
    log_w = torch.tensor([[-torch.inf, 0.0, 1.0], [-torch.inf, -torch.inf, 1.0]], dtype=torch.float64).mT
    value = iw.SUMO().stopped_at(torch.tensor([2, 2]))(log_w)
    two, three = iw.IWAE()(log_w[:2, 0]), iw.IWAE()(log_w[:, 0])
    torch.testing.assert_close(value[0], two + (three - two) * 2)
    assert value[1] == -torch.inf


@pytest.mark.parametrize("gradient", [iw.DReG(), iw.VIMCO(), iw.ScoreFunction(), None], ids=repr)
def test_value_and_gradient_are_of_one_draw_of_the_stops(gradient):
    """Of every datum, the stop that has this gradient must have this value: each stop has its own."""
    torch.manual_seed(1)
    log_w = torch.randn(8, 50, dtype=torch.float64)
    if gradient is None:
        value, c, _ = iw.SUMO().differentiate(log_w)
    else:
        q = torch.distributions.Uniform(torch.zeros(50, dtype=torch.float64), 1.0)
        at = torch.full_like(log_w, 0.5)
        estimate = iw.estimate(lambda _: log_w, q, iw.SUMO(), gradient, samples=at)
        value, c = estimate.value, estimate.coefficients.model
    stopped = [iw.SUMO().stopped_at(torch.full((50,), stop)).differentiate(log_w) for stop in range(1, 9)]
    same = torch.stack([(c - each.gradient).abs().amax(0) < 1e-10 for each in stopped])
    expected = (same * torch.stack([each.value for each in stopped])).sum(0) / same.sum(0)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    assert len(value.unique()) > 40
    assert same.any(1).sum() > 2, "several stops were drawn"
