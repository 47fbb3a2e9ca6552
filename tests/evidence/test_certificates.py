"""The betting certificate: it covers under optional stopping whatever the tail, and costs what it is said to cost."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import iwbounds as iw
from iwbounds.certificates import BettingCertificate, mean_confidence_bound
from tests.oracles.known_weights import exponential_log_weights, lognormal_log_weights

RUNS, LENGTH = 1000, 1000
STAKES = 2.0 ** -torch.arange(1, 13, dtype=torch.float64)


def pareto_log_weights(shape, generator):
    """w = U^(-2/3)/3: a Pareto tail of index 1.5, so that the mean is 1 and the variance infinite."""
    u = torch.rand(shape, dtype=torch.float64, generator=generator)
    return -u.log() / 1.5 - math.log(3.0)


MODELS = {
    "LOGN(.25)": lambda shape, generator: lognormal_log_weights(0.25, shape, generator),
    "LOGN(1)": lambda shape, generator: lognormal_log_weights(1.0, shape, generator),
    "LOGN(4)": lambda shape, generator: lognormal_log_weights(4.0, shape, generator),
    "EXP": exponential_log_weights,
    "Pareto(1.5)": pareto_log_weights,
}


def draw(name, shape, seed=0):
    return MODELS[name](shape, torch.Generator().manual_seed(seed))


def log_wealth(log_w, log_p):
    """math's definition, product by product: ``(K, *batch)`` after each of the weights."""
    factors = [torch.log1p(stake * torch.expm1(log_w - log_p)).cumsum(0) for stake in STAKES]
    return torch.stack(factors).logsumexp(0) - math.log(len(STAKES))


@pytest.mark.parametrize("name", MODELS)
def test_covers_in_990_of_1000_runs_though_an_adversary_may_stop_at_any_sample(name):
    """A violation has a probability of at most 0.01, here about 0.003: more than 10 of 1000 then has one of 3e-4, were
    the seed not fixed. A rate of 0.02 would be found with probability 0.99."""
    log_w = draw(name, (LENGTH, RUNS))
    violated = (log_wealth(log_w, 0.0) >= math.log(100)).any(0)
    assert violated.sum() <= 10
    # The same by the code itself, at ten looks: it never violates where the wealth at the truth stayed below 100.
    certificate = BettingCertificate(0.99)
    looks = [2**i for i in range(10)] + [LENGTH]
    for start, stop in zip([0, *looks], looks, strict=False):
        certificate.add(log_w[start:stop])
        lower = certificate.lower()
    assert certificate.count == LENGTH
    assert not ((lower > 0) & ~violated).any()


def test_weights_with_too_large_a_mean_are_found_out():
    """What the coverage test could miss: weights 1.5 times too large violate in nearly every run."""
    log_w = draw("LOGN(1)", (LENGTH, 100)) + math.log(1.5)
    assert (iw.lower_confidence_bound(log_w) > 0).double().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "count", "loss"), [("LOGN(.25)", 1000, 0.07), ("LOGN(1)", 1000, 0.15), ("LOGN(4)", 10_000, 0.21)]
)
def test_costs_little_where_the_weights_are_good(name, count, loss):
    """Means of 100 runs have standard errors of about 0.002, 0.004 and 0.01: 3 of them are to spare."""
    log_w = draw(name, (count, 100), seed=1)
    gap = iw.IWAE()(log_w) - iw.lower_confidence_bound(log_w)
    assert 0 < gap.mean() < loss


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.sampled_from([1e-3, 1.0, 30.0]), st.sampled_from([0.5, 0.99, 0.9999]), st.integers(0, 10**6)
)
def test_is_where_the_wealth_is_one_over_delta(count, scale, confidence, seed):
    generator = torch.Generator().manual_seed(seed)
    log_w = scale * torch.randn(count, 3, dtype=torch.float64, generator=generator)
    log_w[torch.rand(count, 3, generator=generator) < 0.2] = -torch.inf
    lower = iw.lower_confidence_bound(log_w, confidence)
    alive = log_w.amax(0) > -torch.inf
    assert (lower[~alive] == -torch.inf).all()
    wealth = log_wealth(log_w[:, alive], lower[alive])[-1]
    torch.testing.assert_close(wealth, torch.full_like(wealth, -math.log(1 - confidence)), rtol=0, atol=1e-6)
    assert (wealth >= -math.log(1 - confidence) - 1e-9).all(), "rounding must not make it too large"
    assert (lower <= iw.IWAE()(log_w) + 1e-12).all()


