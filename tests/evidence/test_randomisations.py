"""Draws that depend on each other: refused without independent randomisations, certified by them, errors calibrated."""

import math

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw
from tests.evidence.test_evaluate import DATA, TRUTH, assert_same, evaluate, model


def quasi(x, scale=0.9):
    log_joint, q = model(x, scale)
    return log_joint, iw.QuasiRandom(q)


def antithetic(x, scale=0.9):
    """z and its mirror image, in one call: the second half is the first one's."""

    def sample(shape):
        half = torch.randn(shape[0] // 2, len(x), dtype=x.dtype)
        return x / 2 + scale * torch.cat([half, -half])

    return model(x)[0], iw.Proposal(sample, Normal(x / 2, scale).log_prob, independent=False)


def stratified(x):
    """Three parts of unequal probability: 50 samples, the usual block, would not be divided by them."""
    parts = Normal(torch.stack([x / 2 - 0.5, x / 2, x / 2 + 0.5], -1), 0.8)
    return model(x)[0], iw.StratifiedMixture(torch.tensor([0.2, 1.0, -0.3], dtype=x.dtype), parts)


def shared_components(x):
    mixing = Normal((x / 2).expand(len(x)), 0.5)
    return model(x)[0], iw.HierarchicalProposal(mixing, lambda psi: Normal(psi, 0.75), num_aux=20, shared=True)


MODELS = {"quasi": quasi, "antithetic": antithetic, "stratified": stratified, "shared": shared_components}
each = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@each
def test_certify_refuses_dependent_draws_and_bets_on_randomisations(model):
    """40 data violate with a probability of at most 0.01 each: more than 5 together, with one of 1e-5."""
    torch.manual_seed(0)
    pair = model(DATA[:40])
    with pytest.raises(ValueError, match=r"independent=False, and the certificate would be void.*samples_per_random"):
        iw.certify(*pair)
    found = iw.certify(*pair, tolerance=0.1, samples_per_randomisation=24, max_samples=24_000)
    assert found.reached
    assert found.num_samples % 24 == 0
    assert (found.lower > TRUTH[:40]).sum() <= 5
    assert (found.lower <= found.log_evidence).all()


def test_even_draws_certify_from_fewer_samples():
    """A randomisation of 16 quasi-random points knows more than 16 independent ones."""
    torch.manual_seed(1)
    log_joint, q = model(DATA[:20], 3.0)
    settings = {"tolerance": 0.1, "max_samples": 200_000, "samples_per_randomisation": 16}
    counts = [iw.certify(log_joint, p, **settings).num_samples for p in (q, iw.QuasiRandom(q))]
    assert counts[1] < 0.8 * counts[0]  # one look earlier would be 1/1.2


@each
def test_evaluate_certifies_nothing_of_them_unless_their_randomisations_are_known(model):
    with_none = evaluate(DATA[:40], model, num_samples=48)
    assert with_none.certified_nll is None
    assert "depend on each other" in with_none.reasons_against_certifying[0]
    assert math.isnan(with_none.sampling_error)
    report = evaluate(DATA[:40], model, num_samples=480, samples_per_randomisation=24)
    assert report.certified_nll == pytest.approx(report.nll + math.log(100) / 40)
    assert report.num_samples == 480
    assert report.weights.count == 20
    assert report.ess.max() <= 20 + 1e-9
    assert "20 randomisations of 24 samples each" in str(report)
    assert abs(report.nll + TRUTH[:40].mean()) < 5 * report.sampling_error + 1e-3


@each
def test_errors_are_calibrated(model):
    """500 data of 60 randomisations: the sd of their z-scores is known to 3 %, so ±0.12 fails 1 time in 10 000."""
    x = torch.linspace(-2, 2, 500, dtype=torch.float64)
    report = evaluate(x, model, num_samples=24 * 60, samples_per_randomisation=24)
    z = (report.log_evidence - Normal(0.0 * x, math.sqrt(2)).log_prob(x)) / (1 / report.ess - 1 / 60).sqrt()
    assert 0.88 < z.std() < 1.12
    assert abs(z.mean()) < 0.2
    assert report.sampling_error == pytest.approx((1 / report.ess - 1 / 60).sum().sqrt().item() / 500)


def test_randomisations_merge_chunk_and_resume_to_the_same_report(tmp_path):
    options = {"num_samples": 640, "samples_per_randomisation": 64}
    whole = evaluate(DATA[:30], quasi, **options)
    assert_same(evaluate(DATA[:30], quasi, chunk_size=7, **options), whole)
    first = evaluate(DATA[:30], quasi, **options | {"num_samples": 320})
    second = evaluate(DATA[:30], quasi, **options | {"num_samples": 320}, first_sample=320)
    assert_same(second + first, whole)
    path = tmp_path / "state.pt"
    evaluate(DATA[:30], quasi, state_file=path, **options)
    assert_same(iw.EvidenceReport.load(path), whole)
    with pytest.raises(ValueError, match="of another samples_per_randomisation"):
        evaluate(DATA[:30], quasi, state_file=path, num_samples=640, samples_per_randomisation=32)
    with pytest.raises(ValueError, match="one samples_per_randomisation"):
        whole + evaluate(DATA[:30], quasi, num_samples=640, samples_per_randomisation=32, seed=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_randomisation": 7}, "Take 301"),
        ({"samples_per_randomisation": 0}, "whole number"),
        ({"samples_per_randomisation": 50, "first_sample": 30}, "first_sample to be a multiple"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(DATA[:20], quasi, **options)
    with pytest.raises(ValueError, match="one randomisation of 500"):
        iw.certify(*quasi(DATA[:2]), max_samples=100, samples_per_randomisation=500)


@pytest.mark.parametrize("model", [lambda x: quasi(x, 0.75), stratified], ids=["quasi", "stratified"])
def test_the_lower_side_of_a_sandwich_has_an_error_and_a_certificate_from_randomisations(model):
    """500 runs at once: the sd of z-scores is known to 3 %."""
    torch.manual_seed(2)
    x = torch.full((500,), 0.7, dtype=torch.float64)
    truth = Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    draws = Normal(x / 2, math.sqrt(0.5)).sample((1_000,))
    found = iw.sandwich(*model(x), draws, 24 * 60, exact=True, samples_per_randomisation=24)
    for side in (found.lower, found.upper, found.bridge):
        z = (side.value - truth) / side.standard_error
        assert 0.9 < z.std() < 1.1
        assert abs(z.mean()) < 0.2
    assert ((found.lower.certificate > truth).double().mean()) < 0.03
    with pytest.raises(ValueError, match="Take 48"):
        iw.sandwich(*model(x), draws, 30, samples_per_randomisation=24)


def test_umlmc_draws_a_level_for_every_datum_and_is_exact_on_average():
    """3000 data with one truth: the mean within 4.5 standard errors of some 0.01 nats."""
    x = torch.full((3_000,), 1.5, dtype=torch.float64)
    report = evaluate(x, lambda x: model(x, 1.0), bound=iw.UMLMC(2))
    truth = Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x[0])
    error = report.log_evidence.std() / 3_000**0.5
    assert abs(report.log_evidence.mean() - truth) < 4.5 * error
    assert error < 0.01
    # One level for a batch of 100 would give its data one and the same weight 1/p, hence batch means that differ.
    between = report.log_evidence.reshape(30, 100).mean(1).std()
    assert between < 1.5 * report.log_evidence.std() / 10
    assert report.certified_nll is None
    assert "is not a lower bound (direction exact)" in report.reasons_against_certifying[0]
    assert "4 samples or more each" in str(report)
    assert "random level" in evaluate(DATA[:20], bound=iw.UMLMC(2, max_level=3)).reasons_against_certifying[0]
    with pytest.raises(ValueError, match="exact for independent samples"):
        evaluate(DATA[:20], quasi, bound=iw.UMLMC(2))


def test_a_latent_that_the_data_share_is_seen_beside_those_that_they_do_not():
    def half_shared(x):
        def sample(shape):
            common = torch.randn(*shape, 1, dtype=x.dtype).expand(*shape, len(x))
            return {"all": common, "own": torch.randn(*shape, len(x), dtype=x.dtype)}

        def log_prob(z):
            return Normal(0.0, 1.0).log_prob(z["all"]) + Normal(0.0, 1.0).log_prob(z["own"])

        return lambda z: log_prob(z) + Normal(z["own"], 1.0).log_prob(x), iw.Proposal(sample, log_prob)

    assert "share their draws" in evaluate(DATA[:20], half_shared).reasons_against_certifying[0]
