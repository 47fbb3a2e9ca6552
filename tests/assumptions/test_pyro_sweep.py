"""Kind: the default gradient of every Distribution of Pyro, its wrappers of torch's classes included.

Pyro is no dependency of the tests: where it is not installed, they are skipped. False alarms: as in the sweep of torch.
"""

import math

import pytest
import torch
from torch.distributions import Distribution

import iwbounds as iw
from tests.assumptions.distribution_cases import (
    DOUBLE,
    Case,
    above,
    between,
    counts,
    positive,
    real,
    torch_cases,
    until,
)
from tests.assumptions.sweep import BOUNDS, check_default_gradient

_validated = Distribution._validate_args
D = pytest.importorskip("pyro.distributions", reason="sweeps Pyro's classes: pip install pyro-ppl")
Distribution.set_default_validate_args(_validated)  # importing Pyro switches it off for everyone

TEMPERATURE = torch.tensor(0.9, dtype=DOUBLE)
LOC_SCALE = {"loc": 0.3, "scale": 0.8}
TRIL = {"loc": [0.3, -0.2], "scale_tril": [[1.0, 0.0], [0.3, 0.8]]}
PAIR = {"logits": [0.3, -0.3], "locs": [[-0.5, 0.2], [0.9, 0.4]]}


def rejector(loc):
    """Normal(loc, 1) draws, accepted with probability exp(-x²/2): a Normal again, of half the variance."""
    log_scale = -loc.square() / 4 - 0.5 * math.log(2.0)
    return D.Rejector(D.Normal(loc, torch.ones_like(loc)), lambda x: -0.5 * x.square(), log_scale)


def hidden_markov(loc):
    one, zero = torch.ones_like(loc).unsqueeze(-1), torch.zeros_like(loc).unsqueeze(-1)
    eye = torch.ones(len(loc), 2, 1, 1, dtype=DOUBLE)
    noise = D.Normal(zero.unsqueeze(-2).expand(-1, 2, -1), one.unsqueeze(-2)).to_event(1)
    observed = D.Normal(loc.reshape(-1, 1, 1).expand(-1, 2, -1), one.unsqueeze(-2)).to_event(1)
    return D.GaussianHMM(D.Normal(zero, one).to_event(1), 0.5 * eye, noise, eye, observed)


