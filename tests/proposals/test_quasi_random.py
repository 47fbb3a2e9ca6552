"""Quasi-random draws: each one of its distribution, data independent, together never worse than independent draws."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import (
    Cauchy,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import AffineTransform

import iwbounds as iw
from iwbounds.proposals import quasi_random
from iwbounds.proposals.quasi_random import QuasiRandom

DOUBLE = torch.float64


def enumerated(table, bits, shared=False, nodes=8):
    """Every draw of a table of ``bits``-bit words ``(K, D)``: ``(K, shifts * fractions, D)``, all of one probability.

    All words r for each dimension, or one for all; fractions v at Gauss-Legendre nodes, given with their weights.
    """
    fraction, weight = (torch.tensor(a) for a in quadrature(nodes))
    words = torch.arange(2**bits)
    dimensions = table.shape[1]
    if shared:
        r = words.unsqueeze(1).expand(-1, dimensions)
    else:
        r = torch.cartesian_prod(*[words] * dimensions).reshape(-1, dimensions)
    v = torch.cartesian_prod(*[fraction] * dimensions).reshape(-1, dimensions)
    weights = torch.cartesian_prod(*[weight] * dimensions).reshape(-1, dimensions).prod(1)
    half = 2 ** (bits - 1)
    r = (r - half).repeat_interleave(len(v), 0)
    u = quasi_random._uniform(table.unsqueeze(1) ^ r, v.repeat(len(r) // len(v), 1), half)
    return u, weights.repeat(len(r) // len(v)) * len(v) / len(r)


def quadrature(nodes):
    x, w = np.polynomial.legendre.leggauss(nodes)
    return 0.5 + 0.5 * x, 0.5 * w


def small_table(bits, dimensions):
    """The first 2^bits Sobol points in words of ``bits`` bits."""
    return quasi_random._table(dimensions, bits, bits, torch.device("cpu")).long()


def density(u):
    """A density on the unit square, of mean one along it, whose two coordinates depend on each other."""
    x, y = u[..., 0], u[..., 1]
    return 1 + 0.9 * (2 * x - 1) * (2 * y - 1) + 0.05 * (3 * x**2 - 1)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_every_weight_has_the_expectation_of_an_independent_draw(bits):
    """Exact: all 4^bits shifts, and the fractions by quadrature of a polynomial."""
    u, probability = enumerated(small_table(bits, 2), bits)
    expected = (density(u) * probability).sum(1)
    torch.testing.assert_close(expected, torch.ones(2**bits, dtype=DOUBLE), rtol=0, atol=1e-14)


def test_one_shift_for_all_dimensions_would_be_biased():
    """The enumeration sees it: the word must be independent for every dimension."""
    u, probability = enumerated(small_table(3, 2), 3, shared=True)
    assert ((density(u) * probability).sum() / len(u) - 1).abs() > 1e-2


@pytest.mark.parametrize("bits", [2, 3])
def test_the_mean_of_the_weights_varies_less_than_that_of_independent_draws(bits):
    """Exact second moments by the same enumeration; for independent draws Var/K."""
    u, probability = enumerated(small_table(bits, 2), bits)
    w = density(u)
    mean = (w.mean(0) * probability).sum()
    variance = (w.mean(0).square() * probability).sum() - mean**2
    independent = ((w.square() * probability).sum(1) - 1).mean() / len(u)
    assert variance < independent / 3


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_the_drawn_points_are_the_enumerated_ones(dtype):
    """One set of shifts of the public draws, taken back: what is left is the Sobol table, for every datum the same."""
    bits = 23 if dtype == torch.float32 else 30
    q = QuasiRandom(Uniform(torch.zeros(5, 3, dtype=dtype), 1.0))
    words = (q.rsample((16,)).double() * 2**bits).long()
    undone = words ^ words[:1]
    table = (torch.quasirandom.SobolEngine(1).draw(16, dtype=DOUBLE) * 2**bits).long()
    wrong = (undone != table.view(16, 1, 1)).double().mean()
    # A fraction that rounds up to the next word, which float32 does in its upper half, is no error.
    assert wrong == 0 if dtype == DOUBLE else wrong < 0.6
    near = (undone - table.view(16, 1, 1)).abs().double().quantile(0.2)
    assert near == 0


def kolmogorov(u):
    """sqrt(n) times the largest distance of the empirical distribution function from the uniform one."""
    u, n = u.flatten().sort().values, u.numel()
    steps = torch.arange(n + 1, dtype=u.dtype) / n
    return math.sqrt(n) * torch.maximum((u - steps[:-1]).max(), (steps[1:] - u).max())


@pytest.mark.parametrize("row", [0, 5, 30])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_each_draw_is_normal_over_data(row, dtype):
    """Kolmogorov-Smirnov over 40 000 data: false-fail rate 1e-6 (limit 2.7); sees a distance of .014."""
    zero = torch.zeros(40_000, dtype=dtype)
    z = QuasiRandom(Normal(zero, 1.0)).rsample((31,))[row]
    assert kolmogorov(torch.special.ndtr(z.double())) < 2.7


def test_data_and_dimensions_are_independent_of_each_other():
    """Correlations over 20 000 pairs of neighbours: 5 standard errors, 6e-7 each; sees a correlation of .036."""
    q = QuasiRandom(Independent(Normal(torch.zeros(20_000, 2, 3), 1.0), 2))
    z = q.rsample((8,))
    pairs = [(z[:, :, 0, 0], z[:, :, 0, 1]), (z[:, :, 0, 2], z[:, :, 1, 0]), (z[:, :-1, 1, 1], z[:, 1:, 1, 1])]
    for a, b in pairs:
        for k in (0, 3, 7):
            assert (a[k] * b[k]).mean().abs() < 5 / math.sqrt(20_000)


def test_the_points_of_one_datum_are_stratified():
    """Of 2^m points exactly one lies in each of 2^m equal parts, in every dimension of every datum."""
    q = QuasiRandom(Independent(Normal(torch.zeros(7, 20, dtype=DOUBLE), 1.0), 1))
    cells = (torch.special.ndtr(q.rsample((64,))) * 64).long().sort(0).values
    assert (cells == torch.arange(64).view(-1, 1, 1)).all()


def leaf(*values):
    return torch.tensor(values, dtype=DOUBLE, requires_grad=True)


LOC, SCALE = (0.3, -0.5, 1.0), (0.5, 1.5, 2.0)
TRIL = ((1.0, 0.0, 0.0), (0.5, 0.7, 0.0), (-0.3, 0.2, 1.1))
FACTOR = ((1.0,), (0.4,), (-0.7,))

DISTRIBUTIONS = {
    "normal": ((LOC, SCALE), lambda a, b: Independent(Normal(a, b), 1)),
    "full": ((LOC, TRIL), lambda a, b: MultivariateNormal(a, scale_tril=b)),
    "low rank": ((LOC, FACTOR, SCALE), LowRankMultivariateNormal),
    "log-normal": ((LOC, SCALE), lambda a, b: Independent(LogNormal(a, 0.3 * b), 1)),
    "laplace": ((LOC, SCALE), lambda a, b: Independent(Laplace(a, b), 1)),
    "affine": (
        (LOC, SCALE),
        lambda a, b: TransformedDistribution(
            Independent(Laplace(torch.zeros_like(a), 1.0), 1), AffineTransform(a, b, event_dim=1)
        ),
    ),
}
"""Parameters, and the distribution of three dimensions made of them."""


def made(name, batch=()):
    values, make = DISTRIBUTIONS[name]
    parameters = [leaf(*value) for value in values]
    return make(*parameters).expand(batch), parameters


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_moments_are_the_distributions(name):
    """4096 points in each of 30 randomisations, against as many pairs of independent draws: 5 standard errors."""
    with torch.no_grad():
        d, _ = made(name, (30,))
        z, plain = QuasiRandom(d).rsample((4096,)), d.rsample((65536,))
    for power in (1, 2):
        found, expected = ((x if power == 1 else outer(x)).mean(0) for x in (z, plain))
        error = (found.var(0) + expected.var(0)).sqrt() / 30**0.5
        assert ((found.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    # Sixteen times fewer points, and their mean is nearer all the same.
    assert (z.mean(0).std(0) < plain.mean(0).std(0)).all()


def outer(z):
    return z.unsqueeze(-1) * z.unsqueeze(-2)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_draws_carry_the_path_of_their_parameters(name):
    """Against finite differences at the same random shifts."""

    def size(d):
        torch.manual_seed(3)
        return QuasiRandom(d).rsample((8,)).square().sum()

    d, parameters = made(name)
    found = torch.autograd.grad(size(d), parameters)
    for i, slope in enumerate(found):
        first = tuple(0 for _ in slope.shape)
        sizes = []
        for step in (1e-6, -1e-6):
            moved = [parameter.detach().clone() for parameter in parameters]
            moved[i][first] += step
            sizes.append(size(DISTRIBUTIONS[name][1](*moved)).item())
        assert slope[first].item() == pytest.approx((sizes[0] - sizes[1]) / 2e-6, rel=1e-6, abs=1e-7)


def gaps(dimensions, count, data, dtype=DOUBLE):
    """Gaps of IWAE of independent and of quasi-random draws, ``(data)`` each: N(0, I) from N(s, 1.2²), |s| = 1.

    As E[mean w] = 1 for both, E[mean w - 1 - log mean w] is the gap too, and varies by far less.
    """
    shift = torch.full((data, dimensions), dimensions**-0.5, dtype=dtype)
    q = Independent(Normal(shift, 1.2), 1)

    def log_joint(z):
        return Normal(0.0, 1.0).log_prob(z).sum(-1)

    with torch.no_grad():
        plain = iw.estimate(log_joint, q, num_samples=count).value
        even = iw.estimate(log_joint, QuasiRandom(q), gradient=iw.Reparameterized(), num_samples=count).value
    return plain.expm1() - plain, even.expm1() - even


@pytest.mark.parametrize(
    ("dimensions", "count", "data"),
    [(1, 16, 4_000), (2, 16, 4_000), (3, 32, 4_000), (5, 16, 20_000), (5, 64, 4_000), (10, 64, 8_000)],
)
def test_the_gap_is_a_quarter_or_less_in_few_dimensions(dimensions, count, data):
    plain, even = gaps(dimensions, count, data)
    error = (even.std() + 0.25 * plain.std()) / data**0.5
    assert even.mean() + 3 * error < 0.25 * plain.mean()


@pytest.mark.parametrize("count", [64, 256])
@pytest.mark.parametrize("dimensions", [20, 50])
def test_the_gap_is_never_above_that_of_independent_draws(dimensions, count):
    """Three standard errors of the difference; 1 000 data."""
    plain, even = gaps(dimensions, count, 1_000, torch.float32)
    error = (plain.var() + even.var()).sqrt() / 1_000**0.5
    assert even.mean() < plain.mean() + 3 * error


def test_float32_normals_are_symmetric_and_finite():
    """A million draws and both ends of the words, forced: ±5.4."""
    half = 2**22
    ends = torch.tensor([-half, half - 1], dtype=torch.int32)
    z = quasi_random._normal(ends, torch.tensor([1e-9, 1.0]), half)
    assert z.isfinite().all()
    assert z[0] == -z[1]
    assert 5.3 < z[1] < 5.5


def test_uniforms_never_reach_an_end():
    half = 2**22
    u = quasi_random._uniform(torch.tensor([-half, half - 1], dtype=torch.int32), torch.tensor([2.0**-24, 1.0]), half)
    assert u[0] > 0
    assert u[1] < 1


def test_the_engine_sees_dependent_draws_made_in_one_call():
    q = QuasiRandom(Normal(torch.zeros(3), 1.0))
    log_joint, view = q.extend(torch.sum)
    assert log_joint is torch.sum
    assert not view.independent
    assert view.samples_per_call is None
    assert view.fixed_support
    assert view.reparameterized is True


def test_the_reparameterised_gradient_is_that_of_the_value():
    """The total derivative of IWAE along the draws, against finite differences at the same random shifts."""
    loc = leaf(0.4, -0.2)

    def value(at):
        torch.manual_seed(5)
        q = QuasiRandom(Normal(at, 0.7))
        found = iw.estimate(lambda z: Normal(0.0, 1.0).log_prob(z), q, gradient=iw.Reparameterized(), num_samples=16)
        return found.value.sum()

    (slope,) = torch.autograd.grad(value(loc), loc)
    step = torch.tensor([1e-6, 0.0], dtype=DOUBLE)
    with torch.no_grad():
        expected = (value(loc + step) - value(loc - step)) / 2e-6
    assert slope[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_global_random_state_decides_the_draws_and_the_table_takes_none():
    q = QuasiRandom(Normal(torch.zeros(4), 1.0))
    torch.manual_seed(1)
    first = q.rsample((5,))
    quasi_random._made_table.cache_clear()
    torch.manual_seed(1)
    assert (q.rsample((5,)) == first).all()
    assert (q.rsample((5,)) != first).any()


def test_ranks_draw_rows_of_one_table():
    """Two halves from generators in the same state are the whole."""
    q = QuasiRandom(Independent(Normal(torch.zeros(3, 2), 1.0), 1))
    parts = [((16,), 0), ((7,), 0), ((9,), 7)]
    whole, *halves = (q.rsample(*part, generator=torch.Generator().manual_seed(3)) for part in parts)
    assert (torch.cat(halves) == whole).all()


@pytest.fixture
def compiler():
    """Dynamo turns the validation of distributions off, for good; turn it on again."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch._dynamo.reset()
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own doing
@pytest.mark.usefixtures("compiler")
def test_compiles_in_one_graph_to_the_same_draws():
    loc = leaf(0.4, -0.2)

    def size(at):
        d = Independent(Normal(at, 0.7, validate_args=False), 1, validate_args=False)
        return QuasiRandom(d).rsample((16,)).square().sum()

    sizes = []
    for chosen in (size, torch.compile(size, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(6)
        sizes.append(chosen(loc))
    assert sizes[0].item() == sizes[1].item()


def test_half_precision_is_drawn_in_float32():
    z = QuasiRandom(Normal(torch.zeros(2000, dtype=torch.bfloat16), 1.0)).rsample((16,))
    assert z.dtype == torch.bfloat16
    assert z.float().var() == pytest.approx(1.0, abs=0.02)


class TestRefusals:
    def test_no_distribution(self):
        with pytest.raises(TypeError, match="expected a torch Distribution; got Tensor"):
            QuasiRandom(torch.zeros(3))

    def test_no_known_map(self):
        with pytest.raises(TypeError, match="known map of uniform numbers; got Gamma"):
            QuasiRandom(Gamma(torch.ones(2), 1.0))

    def test_own_rule_of_drawing(self):
        class Shifted(Normal):
            def rsample(self, sample_shape=()):
                return super().rsample(sample_shape) + 1

        # An icdf is known all the same, but it is not what this class draws.
        with pytest.raises(TypeError, match="known map"):
            QuasiRandom(Shifted(0.0, 1.0))

    def test_too_many_dimensions(self):
        with pytest.raises(ValueError, match="at most 21201 dimensions per datum"):
            QuasiRandom(Independent(Normal(torch.zeros(21_202), 1.0), 1))

    def test_heavy_tails_are_taken(self):
        z = QuasiRandom(Cauchy(torch.zeros(50, dtype=DOUBLE), 1.0)).rsample((1024,))
        assert (z.abs() < 1).double().mean() == pytest.approx(0.5, abs=1e-12)
