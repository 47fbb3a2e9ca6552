"""Values and coefficients where the naive formula loses its digits, and each bound against an independent reference."""

import math

import pytest
import torch

import iwbounds as iw
from tests.bounds.catalogue import CASES
from tests.registry import BOUNDS

INF = math.inf


# An independent reference: each bound by the formula of its docstring, in plain torch and float64, by autograd.


def _tempered(x, beta):
    return ((beta * x).softmax(0) * x).sum(0)


def _left_out(x, order):
    from tests.oracles.subsets import jackknife

    return jackknife(x, order)


def _subsets(x, size):
    from tests.oracles.subsets import subset_average

    return subset_average(x, size)


def _lme(x):
    return x.exp().mean(0).log()


REFERENCES = {
    "elbo": (iw.ELBO(), lambda x: x.mean(0)),
    "iwae": (iw.IWAE(), _lme),
    "renyi(0.3)": (iw.Renyi(0.3), lambda x: _lme(0.7 * x) / 0.7),
    "renyi(2)": (iw.Renyi(2.0), lambda x: -_lme(-x)),
    "renyi(-1)": (iw.Renyi(-1.0), lambda x: _lme(2 * x) / 2),
    "renyi(1 - 1e-7)": (iw.Renyi(1 - 1e-7), lambda x: x.mean(0) + 0.5e-7 * x.var(0, unbiased=False)),
    "ciwae(0.3)": (iw.CIWAE(0.3), lambda x: 0.3 * x.mean(0) + 0.7 * _lme(x)),
    "miwae(2)": (iw.MIWAE(2), lambda x: (_lme(x[:3]) + _lme(x[3:])) / 2),
    "jackknife(0)": (iw.Jackknife(0), _lme),
    "jackknife(1)": (iw.Jackknife(1), lambda x: _left_out(x, 1)),
    "jackknife(2)": (iw.Jackknife(2), lambda x: _left_out(x, 2)),
    "jackknife(3)": (iw.Jackknife(3), lambda x: _left_out(x, 3)),
    "u(2)": (iw.UStatistic(2), lambda x: _subsets(x, 2)),
    "u(4)": (iw.UStatistic(4), lambda x: _subsets(x, 4)),
    "tvo-left": (iw.TVO([0, 0.2, 1]), lambda x: 0.2 * x.mean(0) + 0.8 * _tempered(x, 0.2)),
    "tvo-right": (iw.TVO([0, 0.2, 1], side="right"), lambda x: 0.2 * _tempered(x, 0.2) + 0.8 * _tempered(x, 1.0)),
    "tvo-trapezoid": (
        iw.TVO([0, 0.2, 1], side="trapezoid"),
        lambda x: 0.1 * x.mean(0) + 0.5 * _tempered(x, 0.2) + 0.4 * _tempered(x, 1.0),
    ),
    "eubo": (iw.EUBO(), lambda x: _tempered(x, 1.0)),
    "cubo(2)": (iw.CUBO(2), lambda x: _lme(2 * x) / 2),
    "stopped sumo": (
        iw.SUMO().stopped_at(torch.full((4,), 3)),
        lambda x: _lme(x[:1]) + sum(k * (_lme(x[: k + 1]) - _lme(x[:k])) for k in (1, 2, 3)),
    ),
}


