"""Kind: the default gradient of every Distribution of zuko, its lazy distributions, and flows in chunks.

zuko is no dependency of the tests: where it is not installed, they are skipped. False alarms: as in the sweep of torch.
"""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Distribution, Gumbel, Normal, Uniform

import iwbounds as iw
from tests.assumptions.distribution_cases import DOUBLE, Case, between, real
from tests.assumptions.sweep import BOUNDS, check_default_gradient

zuko = pytest.importorskip("zuko", reason="sweeps zuko's classes: pip install zuko")
Z, T = zuko.distributions, zuko.transforms


@pytest.fixture(autouse=True)
def _without_validation():
    """As whoever imports zuko has it: it switches torch's validation off, and some of its classes need that."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    yield
    Distribution.set_default_validate_args(before)


LOC_SCALE = {"loc": 0.3, "scale": 0.8}
TWO = {"loc": [0.3, -0.2], "scale": [0.8, 0.6]}


def flow(base):
    """An affine map of zuko, of learned shift and slope, over some base: x is its inverse at a draw of the base."""
    return lambda shift, log_scale: Z.NormalizingFlow(T.MonotonicAffineTransform(shift, log_scale), base(shift))


def slope(scale):
    """Of MonotonicAffineTransform, softly bounded from below."""
    return (scale / (1 + (scale / math.log(1e-3)).abs())).exp()


CASES = {
    "BoxUniform": Case(
        {"low": -0.4, "high": 1.1},
        lambda low, high: Z.BoxUniform(low, high, 0),
        between(lambda low, high: low, lambda low, high: high),
    ),
    "DiagNormal": Case(TWO, Z.DiagNormal, score=True),
    "GeneralizedNormal": Case({"beta": 1.5}, Z.GeneralizedNormal, score=True),
    "Joint": Case(
        {**LOC_SCALE, "rate": 1.3},
        lambda loc, scale, rate: Z.Joint(Normal(loc, scale), torch.distributions.Gamma(2.0 * rate, rate)),
        score=True,
    ),
    "Joint with a discrete part": Case(
        {**LOC_SCALE, "logits": 0.4},
        lambda loc, scale, logits: Z.Joint(Normal(loc, scale), Bernoulli(logits=logits)),
        score=True,
    ),
    "Maximum": Case(LOC_SCALE, lambda loc, scale: Z.Maximum(Normal(loc, scale), 3), real),
    "Minimum": Case(LOC_SCALE, lambda loc, scale: Z.Minimum(Normal(loc, scale), 3), real),
    "Mixture": Case(
        {"logits": [0.3, -0.3], "loc": [-0.5, 0.9], "scale": [0.7, 0.5]},
        lambda logits, loc, scale: Z.Mixture(Normal(loc, scale), logits),
        real,
    ),
    "Mixture of Uniform": Case(
        {"logits": [0.3, -0.3], "high": [0.5, 0.9]},
        lambda logits, high: Z.Mixture(Uniform(torch.zeros_like(high), high), logits),
        must_refuse=True,
    ),
    "NormalizingFlow": Case(
        {"shift": 0.3, "log_scale": -0.2}, flow(lambda like: Normal(torch.zeros_like(like), 1.0)), real
    ),
    "NormalizingFlow of Uniform": Case(
        {"shift": 0.3, "log_scale": -0.2},
        flow(lambda like: Uniform(torch.zeros_like(like), 1.0)),
        between(
            lambda shift, log_scale: -shift / slope(log_scale),
            lambda shift, log_scale: (1 - shift) / slope(log_scale),
        ),
    ),
    "NormalizingFlow of a mixture": Case(
        {"shift": 0.3, "log_scale": -0.2, "logits": [0.3, -0.3]},
        lambda shift, log_scale, logits: Z.NormalizingFlow(
            T.MonotonicAffineTransform(shift, log_scale),
            Z.Mixture(Normal(torch.tensor([-0.5, 0.9], dtype=DOUBLE).expand(len(shift), 2), 0.6), logits),
        ),
        real,
    ),
    "Sort": Case(LOC_SCALE, lambda loc, scale: Z.Sort(Normal(loc, scale), 2), score=True, data=50_000),
    "Sort of Uniform": Case(
        {"high": 1.1}, lambda high: Z.Sort(Uniform(torch.zeros_like(high), high), 2), must_refuse=True
    ),
    "TopK": Case(LOC_SCALE, lambda loc, scale: Z.TopK(Normal(loc, scale), 2, 3), score=True, data=50_000),
    "TransformedUniform": Case(
        {"log_scale": 0.2},
        lambda log_scale: Z.TransformedUniform(
            T.MonotonicAffineTransform(0.0 * log_scale, log_scale), 0.1 + 0.0 * log_scale, 0.9 + 0.0 * log_scale
        ),
        between(lambda log_scale: 0.1, lambda log_scale: 0.9 + 0.0 * log_scale),
    ),
    "Truncated": Case(
        LOC_SCALE,
        lambda loc, scale: Z.Truncated(Gumbel(loc, scale), -0.5 + 0.0 * loc, 1.5 + 0.0 * loc),
        between(lambda **_: -0.5, lambda loc, **_: 1.5 + 0.0 * loc),
    ),
    # Above too: the derivative of zuko's cdf at its own default, infinity, is NaN.
    "Truncated, learned bound": Case(
        {**LOC_SCALE, "low": -0.2},
        lambda loc, scale, low: Z.Truncated(Normal(loc, scale), low, 1.5 + 0.0 * low),
        between(lambda low, **_: low, lambda low, **_: 1.5 + 0.0 * low),
    ),
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("case", CASES)
def test_the_default_gradient_is_that_of_the_expected_bound_or_refused_with_one_that_fits(case, bound):
    check_default_gradient(CASES[case], bound)


def test_every_distribution_class_of_zuko_has_a_case():
    classes = {c for c in vars(Z).values() if isinstance(c, type) and issubclass(c, Distribution)}
    own = {c for c in classes if c.__module__.startswith("zuko")}
    assert own - {base for case in CASES.values() for base in type(case.make(**case.batch(2))).__mro__} == set()


def log_joint(z):
    return -(z - 0.4).square().sum(-1)


FLOWS = {
    "NSF": (lambda: zuko.flows.NSF(2, 3, transforms=2, hidden_features=(8,)), iw.DReG()),
    "NICE": (lambda: zuko.flows.NICE(2, 3, transforms=2, hidden_features=(8,)), iw.DReG()),
    "CNF": (lambda: zuko.flows.CNF(2, 3, hidden_features=(8,)), iw.DReG()),
    "NCSF, on a circle": (lambda: zuko.flows.NCSF(2, 3, transforms=1, hidden_features=(8,)), iw.Reparameterized()),
}


@pytest.mark.parametrize(("make", "default"), FLOWS.values(), ids=FLOWS)
def test_flows_of_modules_take_the_gradient_that_fits_whole_and_in_chunks(make, default):
    """In chunks an adaptive solver takes other steps: within its tolerance."""
    torch.manual_seed(0)
    flow, context = make().double(), torch.randn(4, 3, dtype=DOUBLE)
    with torch.no_grad():
        z = flow(context).rsample((6,))

    def gradients(gradient, **options):
        torch.manual_seed(1)
        value = iw.estimate(log_joint, flow(context), gradient=gradient, num_samples=6, **options).value
        return torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), list(flow.parameters()))])

    assert z.isfinite().all()
    whole = gradients(None)
    assert torch.equal(whole, gradients(default))
    torch.testing.assert_close(gradients(None, chunk_size=4), whole, rtol=1e-3, atol=1e-4)


def test_a_lazy_distribution_in_the_place_of_a_distribution_is_told_to_be_called():
    flow = zuko.flows.NSF(2, 3)
    with pytest.raises(
        TypeError, match=r"got NSF. Call the module, and pass the distribution that it returns: NSF\(…\)"
    ):
        iw.estimate(log_joint, flow)
