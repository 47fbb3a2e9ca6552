"""Leave-one-out log-mean-exp by the top-2 algorithm, its backward, and the coefficients of VIMCO.

The *state* of some log-weights is their maximum and its index, the second largest m, the sum of e^(x − m) over all but
the arg-max, E = Σ (e^(x − max) − 1), the number of NaNs, D = Σ (x − max) over the living, and the numbers of dead and
of all. As in :mod:`iwbounds.kernels.triton_bound` a single log-weight is a state, and :func:`merge` reduces any number
of states to one: the maxima that lose join the rest.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl

from iwbounds.kernels.triton_tiles import (
    COMBINED,
    accumulator,
    expm1,
    finite,
    launch,
    load,
    log1p,
    log_mean,
    place,
    tiling,
)

__all__ = ["launch_leave_one_out", "launch_leave_one_out_backward", "launch_vimco"]

FLOATS = 8
"""Numbers of a state, the index apart: it has a tensor of 64-bit integers of its own."""
NOWHERE = tl.constexpr(2**62)


@triton.jit
def merge(state):
    """Reduce the leading axis of a tile of states to one state per column."""
    top, second, rest, excess, nans, spread, dead, count, index = state
    none = -float("inf")
    new_top = tl.max(top, 0)
    # Among equal maxima the first wins: exactly one is left out of the rest.
    new_index = tl.min(tl.where(top == new_top[None, :], index, NOWHERE), 0)
    loser = tl.where(index == new_index[None, :], none, top)
    new_second = tl.maximum(tl.max(loser, 0), tl.max(second, 0))
    shift = finite(new_second)[None, :]
    joined = tl.where(loser == none, 0.0, tl.exp(loser - shift))
    scale = tl.where(second == none, 0.0, tl.exp(second - shift))
    d = top - finite(new_top)[None, :]
    top_scale, gap = tl.where(top == none, 0.0, tl.exp(d)), tl.where(top == none, -1.0, expm1(d))
    alive = count - dead - nans
    return (
        new_top,
        new_second,
        tl.sum(joined + rest * scale, 0),
        tl.sum(excess * top_scale + count * gap, 0),
        tl.sum(nans, 0),
        # Where none lives d is −inf, and 0 · inf is NaN.
        tl.sum(tl.where(alive > 0.0, spread + alive * d, 0.0), 0),
        tl.sum(dead, 0),
        tl.sum(count, 0),
        new_index,
    )


@triton.jit
def state_of(x, valid, k):
    """One state per column of a tile of log-weights; a NaN counts as −inf, and is counted."""
    none = -float("inf")
    one = tl.where(valid, 1.0, 0.0).to(x.dtype)
    zero = one * 0.0
    # Comparisons and maxima of NaN differ between devices: no NaN enters them.
    top = tl.where(valid & (x == x), x, none)
    nans = tl.where(valid & (x != x), 1.0, 0.0).to(x.dtype)
    dead = tl.where(valid & (x == none), 1.0, 0.0).to(x.dtype)
    index = tl.where(valid, k[:, None], NOWHERE)
    return merge((top, zero + none, zero, zero, nans, zero, dead, one, index))


@triton.jit
def load_state(states, indices, part, parts, i, batch, valid):
    """The nine numbers of ``states[:, part, datum]``; an absent state is that of no log-weights."""
    at = states + part * batch + i
    step = tl.cast(parts, tl.int64) * batch
    none = -float("inf")
    return (
        tl.load(at, mask=valid, other=none),
        tl.load(at + step, mask=valid, other=none),
        tl.load(at + 2 * step, mask=valid, other=0.0),
        tl.load(at + 3 * step, mask=valid, other=0.0),
        tl.load(at + 4 * step, mask=valid, other=0.0),
        tl.load(at + 5 * step, mask=valid, other=0.0),
        tl.load(at + 6 * step, mask=valid, other=0.0),
        tl.load(at + 7 * step, mask=valid, other=0.0),
        tl.load(indices + part * batch + i, mask=valid, other=NOWHERE),
    )


@triton.jit
def _store_state(states, indices, state, parts, i, batch):
    at = tl.program_id(1).to(tl.int64) * batch + i
    step = tl.cast(parts, tl.int64) * batch
    for n in tl.static_range(8):
        tl.store(states + at + n * step, state[n], mask=i < batch)
    tl.store(indices + at, state[8], mask=i < batch)


@triton.jit
def _reduce(
    x, states, indices, count, batch, parts, xk, xi,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    _store_state(states, indices, state_of(load(x, k, i, valid, xk, xi, acc), valid, k), parts, i, batch)


@triton.jit
def _combine(states, indices, merged, merged_indices, batch, parts, left, block_k: tl.constexpr, block_b: tl.constexpr):
    part, i, valid = place(parts, batch, block_k, block_b)
    state = merge(load_state(states, indices, part[:, None], parts, i[None, :], batch, valid))
    _store_state(merged, merged_indices, state, left, i, batch)


@triton.jit
def _rest_sum(top, second, rest):
    """Sum of exp(x − top) over all but the arg-max; 0 where the maximum is infinite."""
    endless = (top == float("inf")) | (second == -float("inf"))
    return tl.where(endless, 0.0, rest * tl.exp(second - finite(top)))


@triton.jit
def _others(x, k, state):
    """exp(x − top), the log of the sum of the others' exponentials about ``top``, and which entry is the arg-max."""
    top, second, rest, _excess, _nans, _spread, _dead, _n, index = state
    e = tl.where((top == float("inf"))[None, :], 0.0, tl.exp(tl.where(x == x, x, -float("inf")) - finite(top)[None, :]))
    # Rounding may make the sum of the rest smaller than one of its terms.
    without = tl.maximum(_rest_sum(top, second, rest)[None, :] - e, 0.0)
    is_top = k[:, None] == index[None, :]
    of_rest = second - finite(top) + tl.log(rest)
    return e, tl.where(is_top, of_rest[None, :], log1p(without)), is_top


