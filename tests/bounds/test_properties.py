"""What every bound promises: derivatives, symmetries, dead weights, NaN, dtypes, shapes."""

import copy

import pytest
import torch

import iwbounds as iw
from tests.bounds.catalogue import CASES, Case, K
from tests.oracles.autograd import autograd_derivatives

STOPS = torch.tensor([1, 2, 3, 5, 9])
BATCH = len(STOPS)
SUMO_CASES = [
    Case(iw.SUMO().stopped_at(STOPS), K, symmetric=False),
    Case(iw.SUMO(start=3, alpha=2, decay=0.5).stopped_at(STOPS + 2), K, symmetric=False),
]
ALL = CASES + SUMO_CASES
every_case = pytest.mark.parametrize("case", ALL, ids=repr)
symmetric_case = pytest.mark.parametrize("case", [case for case in ALL if case.symmetric], ids=repr)


def _weights(dtype=torch.float64, scale=1.5):
    return scale * torch.randn(K, BATCH, generator=torch.Generator().manual_seed(3), dtype=dtype)


@every_case
def test_closed_derivatives_are_those_of_autograd(case):
    log_w = _weights()
    c, h = case.bound.derivatives(log_w)
    expected_c, expected_h = autograd_derivatives(case.bound, log_w)
    torch.testing.assert_close(c, expected_c, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(h, expected_h, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(case.bound.differentiate(log_w).gradient, c, rtol=1e-14, atol=1e-15)
    path_c, c_minus_h = case.bound.differentiate(log_w, path=True)[1:]
    torch.testing.assert_close(path_c, c, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(c_minus_h, c - h, rtol=1e-12, atol=1e-12)


@every_case
def test_what_is_evaluated_together_is_what_is_evaluated_apart(case):
    log_w = _weights()
    apart = (case.bound(log_w), *case.bound.differentiate(log_w, path=True)[1:])
    for found, expected in zip(case.bound.differentiate(log_w, path=True), apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
    value, c, path = case.bound.differentiate(log_w)
    torch.testing.assert_close(value, apart[0], rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(c, apart[1], rtol=1e-14, atol=1e-15)
    assert path is None


@pytest.mark.slow
@every_case
def test_value_is_differentiable_twice_against_finite_differences(case):
    log_w = _weights().requires_grad_()
    torch.autograd.gradcheck(case.bound, log_w, fast_mode=True)
    torch.autograd.gradgradcheck(case.bound, log_w, fast_mode=True)


@every_case
def test_adding_a_constant_to_the_log_weights_adds_it_to_the_bound(case):
    log_w, shift = _weights(), torch.tensor([-1e3, 0.5, 1e2, 1e4, -3.0], dtype=torch.float64)
    torch.testing.assert_close(case.bound(log_w + shift), case.bound(log_w) + shift, rtol=1e-13, atol=1e-11)
    torch.testing.assert_close(
        case.bound.differentiate(log_w + shift).gradient,
        case.bound.differentiate(log_w).gradient,
        rtol=1e-9,
        atol=1e-11,
    )


@every_case
def test_gradient_adds_up_to_one(case):
    total = case.bound.differentiate(_weights()).gradient.sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


@symmetric_case
def test_the_order_of_the_samples_is_irrelevant(case):
    log_w, order = _weights(), torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(case.bound(log_w[order]), case.bound(log_w), rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(
        case.bound.differentiate(log_w[order]).gradient, case.bound.differentiate(log_w).gradient[order]
    )


@pytest.mark.parametrize(
    "bound",
    [
        iw.CIWAE(0.3),
        iw.MIWAE(1),
        iw.Jackknife(0),
        iw.UStatistic(1),
        iw.IncompleteUStatistic(1),
        iw.TVO(4),
        iw.TVO(4, side="right"),
        iw.TVO(4, side="trapezoid"),
        iw.EUBO(),
        iw.CUBO(2),
        iw.SUMO(),
    ],
    ids=repr,
)
def test_one_sample_is_its_own_bound(bound):
    log_w = _weights()[:1]
    torch.testing.assert_close(bound(log_w), log_w[0], rtol=1e-15, atol=0)
    torch.testing.assert_close(bound.differentiate(log_w).gradient, torch.ones_like(log_w), rtol=1e-14, atol=0)


@every_case
def test_nan_stays_in_its_own_datum(case):
    log_w = _weights()
    broken = log_w.clone()
    broken[2, 1] = torch.nan
    others = [0, 2, 3, 4]
    assert case.bound(broken)[1].isnan() or type(case.bound).__name__ == "StoppedSUMO"
    torch.testing.assert_close(case.bound(broken)[others], case.bound(log_w)[others], rtol=1e-14, atol=1e-14)
    for found, expected in zip(
        case.bound.differentiate(broken, path=True)[1:], case.bound.differentiate(log_w, path=True)[1:], strict=True
    ):
        torch.testing.assert_close(found[:, others], expected[:, others], rtol=1e-13, atol=1e-15)


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("dead", range(1, K + 1))
def test_dead_weights_give_minus_infinity_where_needed_and_the_limit_elsewhere(case, dead):
    log_w = _weights()
    log_w[K - dead :, 0] = -torch.inf
    leaf = log_w.clone().requires_grad_()
    value = case.bound(leaf)
    (by_autograd,) = torch.autograd.grad(value.sum(), leaf)
    c, c_minus_h = case.bound.differentiate(log_w, path=True)[1:]
    torch.testing.assert_close(by_autograd, c, rtol=1e-11, atol=1e-12)
    if dead >= case.fatal:
        assert value[0] == -torch.inf
        assert (c[:, 0] == 0).all()
        assert (c_minus_h[:, 0] == 0).all()
        return
    nearly = log_w.masked_fill(log_w.isneginf(), -3000.0)
    torch.testing.assert_close(value, case.bound(nearly), rtol=1e-12, atol=1e-12)
    for found, expected in zip((c, c_minus_h), case.bound.differentiate(nearly, path=True)[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@every_case
def test_second_derivatives_survive_dead_weights(case):
    log_w = _weights()
    log_w[4:, 0] = -torch.inf
    c, h = autograd_derivatives(case.bound, log_w)
    found_c, found_h = case.bound.derivatives(log_w)
    torch.testing.assert_close(found_c, c, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found_h, h, rtol=1e-11, atol=1e-11)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_promoted(case, dtype):
    log_w = _weights().to(dtype)
    exact = log_w.double()
    assert case.bound(log_w).dtype == torch.float32
    torch.testing.assert_close(case.bound(log_w).double(), case.bound(exact), rtol=2e-6, atol=2e-6)
    for found, expected in zip(case.bound.derivatives(log_w), case.bound.derivatives(exact), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_batches_of_any_shape_are_bounds_of_each_datum(case):
    log_w = _weights()
    cube = log_w.view(K, 1, BATCH).expand(K, 2, BATCH)
    torch.testing.assert_close(case.bound(cube), case.bound(log_w).expand(2, BATCH), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        case.bound.differentiate(cube).gradient[:, 1], case.bound.differentiate(log_w).gradient, rtol=1e-13, atol=1e-15
    )
    torch.testing.assert_close(case.bound(log_w[:, 0]), case.bound(log_w)[0], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        case.bound.differentiate(log_w[:, 0]).gradient, case.bound.differentiate(log_w).gradient[:, 0]
    )
    assert case.bound(log_w[:, :0]).shape == (0,)
    assert [part.shape for part in case.bound.derivatives(log_w[:, :0])] == [(K, 0), (K, 0)]


@every_case
@pytest.mark.parametrize("geometric", [False, True], ids=["arithmetic", "geometric"])
def test_replacing_each_weight_agrees_with_replacing_it_by_hand(case, geometric):
    log_w, fill = _weights(), _weights().flip(0)
    by_hand = iw.Bound.replace_each(case.bound, log_w, fill)
    torch.testing.assert_close(case.bound.replace_each(log_w, fill), by_hand, rtol=1e-12, atol=1e-12)
    if not isinstance(case.bound, iw.MIWAE):
        default = iw.Bound.leave_one_out(case.bound, log_w, geometric)
        torch.testing.assert_close(case.bound.leave_one_out(log_w, geometric), default, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometric", [False, True], ids=["arithmetic", "geometric"])
def test_miwae_leaves_out_within_the_group(geometric):
    log_w = _weights()[:, 0]
    log_w[4] = -torch.inf
    found = iw.MIWAE(2).leave_one_out(log_w, geometric)
    for k in range(K):
        group = [j for j in range(3 * (k // 3), 3 * (k // 3) + 3) if j != k]
        replaced = log_w.clone()
        replaced[k] = log_w[group].mean() if geometric else log_w[group].exp().mean().log()
        torch.testing.assert_close(found[k], iw.MIWAE(2)(replaced), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bound", [iw.TVO(3), iw.TVO(3, side="right"), iw.EUBO()], ids=repr)
@pytest.mark.parametrize("kind", ["dominating", "dead-others", "dead-fill"])
def test_replacing_each_weight_of_a_tempered_mean_holds_for_extreme_weights(bound, kind):
    log_w, fill = _weights(), _weights().flip(0)
    if kind == "dominating":
        log_w[2] += 200.0
    elif kind == "dead-others":
        log_w[1:] = -torch.inf
    else:
        fill[3] = -torch.inf
    expected = iw.Bound.replace_each(bound, log_w, fill)
    torch.testing.assert_close(bound.replace_each(log_w, fill), expected, rtol=1e-12, atol=1e-12)


def test_groups_are_consecutive_and_normalised_over_their_own_samples():
    """All axes of different size: 3 groups of 4 samples, batch 2 x 5."""
    log_w = torch.randn(12, 2, 5, dtype=torch.float64)
    groups = [log_w[0:4], log_w[4:8], log_w[8:12]]
    expected = sum(group.exp().mean(0).log() for group in groups) / 3
    torch.testing.assert_close(iw.MIWAE(3)(log_w), expected)
    weights = torch.cat([group.softmax(0) for group in groups]) / 3
    torch.testing.assert_close(iw.MIWAE(3).differentiate(log_w).gradient, weights)


def test_the_ends_of_a_family_are_their_namesakes():
    log_w = _weights()
    elbo, iwae = iw.ELBO()(log_w), iw.IWAE()(log_w)
    for bound in (iw.CIWAE(1), iw.MIWAE(K), iw.UStatistic(1), iw.TVO(1), iw.IncompleteUStatistic(1)):
        torch.testing.assert_close(bound(log_w), elbo, rtol=1e-14, atol=1e-14)
    for bound in (iw.CIWAE(0), iw.MIWAE(1), iw.UStatistic(K), iw.Jackknife(0), iw.CUBO(1), iw.IncompleteUStatistic(K)):
        torch.testing.assert_close(bound(log_w), iwae, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(iw.TVO(1, side="right")(log_w), iw.EUBO()(log_w), rtol=1e-15, atol=0)
    torch.testing.assert_close(iw.CUBO(3)(log_w), iw.Renyi(-2.0)(log_w), rtol=1e-15, atol=0)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_ciwae_at_its_ends_is_its_namesake_exactly(beta):
    log_w, namesake = _weights(), iw.ELBO() if beta else iw.IWAE()
    log_w[0, 0] = -torch.inf
    assert torch.equal(iw.CIWAE(beta)(log_w), namesake(log_w))
    for found, expected in zip(iw.CIWAE(beta).derivatives(log_w), namesake.derivatives(log_w), strict=True):
        assert torch.equal(found, expected)


def test_trapezoid_is_the_mean_of_both_sides():
    log_w = _weights()
    partition = iw.log_spaced_partition(5)
    sides = [iw.TVO(partition, side=side)(log_w) for side in ("left", "right", "trapezoid")]
    torch.testing.assert_close(sides[2], (sides[0] + sides[1]) / 2)
    fine = iw.TVO(2000, side="trapezoid")(log_w)
    torch.testing.assert_close(fine, iw.IWAE()(log_w), rtol=0, atol=1e-6)


def test_exp_space_estimate_is_the_power_of_cubo_and_unbiased():
    log_w, scale = _weights(), torch.tensor(0.7, dtype=torch.float64)
    estimate = iw.CUBO(2).exp_space(log_w, log_scale=scale)
    torch.testing.assert_close(estimate, (2 * (iw.CUBO(2)(log_w) - scale)).exp())
    # Unbiased: a mean over samples, so that its average over two halves is its value on the whole.
    halves = [iw.CUBO(2).exp_space(half, log_scale=scale) for half in log_w.chunk(2)]
    torch.testing.assert_close(sum(halves) / 2, estimate)


@every_case
def test_bounds_are_immutable_and_survive_a_copy(case):
    log_w = _weights()
    assert torch.equal(copy.deepcopy(case.bound)(log_w), case.bound(log_w))
    field = next(iter(vars(case.bound)), "new")
    with pytest.raises(AttributeError):
        setattr(case.bound, field, 1)
