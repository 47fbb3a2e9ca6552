"""Drawing until the evidence is certified."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

import iwbounds as iw


def problem(count=200, scale=1.0):
    """z ~ N(0, 1), x | z ~ N(z, 1): log p(x) = log N(x; 0, 2)."""
    x = torch.linspace(-2, 2, count, dtype=torch.float64)

    def log_joint(z):
        return Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)

    return log_joint, Normal(x / 2, scale), Normal(0.0, math.sqrt(2)).log_prob(x)


def dependent(proposal):
    proposal = iw.Proposal(proposal.sample, proposal.log_prob, reparameterized=False)
    object.__setattr__(proposal, "independent", False)
    return proposal


def test_stops_when_every_datum_is_that_tight_and_covers_the_truth():
    """Each of 200 data violates with a probability of at most 0.01: more than 9 together, with one below 1e-4."""
    log_joint, q, truth = problem()
    result = iw.certify(log_joint, q, tolerance=0.1)
    assert result.reached
    assert (result.gap < 0.1).all()
    assert result.num_samples < 20_000
    assert (result.lower > truth).sum() <= 9
    assert str(result).endswith("reached")
    # Standard errors of a log evidence at 0.1 certified are below 0.04.
    assert (result.log_evidence - truth).abs().max() < 0.2


def test_a_tighter_tolerance_takes_more_samples():
    log_joint, q, _ = problem(1)
    counts = [iw.certify(log_joint, q, tolerance=t).num_samples for t in (0.5, 0.1, 0.03)]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]


def test_gives_up_where_it_must_and_says_so_and_is_still_valid():
    log_joint, q, truth = problem(3, scale=0.3)  # too narrow: infinite variance
    result = iw.certify(log_joint, q, tolerance=1e-3, max_samples=777)
    assert not result.reached
    assert result.num_samples == 777
    assert "gave up: gap" in str(result)
    assert (result.lower < truth).all()


def test_a_datum_that_nothing_explains_is_never_reached():
    q = Normal(torch.zeros(2), 1.0)
    floor = torch.tensor([0.0, -torch.inf])
    result = iw.certify(lambda z: q.log_prob(z) + floor, q, max_samples=200)
    assert not result.reached
    assert result.lower[1] == -torch.inf
    assert result.gap[1] == torch.inf


def test_chunks_are_only_memory():
    log_joint, q, _ = problem(3)
    sizes = []

    def watched(z):
        sizes.append(len(z))
        return log_joint(z)

    result = iw.certify(watched, q, chunk_size=64, max_samples=1000, tolerance=1e-9)
    assert sum(sizes) == result.num_samples == 1000
    assert max(sizes) == 64


def test_refuses_what_would_make_it_void():
    log_joint, q, _ = problem(2)
    with pytest.raises(ValueError, match="independent=False, and the certificate would be void"):
        iw.certify(log_joint, dependent(q))
    with pytest.raises(ValueError, match="Nothing can be certified"):
        iw.certify(lambda z: z * math.nan, q)
    for wrong in ({"tolerance": 0.0}, {"max_samples": 0}, {"chunk_size": 0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            iw.certify(log_joint, q, **wrong)


def test_global_latents_and_progress(capsys):
    q = Independent(Normal(torch.zeros(3), 1.0), 1)
    result = iw.certify(lambda z: q.log_prob(z) - 7.0, q, progress=True)
    assert result.log_evidence.item() == pytest.approx(-7.0, abs=1e-6)
    assert result.reached
    assert "certify" in capsys.readouterr().err