@triton.jit
def _leave_one_out(
    x, states, indices, out, count, batch, xk, xi,
    whole: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load(x, k, i, valid, xk, xi, acc)
    if whole:  # noqa: SIM108
        state = state_of(x, valid, k)
    else:
        state = load_state(states, indices, 0, 1, i, batch, i < batch)
    top, _second, _rest, _excess, nans, _spread, _dead, n, _index = state
    _e, log_others, is_top = _others(x, k, state)
    # The arg-max's own result must not contain its own infinity; the others' results must.
    shift = tl.where(is_top, finite(top)[None, :], top[None, :])
    value = shift + log_others - tl.log(n - 1.0)[None, :]
    others_nan = nans[None, :] - tl.where(x == x, 0.0, 1.0) > 0.0
    tl.store(out + k[:, None] * batch + i[None, :], tl.where(others_nan, float("nan"), value), mask=valid)


@triton.jit
def _slopes(
    grad, x, states, indices, sums, count, batch, gk, gi, xk, xi,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    """Per tile, the sum over all but the arg-max of G / T, and the arg-max's own G."""
    k, i, valid = place(count, batch, block_k, block_b)
    x, g = load(x, k, i, valid, xk, xi, acc), load(grad, k, i, valid, gk, gi, acc)
    _e, log_others, is_top = _others(x, k, load_state(states, indices, 0, 1, i, batch, i < batch))
    at = sums + tl.program_id(1).to(tl.int64) * batch + i
    half = tl.num_programs(1).to(tl.int64) * batch
    tl.store(at, tl.sum(tl.where(valid & ~is_top, g * tl.exp(-log_others), 0.0), 0), mask=i < batch)
    tl.store(at + half, tl.sum(tl.where(valid & is_top, g, 0.0), 0), mask=i < batch)


@triton.jit
def _backward(
    grad, x, states, indices, sums, out, count, batch, gk, gi, xk, xi,
    whole: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x, g = load(x, k, i, valid, xk, xi, acc), load(grad, k, i, valid, gk, gi, acc)
    if whole:  # noqa: SIM108
        state = state_of(x, valid, k)
    else:
        state = load_state(states, indices, 0, 1, i, batch, i < batch)
    top, second, rest, _excess, nans, _spread, _dead, _n, _index = state
    e, log_others, is_top = _others(x, k, state)
    ratio = tl.where(is_top, 0.0, g * tl.exp(-log_others))
    if whole:
        slopes = tl.sum(tl.where(valid, ratio, 0.0), 0)
        top_grad = tl.sum(tl.where(valid & is_top, g, 0.0), 0)
    else:
        slopes = tl.load(sums + i, mask=i < batch, other=0.0)
        top_grad = tl.load(sums + batch + i, mask=i < batch, other=0.0)
    # What the arg-max's own term gives to the others: weights of the rest, whose sum is at least 1.
    of_rest = tl.exp(x - finite(second)[None, :]) / tl.where(rest < 0.5, 0.5, rest)[None, :]
    found = e * (slopes[None, :] - ratio) + tl.where(is_top, 0.0, top_grad[None, :] * of_rest)
    found = tl.where((top == -float("inf"))[None, :], 0.0, found)
    found = tl.where((nans > 0.0)[None, :], float("nan"), found)
    tl.store(out + k[:, None] * batch + i[None, :], found, mask=valid)


@triton.jit
def _vimco(
    x, states, indices, value, model, score, count, batch, xk, xi,
    geometric: tl.constexpr, whole: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load(x, k, i, valid, xk, xi, acc)
    if whole:  # noqa: SIM108
        state = state_of(x, valid, k)
    else:
        state = load_state(states, indices, 0, 1, i, batch, i < batch)
    top, second, rest, excess, nans, spread, dead, n, _index = state
    e, log_others, is_top = _others(x, k, state)
    total = tl.where(top == -float("inf"), 0.0, 1.0 + _rest_sum(top, second, rest))
    if tl.program_id(1) == 0:
        found = top + log_mean(total, excess, n)
        tl.store(value + i, tl.where(nans > 0.0, float("nan"), found), mask=i < batch)
    w = e / tl.where(total < 0.5, 0.5, total)[None, :]
    if geometric:
        own = tl.where(x == -float("inf"), 0.0, x - finite(top)[None, :])
        others_dead = dead[None, :] - tl.where(x == -float("inf"), 1.0, 0.0) > 0.0
        fill = tl.where(others_dead, -float("inf"), (spread[None, :] - own) / (n - 1.0)[None, :])
        high, low = tl.maximum(log_others, fill), tl.minimum(log_others, fill)
        gap = tl.where(low == -float("inf"), 0.0, tl.exp(low - high))
        advantage = tl.log(total)[None, :] - (high + log1p(gap))
    else:
        # All but the arg-max have w ≤ 1/2, so that 1 − w keeps its digits; the arg-max has the others' sum itself.
        of_top = tl.log(total)[None, :] - log_others
        advantage = tl.log((n - 1.0) / n)[None, :] + tl.where(is_top, of_top, -log1p(-tl.where(is_top, 0.0, w)))
    endless = (advantage == float("inf")) | (advantage == -float("inf")) | (total == 0.0)[None, :]
    bad = (nans > 0.0) | (top == float("inf"))
    c = tl.where((x == float("inf")) | (nans > 0.0)[None, :], float("nan"), w)
    s = tl.where(endless, 0.0, advantage - w)
    at = k[:, None] * batch + i[None, :]
    tl.store(model + at, c, mask=valid)
    tl.store(score + at, tl.where(bad[None, :], float("nan"), s), mask=valid)


def launch_leave_one_out(x, out) -> None:
    """Fill ``out`` ``(K, batch)`` with the log-mean-exp of the others, K ≥ 2."""
    tiles = tiling(*x.shape)
    states, indices = _states(x, tiles, out)
    launch(
        _leave_one_out, tiles, x, states, indices, out, *x.shape, *x.stride(),
        whole=states is None, acc=accumulator(x),
    )  # fmt: skip


def launch_leave_one_out_backward(grad, x, out) -> None:
    """Fill ``out`` with the gradient of ``x`` from that of its leave-one-out log-mean-exp."""
    tiles, acc = tiling(*x.shape), accumulator(x)
    # The sums are kept in the accumulator's type, which a half type's ``out`` is not.
    states, indices = _states(x, tiles, grad)
    sizes, sums = (*x.shape, *grad.stride(), *x.stride()), None
    if states is not None:
        sums = grad.new_empty(2, tiles.parts, x.shape[1])
        launch(_slopes, tiles, grad, x, states, indices, sums, *sizes, acc=acc)
        sums = sums.sum(1)
    launch(_backward, tiles, grad, x, states, indices, sums, out, *sizes, whole=states is None, acc=acc)


def launch_vimco(x, value, model, score, geometric) -> None:
    """Fill ``value`` ``(batch)``, weights and score ``(K, batch)`` from log-weights ``(K, batch)``, K ≥ 2."""
    tiles = tiling(*x.shape)
    states, indices = _states(x, tiles, value)
    launch(
        _vimco, tiles, x, states, indices, value, model, score, *x.shape, *x.stride(),
        geometric=geometric, whole=states is None, acc=accumulator(x),
    )  # fmt: skip


def _states(x, tiles, like):
    """States ``(8, 1, batch)`` and arg-max ``(1, batch)`` of all samples; None twice where one tile holds them."""
    if tiles.parts == 1:
        return None, None
    states, indices = _empty(like, tiles.parts, x.shape[1])
    launch(_reduce, tiles, x, states, indices, *x.shape, tiles.parts, *x.stride(), acc=accumulator(x))
    while states.shape[1] > 1:
        tiles = tiling(*states.shape[1:], most=COMBINED)
        merged = _empty(states, tiles.parts, states.shape[2])
        launch(_combine, tiles, states, indices, *merged, states.shape[2], states.shape[1], tiles.parts)
        states, indices = merged
    return states, indices


def _empty(like, parts, batch):
    return like.new_empty(FLOATS, parts, batch), like.new_empty(parts, batch, dtype=torch.int64)