OWN = {
    "AffineBeta": Case(
        {"concentration1": 2.2, "concentration0": 2.5, "loc": 0.3, "scale": 0.8},
        D.AffineBeta,
        between(lambda loc, scale, **_: loc, lambda loc, scale, **_: loc + scale),
    ),
    "AsymmetricLaplace": Case({**LOC_SCALE, "asymmetry": 1.3}, D.AsymmetricLaplace, score=True),
    "BetaBinomial": Case(
        {"a": 1.7, "b": 2.2}, lambda a, b: D.BetaBinomial(a, b, total_count=3.0 * torch.ones_like(a)), values=until(3)
    ),
    "CoalescentTimes": Case(
        {"rate": 1.3},
        lambda rate: D.CoalescentTimes(torch.zeros(len(rate), 3, dtype=DOUBLE), rate),
        score=True,
    ),
    "DirichletMultinomial": Case(
        {"concentration": [1.5, 2.0, 2.5]},
        lambda concentration: D.DirichletMultinomial(concentration, total_count=2.0),
        values=counts(2, 3),
    ),
    "ExpandedDistribution": Case(
        {"logits": 0.4},
        lambda logits: D.ExpandedDistribution(D.Bernoulli(logits=logits), logits.shape),
        values=until(1),
    ),
    "ExtendedBetaBinomial": Case(
        {"a": 1.7, "b": 2.2},
        lambda a, b: D.ExtendedBetaBinomial(a, b, total_count=3.0 * torch.ones_like(a)),
        values=until(3),
    ),
    "ExtendedBinomial": Case({"logits": 0.4}, lambda logits: D.ExtendedBinomial(3, logits=logits), values=until(3)),
    "FoldedDistribution": Case(LOC_SCALE, lambda **p: D.FoldedDistribution(D.Normal(**p)), positive),
    "GammaPoisson": Case({"concentration": 2.5, "rate": 1.2}, D.GammaPoisson, values=until(80)),
    "GaussianHMM": Case({"loc": 0.3}, hidden_markov, score=True, data=5000),
    "LKJ": Case({"concentration": 1.6}, lambda concentration: D.LKJ(2, concentration), score=True),
    "Logistic": Case(LOC_SCALE, D.Logistic, real),
    "MaskedDistribution": Case(
        LOC_SCALE, lambda **p: D.Normal(**p).mask(torch.zeros_like(p["loc"]).bool()), must_refuse=True
    ),
    "MaskedDistribution of nothing": Case(LOC_SCALE, lambda **p: D.Normal(**p).mask(True), real),
    "MaskedMixture": Case(
        LOC_SCALE,
        lambda **p: D.MaskedMixture(torch.ones_like(p["loc"]).bool(), D.Normal(0.0 * p["loc"], 1.0), D.Normal(**p)),
        real,
    ),
    "MixtureOfDiagNormals": Case(
        {**PAIR, "scales": [[0.7, 0.5], [0.6, 0.9]]},
        lambda logits, locs, scales: D.MixtureOfDiagNormals(locs, scales, logits),
        score=True,
    ),
    "MixtureOfDiagNormalsSharedCovariance": Case(
        {**PAIR, "scales": [0.7, 0.5]},
        lambda logits, locs, scales: D.MixtureOfDiagNormalsSharedCovariance(locs, scales, logits),
        score=True,
        data=50_000,
    ),
    "MultivariateStudentT": Case(
        {"df": 5.0, **TRIL}, lambda df, loc, scale_tril: D.MultivariateStudentT(df, loc, scale_tril.tril()), score=True
    ),
    "NanMaskedMultivariateNormal": Case(
        TRIL, lambda loc, scale_tril: D.NanMaskedMultivariateNormal(loc, scale_tril=scale_tril.tril()), score=True
    ),
    "NanMaskedNormal": Case(LOC_SCALE, D.NanMaskedNormal, real),
    "OrderedLogistic": Case(
        {"predictor": 0.3},
        lambda predictor: D.OrderedLogistic(
            predictor, torch.tensor([-0.5, 0.8], dtype=DOUBLE).expand(len(predictor), 2)
        ),
        values=until(2),
    ),
    "ProjectedNormal": Case({"concentration": [0.5, -0.3]}, D.ProjectedNormal, score=True),
    "Rejector": Case({"loc": 0.4}, rejector, real),
    "RelaxedBernoulliStraightThrough": Case(
        {"logits": 0.4}, lambda logits: D.RelaxedBernoulliStraightThrough(TEMPERATURE, logits=logits), score=True
    ),
    "RelaxedOneHotCategoricalStraightThrough": Case(
        {"logits": [0.2, -0.3, 0.1]},
        lambda logits: D.RelaxedOneHotCategoricalStraightThrough(TEMPERATURE, logits=logits),
        score=True,
    ),
    "SineSkewed": Case(
        {"concentration": [1.4], "skewness": [0.3]},
        lambda concentration, skewness: D.SineSkewed(
            D.VonMises(0.0 * concentration, concentration).to_event(1), skewness
        ),
        score=True,
    ),
    "SkewLogistic": Case({**LOC_SCALE, "asymmetry": 1.3}, D.SkewLogistic, real),
    "SoftAsymmetricLaplace": Case({**LOC_SCALE, "asymmetry": 1.3, "softness": 0.9}, D.SoftAsymmetricLaplace, real),
    "SoftLaplace": Case(LOC_SCALE, D.SoftLaplace, real),
    "Stable": Case({"stability": 1.5, "skew": 0.2}, lambda **p: D.Stable(**p), score=True, data=1000),
    "VonMises3D": Case({"concentration": [0.5, -0.3, 0.8]}, D.VonMises3D, must_refuse=True),
    "ZeroInflatedDistribution": Case(
        {"rate": 1.7, "gate": 0.3},
        lambda rate, gate: D.ZeroInflatedDistribution(D.Poisson(rate), gate=gate),
        values=until(40),
    ),
    "ZeroInflatedNegativeBinomial": Case(
        {"total": 2.5, "logits": -0.6, "gate": 0.3},
        lambda total, logits, gate: D.ZeroInflatedNegativeBinomial(total, logits=logits, gate=gate),
        values=until(60),
    ),
    "ZeroInflatedPoisson": Case(
        {"rate": 1.7, "gate": 0.3}, lambda rate, gate: D.ZeroInflatedPoisson(rate, gate=gate), values=until(40)
    ),
    "shifted Exponential, expanded": Case(
        {"loc": 0.3},
        lambda loc: D.TransformedDistribution(
            D.Exponential(torch.ones_like(loc)), [torch.distributions.AffineTransform(loc, 1.0)]
        ).expand(loc.shape),
        above(lambda loc: loc),
    ),
}
CASES = {**torch_cases(D), **OWN}
LEFT_OUT = {
    "AVFMultivariateNormal, OMTMultivariateNormal": "no batch: tested below",
    "GaussianScaleMixture": "its log_prob takes a single point: refused below",
    "Delta": "no density on the line: tested below",
    "CoalescentTimesWithRate, DiscreteHMM, GammaGaussianHMM, GaussianMRF, GroupedNormalNormal, ImproperUniform, "
    "IndependentHMM, LinearHMM, Unit": "likelihoods: without a sampler, or without a random value; refused below",
    "LogNormalNegativeBinomial, OneOneMatching, OneTwoMatching, SpanningTree, TruncatedPolyaGamma": "samplers and "
    "log-densities that approximate each other",
    "StableWithLogProb": "Stable, which is swept",
    "Empirical": "its log_prob takes one sample at a time: refused below",
    "SineBivariateVonMises": "its sampler takes minutes for as many draws as are needed",
    "LKJCorrCholesky": "cannot be built: replaced by LKJCholesky",
    "GeneralizedPareto": "float32 alone: see the sweep of torch",
    "ExponentialFamily, TorchDistribution": "abstract",
}