@pytest.mark.parametrize(("bound", "reference"), REFERENCES.values(), ids=REFERENCES)
def test_value_gradient_and_path_are_those_of_the_formula_by_autograd(bound, reference):
    log_w = 1.5 * torch.randn(6, 4, dtype=torch.float64)
    leaf = log_w.clone().requires_grad_()
    value = reference(leaf)
    (c,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    rows = [torch.autograd.grad(row.sum(), leaf, retain_graph=True, allow_unused=True)[0] for row in c + 0 * leaf]
    h = torch.stack([row[k] for k, row in enumerate(rows)])
    found = bound.differentiate(log_w, path=True)
    tolerance = {"rtol": 1e-9, "atol": 1e-11}
    for result, expected in zip(found, (value, c, c - h), strict=True):
        torch.testing.assert_close(result, expected.detach(), **tolerance)
    torch.testing.assert_close(bound(log_w), value.detach(), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_a_bounded_ratio_is_stated_where_it_is_true(name):
    """c ≥ 0 and |c − h| ≤ const c over weights of every range, dead ones included."""
    bound = BOUNDS[name]()
    if not bound.bounded_ratio:
        return
    log_w = torch.randn(6, 2000, dtype=torch.float64) * torch.logspace(-3, 2, 2000, dtype=torch.float64)
    log_w[torch.rand(log_w.shape) < 0.1] = -INF
    _, c, path = bound.differentiate(log_w, path=True)
    assert (c >= 0).all()
    assert (path.abs() <= 3 * c + 1e-300).all()


def test_which_bounds_have_a_bounded_ratio():
    true = (iw.ELBO(), iw.IWAE(), iw.Renyi(0.5), iw.Renyi(-3.0), iw.CUBO(2), iw.CIWAE(0.5), iw.MIWAE(2))
    for bound in (*true, iw.UStatistic(2), iw.IncompleteUStatistic(2), iw.Jackknife(0)):
        assert bound.bounded_ratio
        assert iw.DReG().bounded_ratio(bound)
    false = (iw.Jackknife(1), iw.TVO(3), iw.TVO(3, side="right"), iw.EUBO(), iw.SUMO(), iw.Renyi(INF))
    for bound in (*false, iw.SUMO().stopped_at(torch.tensor(2)), BOUNDS["user's own"]()):
        assert not bound.bounded_ratio
        assert not iw.DReG().bounded_ratio(bound)
        assert iw.STL().bounded_ratio(bound)
        assert iw.Reparameterized().bounded_ratio(bound)
    assert not iw.VIMCO().bounded_ratio(iw.IWAE())


# Rényi's extremes.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [-1e8, -1e39, -1e300, 1e8, 1e39, 1e300])
def test_path_of_renyi_at_one_sample_is_one(alpha, dtype):
    found = iw.Renyi(alpha).differentiate(torch.tensor([[0.7, -3.0]], dtype=dtype), path=True)
    assert found.gradient.tolist() == [[1.0, 1.0]]
    assert found.path.tolist() == [[1.0, 1.0]]
    assert torch.equal(iw.Renyi(alpha)(torch.tensor([[0.7, -3.0]], dtype=dtype)), found.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("alpha", "extreme"), [(1e39, 0), (1e300, 0), (-1e39, 2), (-1e300, 2)])
def test_renyi_of_a_huge_order_is_the_extreme(alpha, extreme, dtype):
    log_w = torch.tensor([-1.0, 0.5, 2.0], dtype=dtype)
    found = iw.Renyi(alpha).differentiate(log_w, path=True)
    assert found.value == log_w[extreme]
    assert iw.Renyi(alpha)(log_w) == log_w[extreme]
    assert torch.equal(found.gradient, torch.eye(3, dtype=dtype)[extreme])
    assert not found.path.isnan().any()
    leaf = log_w.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(iw.Renyi(alpha)(leaf), leaf)[0], found.gradient)


def test_renyi_of_a_huge_order_and_a_dead_weight():
    log_w = torch.tensor([-INF, 0.5, 2.0])
    assert iw.Renyi(1e39)(log_w) == -INF
    assert iw.Renyi(-1e39)(log_w) == 2
    assert (iw.Renyi(1e39).differentiate(log_w).gradient == 0).all()


@pytest.mark.parametrize("alpha", [1 - 1e-3, 1 - 1e-6, 1 - 1e-7, 1 - 1e-12, 1 + 1e-7])
@pytest.mark.parametrize("geometric", [False, True], ids=["arithmetic", "geometric"])
def test_vimco_with_renyi_near_one_is_vimco_with_the_elbo(alpha, geometric):
    """To the 1e-7 of float32 and the distance of α from 1."""
    log_w = torch.randn(5, 40)
    found = iw.VIMCO(geometric).coefficients(iw.Renyi(alpha), log_w).score
    expected = iw.VIMCO(geometric).coefficients(iw.ELBO(), log_w.double()).score
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 + 20 * abs(1 - alpha))


@pytest.mark.parametrize("alpha", [-1e8, -7.0, -1.0, 0.5, 1 - 1e-7, 1.5, 4.0, 1e8])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 30.0, 1000.0])
def test_replacing_each_weight_of_a_power_mean_keeps_its_digits(alpha, spread):
    """float32 against one evaluation in float64 for each replaced weight."""
    log_w, fill = spread * torch.randn(7, 30), spread * torch.randn(7, 30)
    log_w[2, 5], fill[3, 6], log_w[1:, 7], fill[:, 8] = -INF, -INF, -INF, -INF
    found = iw.Renyi(alpha).replace_each(log_w, fill)
    expected = iw.Bound.replace_each(iw.Renyi(alpha), log_w.double(), fill.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6 * spread)


# VIMCO where baselines are infinite.


