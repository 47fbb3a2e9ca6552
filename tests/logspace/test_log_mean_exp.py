"""Numerics of the log-space reductions: values, gradients and edge cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import iwbounds as iw
from iwbounds.logspace import log_mean_exp_with_weights

REDUCTIONS = {
    "log_mean_exp": iw.log_mean_exp,
    "normalized_weights": iw.normalized_weights,
    "leave_one_out": iw.leave_one_out_log_mean_exp,
}
INF, NAN = math.inf, math.nan


def leave_one_out_oracle(x):
    """One log-sum-exp for each element, in float64."""
    x = x.double()
    rows = [torch.cat([x[:k], x[k + 1 :]]) for k in range(x.shape[0])]
    return torch.stack([row.logsumexp(0) - math.log(len(row)) for row in rows])


def test_matches_logsumexp_at_moderate_values():
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(iw.log_mean_exp(x), x.logsumexp(0) - math.log(7), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(iw.log_mean_exp(x, dim=1), x.logsumexp(1) - math.log(5), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("magnitude", [0.0, 1e3, 1e5, 1e7, 1e30, -1e7])
def test_float32_weights_sum_to_one_at_any_magnitude(magnitude):
    x = magnitude + torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    assert (iw.normalized_weights(x).sum(0) - 1).abs().max() < 1e-6
    (grad,) = torch.autograd.grad(iw.log_mean_exp(x).sum(), x)
    assert (grad.sum(0) - 1).abs().max() < 1e-6
    torch.testing.assert_close(grad, iw.normalized_weights(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [0.0, 1e-9, 1e7, -1e30])
def test_the_mean_and_the_weights_together_are_those_of_each_alone(dtype, magnitude):
    """Also of dead rows, dead weights and infinite ones. float32 is reduced in float64: within one rounding."""
    x = (magnitude + torch.randn(6, 5, dtype=torch.float64)).to(dtype)
    x[:, 1], x[2, 2], x[3, 3], x[0, 4] = -INF, -INF, INF, NAN
    before = x.clone()
    value, weights = log_mean_exp_with_weights(x)
    assert value.dtype == weights.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    close = {"rtol": 4 * torch.finfo(value.dtype).eps, "atol": 1e-7 if value.dtype == torch.float32 else 1e-15}
    torch.testing.assert_close(value, iw.log_mean_exp(x), equal_nan=True, **close)
    torch.testing.assert_close(weights, iw.normalized_weights(x), equal_nan=True, **close)
    assert value[1] == -INF
    assert (weights[:, 1] == 0).all()
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


def test_dead_row_gives_minus_infinity_and_no_gradient_and_leaves_its_neighbours_alone():
    x = torch.randn(6, 3)
    x[:, 1] = -INF
    x.requires_grad_()
    value = iw.log_mean_exp(x)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert value[1] == -INF
    assert (grad[:, 1] == 0).all()
    alone = x.detach()[:, [0, 2]].requires_grad_()
    value_alone = iw.log_mean_exp(alone)
    assert torch.equal(value[[0, 2]], value_alone)
    assert torch.equal(grad[:, [0, 2]], torch.autograd.grad(value_alone.sum(), alone)[0])


def test_one_dead_weight_among_the_living_counts_as_zero():
    x = torch.tensor([0.0, -INF, 1.0], requires_grad=True)
    value = iw.log_mean_exp(x)
    (grad,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(math.log((1 + math.e) / 3), abs=1e-6)
    assert grad[1] == 0
    assert iw.normalized_weights(x)[1] == 0


def test_plus_infinity_is_plus_infinity_with_nan_gradient_there_alone():
    x = torch.tensor([[0.0, 0.0], [INF, 0.0], [-INF, 0.0]], requires_grad=True)
    value = iw.log_mean_exp(x)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert value[0] == INF
    assert value[1] == 0
    assert grad[1, 0].isnan()
    assert (grad[[0, 2], 0] == 0).all()
    torch.testing.assert_close(grad[:, 1], torch.full((3,), 1 / 3))


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_nan_stays_in_its_row(reduction):
    x = torch.randn(4, 3)
    x[2, 1] = NAN
    found, clean = reduction(x), reduction(x[:, [0, 2]])
    assert torch.equal(found[..., [0, 2]], clean)
    assert found[..., 1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_half_types_are_computed_and_returned_in_float32(reduction, dtype):
    x = (10 * torch.randn(50, 4)).to(dtype)
    found = reduction(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reduction(x.float()))


def test_half_types_neither_overflow_nor_lose_the_sum():
    assert iw.log_mean_exp(torch.zeros(100_000, dtype=torch.float16)) == 0
    x = torch.full((5000,), -1234.0, dtype=torch.bfloat16)
    assert iw.log_mean_exp(x) == x[0].float()


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_close_weights_keep_full_relative_precision(scale, dtype):
    """log(mean(exp)) of values near 1e-8 would be off by 1e-8 itself in float32; the truth is mean + variance / 2."""
    x = scale * torch.randn(50, 20, dtype=torch.float64).to(dtype)
    exact = torch.log1p(torch.expm1(x.double()).mean(0))
    error = (iw.log_mean_exp(x).double() - exact).abs() / scale
    assert error.max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_all_derivatives(reduction):
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reduction, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(reduction, x)


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_vmap_and_layouts_agree_with_the_plain_call(reduction):
    x = torch.randn(3, 6, 5)
    expected = torch.stack([reduction(row) for row in x])
    torch.testing.assert_close(torch.func.vmap(reduction)(x), expected)
    transposed = x[0].T.contiguous().T
    torch.testing.assert_close(reduction(transposed), reduction(x[0]))
    expanded = x[0, :, :1].expand(6, 5)
    torch.testing.assert_close(reduction(expanded), reduction(expanded.contiguous()))


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_empty_batch_is_empty_and_differentiable(reduction):
    x = torch.zeros(4, 0, requires_grad=True)
    found = reduction(x)
    assert found.numel() == 0
    assert torch.autograd.grad(found.sum(), x)[0].shape == (4, 0)


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_no_samples_integers_and_missing_axes_are_refused(reduction):
    with pytest.raises(ValueError, match=r"at least one sample along axis 0; got shape \(0, 3\)"):
        reduction(torch.zeros(0, 3))
    with pytest.raises(TypeError, match=r"floating-point tensor.*torch.int64"):
        reduction(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="got list"):
        reduction([0.0, 1.0])
    with pytest.raises(ValueError, match="axis 0 to reduce; got shape"):
        reduction(torch.tensor(1.0))


@pytest.mark.parametrize("dominance", [20.0, 100.0, 1000.0])
@pytest.mark.parametrize("count", [2, 3, 64])
def test_leave_one_out_with_one_dominating_weight(dominance, count):
    x = torch.randn(count, 10)
    x[count // 2] += dominance
    torch.testing.assert_close(iw.leave_one_out_log_mean_exp(x).double(), leave_one_out_oracle(x), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "row",
    [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [5.0, -INF, 1.0], [-INF, -INF, 3.0], [-INF, 2.0], [-INF, -INF, -INF]],
    ids=str,
)
def test_leave_one_out_with_ties_and_dead_weights(row):
    x = torch.tensor(row, requires_grad=True)
    found = iw.leave_one_out_log_mean_exp(x)
    torch.testing.assert_close(found.double(), leave_one_out_oracle(x.detach()), rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert not grad.isnan().any()
    assert grad.sum().item() == pytest.approx(found.isfinite().sum().item(), abs=1e-5)


def test_leave_one_out_with_plus_infinity():
    found = iw.leave_one_out_log_mean_exp(torch.tensor([[INF, INF], [0.0, INF], [1.0, 0.0]]))
    torch.testing.assert_close(found[:, 0], torch.tensor([math.log((1 + math.e) / 2), INF, INF]))
    assert (found[:, 1] == INF).all()


def test_leave_one_out_needs_two():
    with pytest.raises(ValueError, match="at least 2 samples"):
        iw.leave_one_out_log_mean_exp(torch.zeros(1, 3))


finite = st.floats(-1, 1, width=32)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(finite, min_size=2, max_size=12), st.sampled_from([1e-6, 1.0, 50.0, 1e6]))
def test_leave_one_out_agrees_with_its_oracle(values, scale):
    x = torch.tensor(values, dtype=torch.float64) * scale
    torch.testing.assert_close(iw.leave_one_out_log_mean_exp(x), leave_one_out_oracle(x), rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.one_of(finite, st.just(-INF)), min_size=1, max_size=12),
    st.sampled_from([1e-8, 1.0, 1e6]),
    st.sampled_from([0.0, 1e8, -1e8]),
)
def test_log_mean_exp_lies_between_mean_and_maximum(values, scale, offset):
    x = torch.tensor(values, dtype=torch.float64) * scale + offset
    value, ulp = (
        iw.log_mean_exp(x),
        8 * torch.finfo(x.dtype).eps * x[x.isfinite()].abs().max() if any(map(math.isfinite, values)) else 0.0,
    )
    assert value <= x.max() + ulp
    assert value >= x.mean() - ulp