def test_does_not_depend_on_the_order_or_the_parts_and_follows_a_shift():
    log_w = draw("LOGN(4)", (500, 4))
    lower = iw.lower_confidence_bound(log_w)
    torch.testing.assert_close(iw.lower_confidence_bound(log_w.flip(0)), lower, rtol=0, atol=1e-9)
    torch.testing.assert_close(iw.lower_confidence_bound(log_w - 1e5), lower - 1e5, rtol=0, atol=1e-6)
    certificate = BettingCertificate()
    for part in log_w.split([1, 99, 400]):
        certificate.add(part)
    torch.testing.assert_close(certificate.lower(), lower, rtol=0, atol=1e-9)
    torch.testing.assert_close(certificate.log_evidence(), iw.IWAE()(log_w))
    torch.testing.assert_close(torch.stack([iw.lower_confidence_bound(w) for w in log_w.T]), lower, rtol=0, atol=1e-9)


def test_one_weight_has_a_closed_form():
    """mean λ (w/p − 1) = 1/δ − 1."""
    expected = math.log(STAKES.mean() / (100 - 1 + STAKES.mean()))
    assert iw.lower_confidence_bound(torch.zeros(1)).item() == pytest.approx(expected, abs=1e-6)


def test_one_living_weight_among_many_dead_ones_still_certifies():
    log_w = torch.full((10_000,), -torch.inf)
    log_w[77] = 5.0
    lower = iw.lower_confidence_bound(log_w)
    assert log_wealth(log_w.double(), lower)[-1].item() == pytest.approx(math.log(100), abs=1e-6)


def test_looking_again_never_takes_back():
    log_w = draw("Pareto(1.5)", (400, 50))
    certificate, before = BettingCertificate(), torch.full((50,), -torch.inf)
    for part in log_w.split(40):
        certificate.add(part)
        assert (certificate.lower() >= before).all()
        before = certificate.lower()
    assert (before >= iw.lower_confidence_bound(log_w) - 1e-12).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_certified_from_broken_weights(bad):
    log_w = torch.zeros(10, 2)
    log_w[3, 1] = bad
    with pytest.raises(ValueError, match=r"got 1 of 20 that are not.*Nothing can be certified"):
        iw.lower_confidence_bound(log_w)
    with pytest.raises(ValueError, match="Nothing can be certified"):
        mean_confidence_bound(log_w)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\), such as 0.99; got 99"):
        iw.lower_confidence_bound(torch.zeros(3), 99)
    with pytest.raises(TypeError, match=r"floating-point tensor"):
        iw.lower_confidence_bound(torch.zeros(3, dtype=torch.int64))
    certificate = BettingCertificate()
    certificate.add(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"batch shape \(2,\), as before; got \(4,\)"):
        certificate.add(torch.zeros(3, 4))


def test_the_mean_bound_is_markovs_and_covers():
    """LOGN(1) with one weight each of 5 data: the sum of logs is N(-2.5, 5), above log 10 with probability 0.0159.

    Of 2000 runs 32 violate a bound of 90 %, within 4 standard errors of 5.6: false-fail rate 6e-5; detects 0.03.
    """
    log_w = draw("LOGN(1)", (2000, 5))
    lower = torch.tensor([mean_confidence_bound(row, 0.9) for row in log_w])
    assert lower[0].item() == pytest.approx(log_w[0].mean().item() - math.log(10) / 5)
    assert 31.8 - 4 * 5.6 < (lower > 0).sum() < 31.8 + 4 * 5.6