@pytest.mark.filterwarnings("ignore:Singular sample detected")
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("case", CASES)
def test_the_default_gradient_is_that_of_the_expected_bound_or_refused_with_one_that_fits(case, bound):
    check_default_gradient(CASES[case], bound)


def test_every_distribution_class_of_pyro_has_a_case():
    classes = {n for n in dir(D) if isinstance(getattr(D, n), type) and issubclass(getattr(D, n), Distribution)}
    swept = {base.__name__ for c in CASES.values() for base in type(c.make(**c.batch(2))).__mro__}
    left_out = {name for names in LEFT_OUT for name in names.split(", ")}
    assert classes - swept - left_out - {"Distribution"} == set()


@pytest.mark.parametrize("bound", [iw.ELBO(), iw.IWAE()], ids=repr)
def test_a_point_mass_is_differentiated_through_its_point(bound):
    """Delta(v): the bound is log p(v), whatever K. DReG's w² would give half of its slope for two samples."""
    v = torch.tensor([0.5, -1.0], dtype=DOUBLE, requires_grad=True)
    value = iw.estimate(lambda z: -(z**4), D.Delta(v), bound, num_samples=2).value
    (found,) = torch.autograd.grad(value.sum(), v)
    torch.testing.assert_close(found, -4 * v.detach() ** 3)
    for gradient in (iw.DReG(), iw.VIMCO()):
        with pytest.raises(ValueError, match=r"What fits: Reparameterized\(\)"):
            iw.estimate(lambda z: -(z**4), D.Delta(v), bound, gradient, num_samples=2)


AROUND = ([0.3, -0.2], [[1.0, 0.0], [0.3, 0.8]])
WITHOUT_BATCH = {
    "OMTMultivariateNormal": (AROUND, lambda loc, tril: D.OMTMultivariateNormal(loc, tril)),
    "AVFMultivariateNormal": (
        AROUND,
        lambda loc, tril: D.AVFMultivariateNormal(loc, tril, torch.full((2, 2, 2), 0.1, dtype=DOUBLE)),
    ),
}


@pytest.mark.parametrize(("parameters", "make"), WITHOUT_BATCH.values(), ids=WITHOUT_BATCH)
def test_paths_of_pyros_own_making_against_scores(parameters, make):
    """ELBO, one gradient from 40 000 draws, against as many plain scores; 8 batches of each tell the error."""
    leaves = [torch.tensor(p, dtype=DOUBLE, requires_grad=True) for p in parameters]
    log_joint = lambda z: -torch.log1p((z - 0.4).square()).sum(-1)  # noqa: E731
    found, scores = [], []
    for _ in range(8):
        value = iw.estimate(log_joint, make(*leaves), iw.ELBO(), num_samples=5000).value
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)]))
        q = make(*leaves)
        z = q.sample((20_000,))
        log_q = q.log_prob(z)
        weight = (log_joint(z) - log_q).detach()
        surrogate = ((weight - weight.mean()) * log_q).mean()
        scores.append(torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, leaves)]))
    found, scores = torch.stack(found), torch.stack(scores)
    error = ((found.var(0) + scores.var(0)) / 8).sqrt()
    # Student's t of 7 degrees or more beyond 12: 1e-5 for each of 14 numbers.
    assert ((found.mean(0) - scores.mean(0)).abs() <= 12 * error + 1e-9).all(), (found.mean(0), scores.mean(0), error)
    assert (error < 0.02).all()


def test_what_cannot_be_sampled_or_evaluated_is_refused_in_a_sentence():
    one = torch.ones(1, dtype=DOUBLE)
    gaussian = D.Normal(one, one).to_event(1)
    chain = (gaussian, one.reshape(1, 1), gaussian, one.reshape(1, 1), gaussian)
    for make in (
        lambda: D.ImproperUniform(torch.distributions.constraints.real, (), ()),
        lambda: D.LinearHMM(*chain, duration=2),
        lambda: D.GroupedNormalNormal(one, one, one, torch.zeros(1, dtype=torch.long)),
    ):
        with pytest.raises(TypeError, match=r"cannot be (sampled|evaluated).*Wrap callables"):
            iw.estimate(lambda z: -z.square(), make(), num_samples=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: D.Empirical(torch.zeros(4, 3, dtype=DOUBLE), torch.zeros(4, 3, dtype=DOUBLE)),
        lambda: D.GaussianScaleMixture(*(torch.ones(2, dtype=DOUBLE) for _ in range(3))),
    ],
    ids=["Empirical", "GaussianScaleMixture"],
)
def test_a_density_of_one_sample_alone_is_refused(make):
    with pytest.raises(ValueError, match=r"takes any number of samples.*takes one alone\. Use a Categorical"):
        iw.estimate(lambda z: -z.square(), make(), num_samples=2)
