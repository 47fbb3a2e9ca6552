"""The state of the leave-one-out kernels: the arg-max, and the sum of the rest about *its own* maximum.

As in :mod:`iwbounds.logspace.kernels.triton_state`, a single log-weight is a state and :func:`merge_rest` reduces any
number of states to one: the winners that lose join the rest.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from iwbounds.logspace.kernels.launch import COMBINED, accumulator, launch, tiling
from iwbounds.logspace.kernels.triton_bound import load_log_weights, place
from iwbounds.logspace.kernels.triton_math import expm1, finite

__all__ = ["combine_rests", "load_rest", "merge_rest", "reduce_rests", "rest_of", "rest_sum"]

REST_SIZE = 9
NOWHERE = tl.constexpr(2**62)


@triton.jit
def merge_rest(top, second, rest, squares, excess, nans, spread, dead, count, index):
    """Reduce the leading axis of a tile of states to one state per column."""
    none = -float("inf")
    new_top = tl.max(top, 0)
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
        tl.sum(joined * joined + squares * scale * scale, 0),
        tl.sum(excess * top_scale + count * gap, 0),
        tl.sum(nans, 0),
        tl.sum(tl.where(alive > 0.0, spread + alive * d, 0.0), 0),
        tl.sum(dead, 0),
        tl.sum(count, 0),
        new_index,
    )


@triton.jit
def rest_of(x, valid, k):
    """One state per column of a tile of log-weights; a NaN counts as −inf, and is counted."""
    none = -float("inf")
    isnan = valid & (x != x)
    one = tl.where(valid, 1.0, 0.0).to(x.dtype)
    zero = one * 0.0
    top = tl.where(valid & (x == x), x, none)
    nans, dead = tl.where(isnan, 1.0, 0.0).to(x.dtype), tl.where(valid & (x == none), 1.0, 0.0).to(x.dtype)
    index = tl.where(valid, k[:, None], NOWHERE)
    return merge_rest(top, zero + none, zero, zero, zero, nans, zero, dead, one, index)


@triton.jit
def rest_sum(top, second, rest):
    """Sum of exp(x − top) over all but the arg-max; 0 where the maximum is infinite."""
    endless = (top == float("inf")) | (second == -float("inf"))
    return tl.where(endless, 0.0, rest * tl.exp(second - finite(top)))


@triton.jit
def load_rest(states, indices, part, parts, i, batch, valid):
    """Ten numbers of ``states[number, part, datum]``; an absent state is that of no log-weights."""
    base = states + part * batch + i
    step = tl.cast(parts, tl.int64) * batch
    none = -float("inf")
    return (
        tl.load(base, mask=valid, other=none),
        tl.load(base + step, mask=valid, other=none),
        tl.load(base + 2 * step, mask=valid, other=0.0),
        tl.load(base + 3 * step, mask=valid, other=0.0),
        tl.load(base + 4 * step, mask=valid, other=0.0),
        tl.load(base + 5 * step, mask=valid, other=0.0),
        tl.load(base + 6 * step, mask=valid, other=0.0),
        tl.load(base + 7 * step, mask=valid, other=0.0),
        tl.load(base + 8 * step, mask=valid, other=0.0),
        tl.load(indices + part * batch + i, mask=valid, other=NOWHERE),
    )


@triton.jit
def _store(states, indices, state, parts, i, batch):
    at = tl.program_id(1).to(tl.int64) * batch + i
    step = tl.cast(parts, tl.int64) * batch
    for n in tl.static_range(9):
        tl.store(states + at + n * step, state[n], mask=i < batch)
    tl.store(indices + at, state[9], mask=i < batch)


@triton.jit
def _reduce(
    p, q, states, indices, log_w, count, batch, parts, pk, pi, qk, qi,
    has_q: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(p, q, k, i, valid, pk, pi, qk, qi, has_q, acc)
    if has_q:
        tl.store(log_w + k[:, None] * batch + i[None, :], x, mask=valid)
    _store(states, indices, rest_of(x, valid, k), parts, i, batch)


@triton.jit
def _combine(
    states, indices, merged, merged_indices, batch, parts, left,
    block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    part, i, valid = place(parts, batch, block_k, block_b)
    top, second, rest, squares, excess, nans, spread, dead, count, index = load_rest(
        states, indices, part[:, None], parts, i[None, :], batch, valid
    )
    state = merge_rest(top, second, rest, squares, excess, nans, spread, dead, count, index)
    _store(merged, merged_indices, state, left, i, batch)


def reduce_rests(p, q, log_w, tiles, like):
    """States ``(9, 1, batch)`` and arg-max ``(1, batch)`` of log p − log q, which is written to ``log_w``."""
    states, indices = _empty(like, tiles.parts, p.shape[1])
    q, has_q = (p, False) if q is None else (q, True)
    launch(
        _reduce, tiles, p, q, states, indices, log_w, *p.shape, tiles.parts, *p.stride(), *q.stride(),
        has_q=has_q, acc=accumulator(p),
    )  # fmt: skip
    return combine_rests(states, indices)


def combine_rests(states, indices):
    """Reduce the parts to one, by a factor of up to 256 at each launch."""
    while states.shape[1] > 1:
        tiles = tiling(*states.shape[1:], most=COMBINED)
        merged, merged_indices = _empty(states, tiles.parts, states.shape[2])
        launch(_combine, tiles, states, indices, merged, merged_indices, states.shape[2], states.shape[1], tiles.parts)
        states, indices = merged, merged_indices
    return states, indices


def _empty(like, parts, batch):
    import torch

    return like.new_empty(REST_SIZE, parts, batch), like.new_empty(parts, batch, dtype=torch.int64)
