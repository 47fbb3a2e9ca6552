"""Stratified mixtures: E[mean w] = p(x) whatever the probabilities, lower bounds, and the total derivative."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Gamma, Independent, Normal, Uniform

import iwbounds as iw
from iwbounds.proposals import as_proposal
from iwbounds.proposals.base import Proposal
from iwbounds.proposals.stratified import StratifiedMixture

DOUBLE = torch.float64
LOCS, SCALES = torch.tensor([-1.0, 0.6, 2.0], dtype=DOUBLE), torch.tensor([0.8, 1.0, 1.3], dtype=DOUBLE)
LOGITS = torch.tensor([0.3, -0.8, 0.1], dtype=DOUBLE)


def quadrature(nodes, dimensions):
    """Noise ``(dimensions, nodes^dimensions)`` of standard normals, and probabilities."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    x, w = torch.tensor(x), torch.tensor(w / w.sum())
    grid = torch.cartesian_prod(*[x] * dimensions).reshape(-1, dimensions)
    return grid.T, torch.cartesian_prod(*[w] * dimensions).reshape(-1, dimensions).prod(1)


def log_target(z):
    """Unnormalised; its integral is exp(0.7)."""
    mixture = torch.stack([Normal(-1.2, 0.7).log_prob(z), Normal(1.5, 0.9).log_prob(z)])
    return mixture.logsumexp(0) - math.log(2) + 0.7


def stratified_log_weights(count, logits, locs, scales, nodes=60):
    """All log-weights ``(K, nodes^K)`` with their probabilities, through the public pieces."""
    q = StratifiedMixture(logits, Normal(locs, scales))
    log_joint, proposal = q.extend(log_target)
    noise, probability = quadrature(nodes, count)
    stratum = (torch.arange(count) % len(locs)).unsqueeze(1).expand(noise.shape)
    z = locs[stratum] + scales[stratum] * noise
    log_q, nothing = proposal.log_prob((z, stratum))
    assert nothing is None
    return log_joint((z, stratum)) - log_q, probability


@pytest.mark.parametrize("logits", [LOGITS, None], ids=["unequal", "equal"])
def test_the_mean_weight_is_unbiased(logits):
    """Each stratum's expectation by quadrature; together they are p(x)."""
    means = [one_stratum(logits, j, log_narrow) for j in range(3)]
    assert torch.stack(means).mean().log().item() == pytest.approx(0.7, abs=1e-8)


def log_narrow(z):
    """Near one component, so that the others' weights are small: unnormalised, its integral is exp(0.7)."""
    return Normal(-1.2, 0.7).log_prob(z) + 0.7


def one_stratum(logits, j, log_joint):
    """E[w] of a draw of component j."""
    _, proposal = StratifiedMixture(logits, Normal(LOCS, SCALES)).extend(log_joint)
    noise, probability = quadrature(120, 1)
    z = LOCS[j] + SCALES[j] * noise
    log_q, _ = proposal.log_prob((z, torch.full(z.shape, j)))
    return ((log_joint(z) - log_q).exp() * probability).sum()


def test_without_the_strata_s_own_term_it_would_be_biased():
    """The sabotage of the test above: log w = log p - log Σ π q alone."""
    noise, probability = quadrature(120, 1)
    mixture = StratifiedMixture(LOGITS, Normal(LOCS, SCALES))
    zs = [LOCS[j] + SCALES[j] * noise for j in range(3)]
    means = [((log_narrow(z) - mixture.log_prob(z)).exp() * probability).sum() for z in zs]
    assert abs(torch.stack(means).mean().log().item() - 0.7) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("logits", [LOGITS[:2], None], ids=["unequal", "equal"])
