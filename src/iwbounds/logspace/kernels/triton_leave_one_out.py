"""Leave-one-out log-mean-exp by the top-2 algorithm, its backward, and the coefficients of VIMCO."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from iwbounds.logspace.kernels.launch import accumulator, launch, tiling
from iwbounds.logspace.kernels.triton_bound import load_log_weights, place
from iwbounds.logspace.kernels.triton_math import finite, log1p, log_mean
from iwbounds.logspace.kernels.triton_rest import load_rest, reduce_rests, rest_of, rest_sum

__all__ = ["launch_leave_one_out", "launch_leave_one_out_backward", "launch_vimco"]


@triton.jit
def _others(x, k, top, second, rest, index):
    """exp(x − top), the log of the sum of the others' exponentials about ``top``, and which entry is the arg-max."""
    none = -float("inf")
    e = tl.where((top == float("inf"))[None, :], 0.0, tl.exp(tl.where(x == x, x, none) - finite(top)[None, :]))
    without = tl.maximum(rest_sum(top, second, rest)[None, :] - e, 0.0)
    is_top = k[:, None] == index[None, :]
    of_rest = second - finite(top) + tl.log(rest)
    return e, tl.where(is_top, of_rest[None, :], log1p(without)), is_top


@triton.jit
def _leave_one_out(
    p, states, indices, out, count, batch, pk, pi,
    whole: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(p, p, k, i, valid, pk, pi, pk, pi, False, acc)
    if whole:
        top, second, rest, _squares, _excess, nans, _spread, _dead, n, index = rest_of(x, valid, k)
    else:
        top, second, rest, _squares, _excess, nans, _spread, _dead, n, index = load_rest(
            states, indices, 0, 1, i, batch, i < batch
        )
    _e, log_others, is_top = _others(x, k, top, second, rest, index)
    shift = tl.where(is_top, finite(top)[None, :], top[None, :])
    value = shift + log_others - tl.log(n - 1.0)[None, :]
    others_nan = nans[None, :] - tl.where(x == x, 0.0, 1.0) > 0.0
    tl.store(out + k[:, None] * batch + i[None, :], tl.where(others_nan, float("nan"), value), mask=valid)


@triton.jit
def _slopes(
    grad, p, states, indices, sums, count, batch, gk, gi, pk, pi,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    """Per tile, the sum over all but the arg-max of G / T, and the arg-max's own G."""
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(p, p, k, i, valid, pk, pi, pk, pi, False, acc)
    g = load_log_weights(grad, grad, k, i, valid, gk, gi, gk, gi, False, acc)
    top, second, rest, _squares, _excess, _nans, _spread, _dead, _n, index = load_rest(
        states, indices, 0, 1, i, batch, i < batch
    )
    _e, log_others, is_top = _others(x, k, top, second, rest, index)
    at = sums + tl.program_id(1).to(tl.int64) * batch + i
    tl.store(at, tl.sum(tl.where(valid & ~is_top, g * tl.exp(-log_others), 0.0), 0), mask=i < batch)
    half = tl.num_programs(1).to(tl.int64) * batch
    tl.store(at + half, tl.sum(tl.where(valid & is_top, g, 0.0), 0), mask=i < batch)


@triton.jit
def _backward(
    grad, p, states, indices, sums, out, count, batch, gk, gi, pk, pi,
    whole: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(p, p, k, i, valid, pk, pi, pk, pi, False, acc)
    g = load_log_weights(grad, grad, k, i, valid, gk, gi, gk, gi, False, acc)
    if whole:
        top, second, rest, _squares, _excess, nans, _spread, _dead, _n, index = rest_of(x, valid, k)
    else:
        top, second, rest, _squares, _excess, nans, _spread, _dead, _n, index = load_rest(
            states, indices, 0, 1, i, batch, i < batch
        )
    e, log_others, is_top = _others(x, k, top, second, rest, index)
    ratio = tl.where(is_top, 0.0, g * tl.exp(-log_others))
    if whole:
        slopes = tl.sum(tl.where(valid, ratio, 0.0), 0)
        top_grad = tl.sum(tl.where(valid & is_top, g, 0.0), 0)
    else:
        slopes = tl.load(sums + i, mask=i < batch, other=0.0)
        top_grad = tl.load(sums + batch + i, mask=i < batch, other=0.0)
    share = tl.exp(x - finite(second)[None, :]) / tl.where(rest < 0.5, 0.5, rest)[None, :]
    found = e * (slopes[None, :] - ratio) + tl.where(is_top, 0.0, top_grad[None, :] * share)
    found = tl.where((top == -float("inf"))[None, :], 0.0, found)
    found = tl.where((nans > 0.0)[None, :], float("nan"), found)
    tl.store(out + k[:, None] * batch + i[None, :], found, mask=valid)


@triton.jit
def _vimco(
    p, q, states, indices, value, ess, log_w, model, score, count, batch, pk, pi, qk, qi,
    geometric: tl.constexpr, whole: tl.constexpr, has_q: tl.constexpr, acc: tl.constexpr,
    block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(p, q, k, i, valid, pk, pi, qk, qi, has_q, acc)
    if whole:
        top, second, rest, squares, excess, nans, spread, dead, n, index = rest_of(x, valid, k)
    else:
        top, second, rest, squares, excess, nans, spread, dead, n, index = load_rest(
            states, indices, 0, 1, i, batch, i < batch
        )
    e, log_others, is_top = _others(x, k, top, second, rest, index)
    total = tl.where(top == -float("inf"), 0.0, 1.0 + rest_sum(top, second, rest))
    bad = (nans > 0.0) | (top == float("inf"))
    at = k[:, None] * batch + i[None, :]
    if tl.program_id(1) == 0:
        scale = tl.where(second == -float("inf"), 0.0, tl.exp(second - finite(top)))
        size = tl.where(total == 0.0, 0.0, total * total / (1.0 + squares * scale * scale))
        found = top + log_mean(total, excess, n)
        tl.store(value + i, tl.where(nans > 0.0, float("nan"), found), mask=i < batch)
        tl.store(ess + i, tl.where(bad, float("nan"), size), mask=i < batch)
    w = e / tl.where(total < 0.5, 0.5, total)[None, :]
    c = tl.where((x == float("inf")) | (nans > 0.0)[None, :], float("nan"), w)
    if geometric:
        own = tl.where(x == -float("inf"), 0.0, x - finite(top)[None, :])
        others_dead = dead[None, :] - tl.where(x == -float("inf"), 1.0, 0.0) > 0.0
        fill = tl.where(others_dead, -float("inf"), (spread[None, :] - own) / (n - 1.0)[None, :])
        high, low = tl.maximum(log_others, fill), tl.minimum(log_others, fill)
        gap = tl.where(low == -float("inf"), 0.0, tl.exp(low - high))
        advantage = tl.log(total)[None, :] - (high + log1p(gap))
    else:
        share = tl.log((n - 1.0) / n)[None, :]
        advantage = share + tl.where(is_top, tl.log(total)[None, :] - log_others, -log1p(-tl.where(is_top, 0.0, w)))
    endless = (advantage == float("inf")) | (advantage == -float("inf")) | (total == 0.0)[None, :]
    s = tl.where(endless, 0.0, advantage - w)
    tl.store(model + at, c, mask=valid)
    tl.store(score + at, tl.where(bad[None, :], float("nan"), s), mask=valid)
    if has_q:
        tl.store(log_w + at, x, mask=valid)


def launch_leave_one_out(x, out) -> None:
    """Fill ``out`` ``(K, batch)`` with the log-mean-exp of the others, K ≥ 2."""
    tiles = tiling(*x.shape)
    states, indices = reduce_rests(x, None, None, tiles, out) if tiles.parts > 1 else (None, None)
    launch(
        _leave_one_out, tiles, x, states, indices, out, *x.shape, *x.stride(),
        whole=states is None, acc=accumulator(x),
    )  # fmt: skip


def launch_leave_one_out_backward(grad, x, out) -> None:
    """Fill ``out`` with the gradient of ``x`` from that of its leave-one-out log-mean-exp."""
    tiles, acc = tiling(*x.shape), accumulator(x)
    states, indices, sums = None, None, None
    sizes = (*x.shape, *grad.stride(), *x.stride())
    if tiles.parts > 1:
        states, indices = reduce_rests(x, None, None, tiles, out)
        sums = out.new_empty(2, tiles.parts, x.shape[1])
        launch(_slopes, tiles, grad, x, states, indices, sums, *sizes, acc=acc)
        sums = sums.sum(1)
    launch(_backward, tiles, grad, x, states, indices, sums, out, *sizes, whole=states is None, acc=acc)


def launch_vimco(log_p, log_q, outputs, geometric) -> None:
    """Fill ``outputs`` = (value, ess, log_w or None, model, score) from log-densities ``(K, batch)``, K ≥ 2."""
    tiles, p, q, has_q = tiling(*log_p.shape), log_p, log_q, log_q is not None
    value, ess, log_w, model, score = outputs
    states, indices = None, None
    if tiles.parts > 1:
        states, indices = reduce_rests(p, q, log_w, tiles, value)
        p, q, has_q = (log_w, None, False) if has_q else (p, None, False)
    q = p if q is None else q
    launch(
        _vimco, tiles, p, q, states, indices, value, ess, log_w, model, score, *p.shape, *p.stride(), *q.stride(),
        geometric=geometric, whole=states is None, has_q=has_q, acc=accumulator(p),
    )  # fmt: skip
