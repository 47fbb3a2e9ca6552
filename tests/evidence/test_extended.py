"""Proposals of more than z (hierarchies, strata, quasi-random draws): both sides, the bridge and expectations hold."""

import math

import pytest
import torch
from torch.distributions import Categorical, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform

import iwbounds as iw
from iwbounds.evidence.weighted import Weighted
from iwbounds.proposals import ExtendedProposal
from tests.oracles.linear_gaussian import LinearHierarchy

RUNS = 500
MODEL = LinearHierarchy()
LOGITS = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)


def components(runs):
    """Three that together cover the posterior, so that 1/w has a variance."""
    means, scales = torch.tensor([-0.3, 0.4, 1.0]).double(), torch.tensor([0.5, 0.7, 0.5]).double()
    return Normal(means.expand(runs, 3), scales.expand(runs, 3))


def hierarchy(reverse, num_aux, conditional=MODEL.conditional):
    def make(runs):
        return iw.HierarchicalProposal(MODEL.mixing((runs,)), conditional, reverse, num_aux)

    return make


PROPOSALS = {
    "iwhvi": hierarchy(MODEL.reverse, 2),
    "hvm": hierarchy(MODEL.reverse, 0),
    # Components wider than the model's own: with those, the weights' fourth moment is infinite, and no error is right.
    "sivi": hierarchy(None, 10, lambda psi: Normal(0.4 * psi + 0.2, 0.8)),
    "stratified": lambda runs: iw.StratifiedMixture(LOGITS, components(runs)),
    "quasi-random": lambda runs: iw.QuasiRandom(Normal(torch.full((runs,), 0.3).double(), 0.7)),
}


def sandwich(make, runs, count=900, posterior_count=1_000, **options):
    draws = MODEL.posterior().sample((posterior_count, runs))
    return iw.sandwich(MODEL.log_joint, make(runs), draws, count, exact=True, **options)


def scores(side):
    return (side.value.detach() - MODEL.log_evidence()) / side.standard_error


@pytest.mark.slow
@pytest.mark.parametrize("make", PROPOSALS.values(), ids=PROPOSALS)
def test_both_sides_and_the_bridge_are_right_and_their_errors_calibrated(make):
    """500 runs at once: the sd of z-scores is known to 3 %, their mean to 0.045, so 1 in 700 and 1 in 2e4 fail."""
    torch.manual_seed(0)
    found = sandwich(make, RUNS)
    independent = found.lower.certificate is not None
    for side in (found.lower, found.upper, found.bridge) if independent else (found.upper,):
        z = scores(side)
        assert 0.9 < z.std() < 1.1
        assert abs(z.mean()) < 0.2
    # Dependent draws have less variance than the formula says, and no error; the mean is right all the same.
    for side in (found.lower, found.bridge):
        error = side.value.std() / RUNS**0.5
        assert abs(side.value.mean() - MODEL.log_evidence()) < 4.5 * error + 2e-4
    assert (found.upper.certificate > MODEL.log_evidence()).double().mean() > 0.97


def test_the_bridge_of_unequal_strata_needs_the_stratum_of_a_posterior_draw():
    """With w = p/q instead of p/(q/(Jπ)) at the posterior's draws it would be off: seen at 20 standard errors."""
    torch.manual_seed(1)
    make = PROPOSALS["stratified"]
    found = sandwich(make, 200)
    z = MODEL.posterior().sample((4,)).unsqueeze(1).expand(4, 5_000)
    weights = make(5_000).posterior_log_weights(MODEL.log_joint, z)
    density = components(5_000).log_prob(z.unsqueeze(-1)).logsumexp(-1) - math.log(3)
    expected = (density - MODEL.log_joint(z)).exp()[:, 0]
    inverse = (-weights).exp()
    assert ((inverse.mean(1) - expected).abs() < 4.5 * inverse.std(1) / 5_000**0.5).all()
    assert abs(found.bridge.value.mean() - MODEL.log_evidence()) < 4.5 * found.bridge.value.std() / 200**0.5


@pytest.mark.parametrize("make", PROPOSALS.values(), ids=PROPOSALS)
def test_expectations_are_of_z_and_within_four_standard_errors(make):
    torch.manual_seed(2)
    found = iw.posterior_expectation(
        MODEL.log_joint, make(40), lambda z: {"z": z, "square": z**2}, 3_000, chunk_size=333
    )
    posterior = MODEL.posterior()
    truth = {"z": posterior.loc, "square": posterior.variance + posterior.loc**2}
    for name, value in truth.items():
        mean = found.mean[name].detach()
        # 40 runs each: their own spread, whatever the error says (dependent draws have none).
        assert abs(mean.mean() - value) < 4.5 * mean.std() / 40**0.5 + 1e-3
        errors = found.standard_error[name]
        independent = make(2).extend(MODEL.log_joint)[1].independent
        if independent:
            assert ((mean - value).abs() < 4.5 * errors).all()  # 40 of them: 3e-4
        else:
            assert errors.isnan().all()
            kept = iw.estimate(MODEL.log_joint, make(2), num_samples=30, keep_samples=True)
            assert kept.expectation(lambda z: z).standard_error.isnan().all()


def test_what_cannot_complete_a_posterior_draw_says_so():
    class Own(ExtendedProposal):
        name = "a chain"

        def extend(self, log_joint):
            return log_joint, iw.Proposal(lambda shape: torch.randn(*shape), Normal(0.0, 1.0).log_prob)

    with pytest.raises(TypeError, match=r"a chain .* cannot complete a draw of the posterior"):
        iw.sandwich(Normal(0.0, 1.0).log_prob, Own(), torch.zeros(10))


def test_a_proposal_that_recognises_its_own_tensors_is_given_them():
    """A cached transform evaluates its own last sample exactly: not even a view of it may take its place."""
    seen = []

    def sample(shape):
        seen.append(torch.randn(*shape, dtype=torch.float64))
        return seen[-1]

    def log_prob(z):
        assert z is seen[-1], "another tensor"
        return Normal(0.0, 1.0).log_prob(z)

    q = iw.Proposal(sample, log_prob, needs_own_samples=True)
    found = iw.posterior_expectation(lambda z: Normal(0.5, 1.0).log_prob(z).double(), q, lambda z: z, 500, chunk_size=7)
    assert abs(found.mean - 0.5) < 6 * found.standard_error
    cached = TransformedDistribution(Normal(torch.zeros(()).double(), 1.0), AffineTransform(0.0, 2.0, cache_size=1))
    iw.sandwich(Normal(0.0, 1.5).log_prob, cached, torch.randn(50).double(), 100, chunk_size=9)


def test_latents_are_those_of_the_user_alone():
    weighted = Weighted.of(MODEL.log_joint, PROPOSALS["iwhvi"](3))
    (block,) = weighted.blocks(16)
    assert isinstance(block, tuple)
    assert weighted.visible(block).shape == (16, 3)
    assert weighted.log_weights(block).shape == (16, 3)


def test_discrete_latents_have_both_sides_too():
    """Two states, the posterior known: lower and upper meet at the evidence."""
    p = torch.tensor([0.2, 0.6], dtype=torch.float64)
    draws = Categorical(probs=p).sample((4_000,))
    found = iw.sandwich(lambda z: p.log()[z], Categorical(probs=torch.ones(2).double()), draws, 4_000, exact=True)
    for side in (found.lower, found.upper, found.bridge):
        assert abs(side.value - math.log(0.8)) < 5 * side.standard_error
