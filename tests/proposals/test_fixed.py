"""A Distribution with detached parameters: the same density and slope, and the same gradient through the engine."""

import pytest
import torch
from torch.distributions import (
    Beta,
    Cauchy,
    Chi2,
    Dirichlet,
    Exponential,
    FisherSnedecor,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
)

import iwbounds as iw
from iwbounds.proposals import as_proposal
from tests.engine.test_large_k import PathAndScore

B, D, K = 4, 3, 6

KNOWN = {
    "normal": lambda p: Independent(Normal(p, p.square() + 0.5), 1),
    "laplace": lambda p: Independent(Laplace(p, p.square() + 0.5), 1),
    "gamma": lambda p: Independent(Gamma(p.exp(), p.exp() + 0.5), 1),
    "exponential": lambda p: Independent(Exponential(p.exp()), 1),
    "cauchy": lambda p: Independent(Cauchy(p, p.exp()), 1),
    "chi2": lambda p: Independent(Chi2(p.exp()), 1),
    "beta": lambda p: Independent(Beta(p.exp(), 2 * p.exp()), 1),
    "dirichlet": lambda p: Dirichlet(p.exp() + 1),
    "student": lambda p: Independent(StudentT(5 + p, p, 1.0), 1),
    "fisher-snedecor": lambda p: Independent(FisherSnedecor(4 + p, 5 + p), 1),
    "multivariate": lambda p: MultivariateNormal(p, torch.diag_embed(p.exp())),
    "precision": lambda p: MultivariateNormal(p, precision_matrix=torch.diag_embed(p.exp())),
    "low-rank": lambda p: LowRankMultivariateNormal(p, p[..., None].exp(), p.exp()),
    "expanded": lambda p: Independent(Normal(p[:1], 1.0).expand([B, D]), 1),
}

known = pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)


def parameters():
    return torch.linspace(-0.5, 0.7, B * D, dtype=torch.float64).reshape(B, D).requires_grad_()


@known
def test_same_density_and_slope_but_no_gradient_of_parameters(make):
    p = parameters()
    q = make(p)
    z = q.sample((K,)).requires_grad_()
    log_q, fixed = q.log_prob(z), as_proposal(q).fixed_log_prob(z)
    assert torch.equal(fixed, log_q)
    (slope,) = torch.autograd.grad(log_q.sum(), z, retain_graph=True)
    found, of_parameters = torch.autograd.grad(fixed.sum(), (z, p), allow_unused=True)
    torch.testing.assert_close(found, slope, rtol=1e-12, atol=1e-12)
    assert of_parameters is None
    assert q.log_prob(z).requires_grad  # the original is untouched
    assert torch.autograd.grad(q.log_prob(z).sum(), p)[0].any()


@pytest.mark.parametrize("gradient", [iw.DReG(), iw.STL(), PathAndScore()], ids=["dreg", "stl", "all three channels"])
@known
def test_engine_gives_the_gradient_of_a_proposal_made_of_callables(make, gradient):
    """Which is linearised instead: another route to the same numbers."""
    p, theta = parameters(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    q = make(p)
    z = q.rsample((K,))

    def gradients(proposal):
        estimate = iw.estimate(lambda z: -(theta * z).cosh().sum(-1), proposal, iw.IWAE(), gradient, samples=z)
        return torch.autograd.grad(estimate.value.sum(), (theta, p), retain_graph=True)

    for found, expected in zip(gradients(q), gradients(iw.Proposal(q.rsample, q.log_prob)), strict=True):
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Shifted(Normal):
    """A user's own class, with a parameter that PyTorch does not know."""

    def __init__(self, shift):
        super().__init__(torch.zeros_like(shift), 1.0)
        self._hidden = [shift]

    def log_prob(self, value):
        return super().log_prob(value - self._hidden[0])


@pytest.mark.parametrize("make", [Shifted, lambda p: Independent(Shifted(p), 1), lambda p: LogNormal(p, 1.0)])
def test_what_may_hide_parameters_is_not_copied(make):
    assert as_proposal(make(torch.zeros(3, requires_grad=True))).fixed_log_prob is None


def test_density_with_detached_parameters_is_evaluated_once():
    calls, loc = [], torch.zeros(B, requires_grad=True)

    def counted(name, centre):
        def log_prob(z):
            calls.append(name)
            return Normal(centre, 1.0).log_prob(z)

        return log_prob

    proposal = iw.Proposal(
        Normal(loc, 1.0).rsample, counted("live", loc), fixed_log_prob=counted("fixed", loc.detach())
    )
    for gradient, expected in ((iw.DReG(), "fixed"), (iw.STL(), "fixed"), (iw.Reparameterized(), "live")):
        calls.clear()
        iw.estimate(lambda z: -z.square(), proposal, gradient=gradient, num_samples=K).value.sum().backward()
        assert calls == [expected]