def _brute_force(bound, log_w, geometric):
    """The score by one evaluation for each replaced weight; 0 where the bound or the baseline is infinite."""
    value, scores = bound(log_w), []
    c = bound.differentiate(log_w).gradient
    for k in range(len(log_w)):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        replaced = log_w.clone()
        replaced[k] = others.mean(0) if geometric else others.logsumexp(0) - math.log(len(others))
        raw = value - bound(replaced) - c[k]
        scores.append(torch.where(value.isneginf() | raw.isinf(), 0.0, raw))
    return torch.stack(scores)


@pytest.mark.slow
@pytest.mark.parametrize("geometric", [False, True], ids=["arithmetic", "geometric"])
@pytest.mark.parametrize("living", [0, 1, 2, 3])
@pytest.mark.parametrize("name", [name for name in BOUNDS if not name.startswith("miwae")])
def test_vimco_with_few_living_weights_is_brute_force_and_never_nan(name, living, geometric):
    bound, log_w = BOUNDS[name](), torch.randn(5, 3, dtype=torch.float64)
    log_w[living:, 0] = -INF
    log_w[: 5 - living, 1] = -INF
    found = iw.VIMCO(geometric).coefficients(bound, log_w)
    assert not found.score.isnan().any()
    torch.testing.assert_close(found.score, _brute_force(bound, log_w, geometric), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bound", [iw.EUBO(), iw.TVO(3, side="right")], ids=repr)
def test_vimco_of_a_tempered_mean_with_one_living_weight_has_no_nan(bound, dtype):
    log_w = torch.tensor([-INF, 0.7, -INF], dtype=dtype)
    assert iw.VIMCO().coefficients(bound, log_w).score.isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_replacing_the_only_weight(case):
    """K = 1 has no others: the bound is that of the replacement."""
    if case.bound.min_samples > 1:
        return
    log_w = torch.randn(1, 3, dtype=torch.float64)
    torch.testing.assert_close(case.bound.replace_each(log_w, log_w + 1), case.bound(log_w + 1).unsqueeze(0))


# SUMO far out.


@pytest.mark.parametrize("options", [{}, {"alpha": 1, "decay": 1e-6}, {"alpha": 3, "decay": 0.01}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sumo_stopped_far_out_is_finite_and_stops_at_what_can_be_drawn(options, dtype):
    sumo, count = iw.SUMO(**options), 12_000
    log_w = torch.randn(count, 2, dtype=dtype)
    last = int((sumo.survival(count) >= 2.0**-53).sum())
    assert last < count - 1
    far, reachable = sumo.stopped_at(torch.full((2,), count)), sumo.stopped_at(torch.full((2,), last))
    for found, expected in zip(
        far.differentiate(log_w, path=True), reachable.differentiate(log_w, path=True), strict=True
    ):
        assert found.isfinite().all()
        assert torch.equal(found, expected)


def test_sumo_draws_no_stop_beyond_the_cut():
    """The smallest uniform number, 2^-53, gives a T of the least survival that still counts."""
    for sumo in (iw.SUMO(), iw.SUMO(alpha=1, decay=0.5), iw.SUMO(start=4, alpha=1, decay=1e-3)):
        u = torch.tensor(2.0**-53, dtype=torch.float64)
        geometric = sumo.alpha + math.log(sumo.alpha * u) / math.log(sumo.decay)
        stop = sumo.start - 1 + math.floor(geometric + 1e-9)
        assert sumo.survival(stop + 1)[stop - 1] >= 2.0**-53 * (1 - 1e-9)


def test_sumo_gives_value_and_derivatives_of_one_stop():
    """500 data of the same weights: c and c − h belong to the value's own T, so that equal values have equal c."""
    torch.manual_seed(1)
    log_w = torch.randn(9, 1, dtype=torch.float64).expand(9, 500)
    value, c, path = iw.SUMO().differentiate(log_w, path=True)
    stops = [iw.SUMO().stopped_at(torch.full((1,), stop)) for stop in range(1, 9)]
    table = [bound.differentiate(log_w[:, :1], path=True) for bound in stops]
    values = torch.cat([entry.value for entry in table])
    which = (value.unsqueeze(1) - values).abs().argmin(1)
    assert len(which.unique()) > 3
    torch.testing.assert_close(value, values[which])
    torch.testing.assert_close(c, torch.cat([entry.gradient for entry in table], 1)[:, which])
    torch.testing.assert_close(path, torch.cat([entry.path for entry in table], 1)[:, which])
    for gradient in (iw.Reparameterized(), iw.DReG(), iw.VIMCO(), iw.ScoreFunction(), iw.Wake()):
        torch.manual_seed(2)
        value, coefficients = gradient.evaluate(iw.SUMO(), log_w)
        which = (value.unsqueeze(1) - values).abs().argmin(1)
        torch.testing.assert_close(coefficients.model, torch.cat([entry.gradient for entry in table], 1)[:, which])