@pytest.mark.parametrize(
    "bound", [iw.ELBO(), iw.IWAE(), iw.Renyi(0.5), iw.CIWAE(0.3), iw.MIWAE(2), iw.UStatistic(2)], ids=repr
)
def test_bounds_are_lower(bound, logits):
    """Exact expectation at K = 4 of two components; never above log p(x) = 0.7."""
    log_w, probability = stratified_log_weights(4, logits, LOCS[:2], SCALES[:2], nodes=16)
    expected = (bound(log_w) * probability).sum().item()
    assert expected < 0.7
    if isinstance(bound, iw.IWAE):
        assert expected > 0.5


def test_the_gap_of_equal_parts_against_independent_draws():
    """N(1.5, 2²) from two components N(±2.5, 1), K = 2, by quadrature: -.218 against -.390."""
    locs, scales = torch.tensor([-2.5, 2.5], dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    noise, probability = quadrature(80, 2)
    q = StratifiedMixture(None, Normal(locs, scales))

    def gap(strata):
        strata = torch.tensor(strata).unsqueeze(1).expand(noise.shape)
        z = locs[strata] + scales[strata] * noise
        return (iw.IWAE()(Normal(1.5, 2.0).log_prob(z) - q.log_prob(z)) * probability).sum().item()

    independent = 0.25 * (gap([0, 0]) + gap([0, 1]) + gap([1, 0]) + gap([1, 1]))
    assert independent == pytest.approx(-0.390, abs=1e-3)
    assert gap([0, 1]) == pytest.approx(-0.218, abs=1e-3)


@pytest.mark.parametrize("bound", [iw.IWAE(), iw.ELBO(), iw.Renyi(0.5)], ids=repr)
def test_the_total_derivative_is_the_gradient_of_the_expected_bound(bound):
    """Locations, scales and probabilities, K = 2, by quadrature; the truth by finite differences of the expectation."""

    def expected(logits, locs, scales):
        log_w, probability = stratified_log_weights(2, logits, locs, scales, nodes=60)
        return (bound(log_w) * probability).sum()

    parameters = [t[:2].clone().requires_grad_() for t in (LOGITS, LOCS, SCALES)]
    found = torch.autograd.grad(expected(*parameters), parameters)
    for i, slope in enumerate(found):
        for j in range(2):
            values = []
            for step in (1e-5, -1e-5):
                moved = [p.detach().clone() for p in parameters]
                moved[i][j] += step
                values.append(expected(*moved).item())
            assert slope[j].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_the_engine_s_gradient_is_the_total_derivative(chunk_size):
    """The same random state, chunks or not, against plain torch."""
    parameters = [t.clone().requires_grad_() for t in (LOGITS, LOCS, SCALES)]
    q = StratifiedMixture(parameters[0], Normal(parameters[1], parameters[2]))
    torch.manual_seed(4)
    found = iw.estimate(log_target, q, num_samples=12, chunk_size=chunk_size)
    slopes = torch.autograd.grad(found.value, parameters)
    torch.manual_seed(4)
    z, stratum = q.rsample((12,))
    log_pi = parameters[0].log_softmax(0)
    mixture = (Normal(parameters[1], parameters[2]).log_prob(z.unsqueeze(1)) + log_pi).logsumexp(1)
    value = iw.IWAE()(log_target(z) - mixture + log_pi[stratum] + math.log(3))
    torch.testing.assert_close(found.value, value)
    for a, b in zip(slopes, torch.autograd.grad(value, parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "listed"])
def test_components_take_turns_and_shapes_are_kept(stacked):
    """The batch of data and an event: far components say which of them a draw came from."""
    locs = torch.tensor([-100.0, 0.0, 100.0]).view(3, 1).expand(4, 3, 2)
    if stacked:
        components = Independent(Normal(locs, 1.0), 1)
    else:
        components = [Independent(Normal(locs[:, j], 1.0), 1) for j in range(3)]
    q = StratifiedMixture(torch.zeros(4, 3), components)
    z, stratum = q.rsample((6,))
    assert z.shape == (6, 4, 2)
    assert ((z / 100).round() == (torch.arange(6) % 3 - 1).view(6, 1, 1)).all()
    assert (stratum == (torch.arange(6) % 3).view(6, 1).expand(6, 4)).all()
    log_q = q.extend(log_target)[1].log_prob((z, stratum))[0]
    expected = Independent(Normal(locs[:, 0].expand(4, 2), 1.0), 1).log_prob(z[0]) - math.log(3)
    torch.testing.assert_close(log_q[0], expected)


def test_listed_components_may_be_of_different_families():
    q = StratifiedMixture(LOGITS[:2], [Normal(LOCS[0], 1.0), Uniform(-LOCS[2], LOCS[2], validate_args=False)])
    z = torch.tensor([0.5, -0.5], dtype=DOUBLE)
    pi = LOGITS[:2].softmax(0)
    expected = pi[0] * Normal(LOCS[0], 1.0).log_prob(z).exp() + pi[1] / 4
    torch.testing.assert_close(q.log_prob(z).exp(), expected)


def test_what_the_engine_may_assume():
    """Dependent, z with a path and the stratum carried; mean score zero only for equal probabilities."""
    equal = StratifiedMixture(None, Normal(LOCS, SCALES)).extend(log_target)[1]
    given = StratifiedMixture(LOGITS, Normal(LOCS, SCALES)).extend(log_target)[1]
    assert isinstance(as_proposal(equal), Proposal)
    for proposal in (equal, given):
        assert not proposal.independent
        assert proposal.reparameterized == (True, None)
        assert proposal.visible((1, 2)) == 1
        assert proposal.fixed_support
    assert equal.mean_score is None
    assert "as many samples of every component" in given.mean_score


class TestRefusals:
    @pytest.mark.parametrize("gradient", [iw.DReG(), iw.VIMCO(), iw.Reparameterized(control_variate=True)], ids=repr)
    def test_estimators_that_need_draws_of_one_density(self, gradient):
        """With given probabilities the mean score is not zero, so that the control variate is refused too."""
        q = StratifiedMixture(LOGITS, Normal(LOCS.clone().requires_grad_(), SCALES))
        with pytest.raises(ValueError, match=r"is wrong for StratifiedMixture of 3 components: (its samples|it draws)"):
            iw.estimate(log_target, q, gradient=gradient, num_samples=6)

    def test_the_reason_is_the_probabilities_and_not_the_support(self):
        q = StratifiedMixture(LOGITS, Normal(LOCS.clone().requires_grad_(), SCALES))
        with pytest.raises(ValueError, match=r"it draws as many samples of every component.*logits=None") as raised:
            iw.estimate(log_target, q, gradient=iw.Reparameterized(control_variate=True), num_samples=6)
        assert "support" not in str(raised.value)
        assert "What fits: Reparameterized()." in str(raised.value)

    def test_samples_that_do_not_divide(self):
        with pytest.raises(ValueError, match=r"a number of samples that 3 divides; got 64\. Use num_samples=63"):
            StratifiedMixture(None, Normal(LOCS, SCALES)).rsample((64,))

    def test_logits_of_another_shape(self):
        with pytest.raises(ValueError, match=r"logits of shape \(3,\) or \(3,\)"):
            StratifiedMixture(torch.zeros(2), Normal(LOCS, SCALES))

    def test_no_component_axis(self):
        with pytest.raises(ValueError, match=r"batch shape \(\*batch, J\); got \(\)"):
            StratifiedMixture(None, Normal(0.0, 1.0))

    def test_unlike_batches(self):
        with pytest.raises(ValueError, match="components of one batch shape"):
            StratifiedMixture(None, [Normal(0.0, 1.0), Normal(torch.zeros(2), 1.0)])

    def test_no_distributions(self):
        with pytest.raises(TypeError, match="components to be torch Distributions; got int"):
            StratifiedMixture(None, [1, 2])

    def test_components_without_a_path_have_none(self):
        q = StratifiedMixture(None, [Gamma(2.0, 1.0), torch.distributions.Poisson(2.0)])
        assert q.extend(log_target)[1].reparameterized == (False, None)
