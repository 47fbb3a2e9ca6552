"""The sandwich: truth inside, errors and certificates that mean what they say, the bridge at its fixed point."""

import math

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.evidence.sandwich import sandwich
from tests.oracles.conjugate import NormalGamma

RUNS = 500


def shifted(runs=RUNS, shift=0.5):
    """log w ~ N(∓s²/2, s²) at draws of q and of the posterior; log p(x) = −3."""
    prior = Normal(torch.zeros(runs, dtype=torch.float64), 1.0)
    return (lambda z: prior.log_prob(z) - 3.0), Normal(torch.full((runs,), shift, dtype=torch.float64), 1.0), prior


def autoregressive(count, chains, runs, correlation, seed):
    """Stationary N(0, 1) chains, one after the other along axis 0."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(chains, runs, generator=generator, dtype=torch.float64)
    states = [state]
    for _ in range(count // chains - 1):
        noise = torch.randn(chains, runs, generator=generator, dtype=torch.float64)
        states.append(correlation * states[-1] + math.sqrt(1 - correlation**2) * noise)
    return torch.stack(states, 1).flatten(0, 1)


def test_a_conjugate_regression_lies_inside_within_a_hundredth_of_a_nat():
    """Latents in a dict, exact draws: both certificates hold and the sides are 0.01 apart."""
    model = NormalGamma.synthetic()
    torch.manual_seed(0)
    draws = model.proposal().sample((50_000,))
    found = sandwich(model.log_joint, model.proposal(1.1), draws, 50_000, exact=True, chunk_size=20_000)
    truth = model.log_evidence()
    assert found.lower.certificate < truth < found.upper.certificate
    assert found.width.abs() < 0.01
    for side in (found.lower, found.upper, found.bridge):
        assert abs(side.value - truth) < 5 * side.standard_error
    assert found.upper.certificate - found.lower.certificate < 0.1


def test_the_exact_posterior_as_proposal_gives_the_evidence_with_one_draw():
    model = NormalGamma.synthetic()
    found = sandwich(model.log_joint, model.proposal(), model.proposal().sample((2,)), num_samples=2, exact=True)
    for side in (found.lower, found.upper, found.bridge):
        torch.testing.assert_close(side.value.item(), model.log_evidence(), rtol=0, atol=1e-9)


def test_standard_errors_are_calibrated():
    """500 runs at once, as data: the sd of their z-scores is known to 3 %, so ±0.1 fails 1 time in 700 per side."""
    log_joint, q, posterior = shifted()
    torch.manual_seed(0)
    found = sandwich(log_joint, q, posterior.sample((2_000,)), 2_000, exact=True)
    for side in (found.lower, found.upper, found.bridge):
        z = (side.value + 3.0) / side.standard_error
        assert 0.9 < z.std() < 1.1
        assert abs(z.mean()) < 0.2


def test_batch_means_know_that_chain_draws_say_less():
    """Chains of correlation 0.6: an error that took them for independent would be too small by a factor of about 2.

    Batches of √600 states leave it some 5 % short; with 3 % of noise from 500 runs, 0.85 to 1.2 is the range.
    """
    log_joint, q, _ = shifted()
    draws = autoregressive(2_400, 4, RUNS, 0.6, seed=1)
    torch.manual_seed(1)
    found = sandwich(log_joint, q, draws, 1_000, chains=4)
    z = (found.upper.value + 3.0) / found.upper.standard_error
    assert 0.85 < z.std() < 1.2
    naive = sandwich(log_joint, q, draws, 2, exact=True).upper
    assert ((naive.value + 3.0) / naive.standard_error).std() > 1.5


def test_certificates_fail_no_more_often_than_they_say():
    """At 90 %, 500 runs a side: more than 70 failures has probability 0.002 if the level were used up; it is not."""
    log_joint, q, posterior = shifted(shift=1.0)
    torch.manual_seed(2)
    found = sandwich(log_joint, q, posterior.sample((300,)), 300, confidence=0.9, exact=True)
    assert int((found.lower.certificate > -3.0).sum()) <= 70
    assert int((found.upper.certificate < -3.0).sum()) <= 70
    assert (found.lower.certificate <= found.lower.value).all()
    assert (found.upper.certificate >= found.upper.value).all()


def test_chain_draws_are_not_certified_and_say_so():
    log_joint, q, posterior = shifted(runs=3)
    found = sandwich(log_joint, q, posterior.sample((100,)), 100)
    assert found.upper.certificate is None
    assert "uncertified: chain draws" in str(found)
    assert found.upper.direction is iw.Direction.UPPER
    assert (found.lower.direction, found.bridge.direction) == (iw.Direction.LOWER, iw.Direction.NONE)


def test_dependent_draws_of_the_proposal_are_not_certified(monkeypatch):
    log_joint, q, posterior = shifted(runs=3)
    dependent = iw.Proposal(q.rsample, q.log_prob)
    object.__setattr__(dependent, "independent", False)
    found = sandwich(log_joint, dependent, posterior.sample((100,)), 100, exact=True)
    assert found.lower.certificate is None
    assert found.lower.standard_error.isnan().all()
    assert found.upper.certificate is not None
    assert "independent=False" in str(found)


@pytest.mark.parametrize(("count", "posterior_count"), [(50, 50), (40, 200)])
def test_the_bridge_is_the_fixed_point_of_meng_and_wong(count, posterior_count):
    """One more step of their iteration, in plain numbers, changes nothing."""
    log_joint, q, posterior = shifted(runs=4, shift=1.0)
    draws = posterior.sample((posterior_count,))
    torch.manual_seed(3)
    found = sandwich(log_joint, q, draws, count)
    torch.manual_seed(3)
    z = torch.cat([q.sample((16,)), q.sample((count - 16,))])
    w, v = ((log_joint(y) - q.log_prob(y)).exp() for y in (z, draws))
    r, share = found.bridge.value.exp(), posterior_count / (posterior_count + count)
    step = (w / (share * w + (1 - share) * r)).mean(0) / (1 / (share * v + (1 - share) * r)).mean(0)
    torch.testing.assert_close(step, r, rtol=1e-9, atol=0)


def test_sets_of_draws_far_apart_and_shifted_by_thousands_of_nats_keep_their_bridge():
    """Log-weights of 1e4 ± 1e3, no overlap at all: finite, and moved by exactly the shift."""
    log_joint, q, posterior = shifted(runs=2, shift=45.0)
    draws = posterior.sample((20,))
    values = []
    for shift in (0.0, 1e4):
        torch.manual_seed(4)
        values.append(sandwich(lambda z, shift=shift: log_joint(z) + shift, q, draws, 20).bridge.value)
    assert values[0].isfinite().all()
    torch.testing.assert_close(values[1] - 1e4, values[0], rtol=0, atol=1e-7)


def test_chunks_change_nothing():
    log_joint, q, posterior = shifted(runs=3)
    draws = posterior.sample((101,))
    found = []
    for chunk_size in (None, 10):
        torch.manual_seed(5)
        found.append(sandwich(log_joint, q, draws, 200, exact=True, chunk_size=chunk_size))
    for name in ("lower", "upper", "bridge"):
        first, second = (getattr(result, name) for result in found)
        torch.testing.assert_close(first.value, second.value, rtol=1e-12, atol=0)
        torch.testing.assert_close(first.standard_error, second.standard_error, rtol=1e-12, atol=0)


def test_draws_outside_the_proposals_support_are_fine():
    """A uniform proposal inside the posterior: the learned harmonic mean's idea; exact in the limit."""
    posterior = Normal(torch.zeros(4, dtype=torch.float64), 1.0)

    def log_prob(z):
        return torch.where(z.abs() < 1, -math.log(2.0), -math.inf).double()

    q = iw.Proposal(lambda shape: 2 * torch.rand(*shape, 4, dtype=torch.float64) - 1, log_prob)
    torch.manual_seed(6)
    found = sandwich(posterior.log_prob, q, posterior.sample((20_000,)), 1_000, exact=True)
    # Four sides within 4.5 standard errors: 3e-5.
    assert (found.upper.value.abs() < 4.5 * found.upper.standard_error).all()
    assert (found.upper.certificate > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact": True, "chains": 2}, "got both"),
        ({"chains": 3}, "chains that divide the 10"),
        ({"chains": 10}, "2 or more each"),
        ({"num_samples": 1}, "num_samples >= 2"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"confidence": 1.0}, "confidence"),
    ],
    ids=str,
)
def test_mistakes_in_the_options(options, message):
    log_joint, q, posterior = shifted(runs=2)
    with pytest.raises(ValueError, match=message):
        sandwich(log_joint, q, posterior.sample((10,)), **options)


def test_mistakes_in_the_draws():
    log_joint, q, posterior = shifted(runs=2)
    draws = posterior.sample((10,))
    with pytest.raises(ValueError, match="at least 2 posterior samples"):
        sandwich(log_joint, q, draws[:1])
    with pytest.raises(ValueError, match="no draws of this posterior"):
        sandwich(lambda z: log_joint(z).masked_fill(z > 9, -math.inf), q, draws + 10 * (draws == draws.max()))
    with pytest.raises(ValueError, match="NaN"):
        sandwich(lambda z: log_joint(z) * math.nan, q, draws)
    other = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    with pytest.raises(ValueError, match="batch shape"):
        sandwich(lambda z: Normal(0.0, 1.0).log_prob(z), other, torch.zeros(10, 2, dtype=torch.float64))


def test_picture_shows_every_side():
    pytest.importorskip("matplotlib").use("Agg")
    log_joint, q, posterior = shifted(runs=3)
    figure = sandwich(log_joint, q, posterior.sample((100,)), 100, exact=True).plot()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert sum("certified" in label for label in labels) == 2
    assert sum("not a bound" in label for label in labels) == 1
