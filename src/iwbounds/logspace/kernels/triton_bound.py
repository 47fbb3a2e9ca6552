"""The bound's kernels: value, effective sample size and coefficients of power-mean bounds.

Where the samples of a datum fit into a tile, ``_write`` does it in one launch. Otherwise ``reduce_log_weights`` writes
one state per tile, ``_combine`` reduces the states until one is left, and ``_write`` makes the coefficients.
"""

# mypy: ignore-errors
# The scalars' annotations are read by Triton, as strings: annotations must not be postponed here.

import triton
import triton.language as tl

from iwbounds.logspace.kernels.launch import COMBINED, accumulator, launch, tiling
from iwbounds.logspace.kernels.triton_state import STATE_SIZE, merge, state_of, summarize, weigh

__all__ = [
    "combine_states",
    "launch_bound",
    "load_log_weights",
    "load_state",
    "place",
    "reduce_log_weights",
    "store_state",
]


@triton.jit
def place(count, batch, block_k: tl.constexpr, block_b: tl.constexpr):
    """Sample and datum indices of this program's tile (64-bit), and which of its entries exist."""
    k = tl.program_id(1).to(tl.int64) * block_k + tl.arange(0, block_k)
    i = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    return k, i, (k[:, None] < count) & (i[None, :] < batch)


@triton.jit
def load_log_weights(p, q, k, i, valid, pk, pi, qk, qi, has_q: tl.constexpr, acc: tl.constexpr):
    """log p − log q of a tile, in the accumulator's type."""
    x = tl.load(p + k[:, None] * pk + i[None, :] * pi, mask=valid, other=0.0).to(acc)
    if has_q:
        x -= tl.load(q + k[:, None] * qk + i[None, :] * qi, mask=valid, other=0.0).to(acc)
    return x


@triton.jit
def load_state(states, part, parts, i, batch, valid):
    """Nine numbers from ``states[number, part, datum]``; an absent state is that of no log-weights."""
    base = states + part * batch + i
    step = tl.cast(parts, tl.int64) * batch
    none = -float("inf")
    return (
        tl.load(base, mask=valid, other=none),
        tl.load(base + step, mask=valid, other=0.0),
        tl.load(base + 2 * step, mask=valid, other=0.0),
        tl.load(base + 3 * step, mask=valid, other=none),
        tl.load(base + 4 * step, mask=valid, other=0.0),
        tl.load(base + 5 * step, mask=valid, other=0.0),
        tl.load(base + 6 * step, mask=valid, other=0.0),
        tl.load(base + 7 * step, mask=valid, other=0.0),
        tl.load(base + 8 * step, mask=valid, other=0.0),
    )


@triton.jit
def store_state(states, state, parts, i, batch):
    """Write this program's state to ``states[:, program, datum]``."""
    base = states + tl.program_id(1).to(tl.int64) * batch + i
    step = tl.cast(parts, tl.int64) * batch
    for n in tl.static_range(9):
        tl.store(base + n * step, state[n], mask=i < batch)


@triton.jit
def _outputs(
    x, state, k, i, valid, batch, value, ess, log_w, model, path, sign, order, share,
    has_log_w: tl.constexpr, has_path: tl.constexpr,
):  # fmt: skip
    top, total, squares, ref, power_total, excess, spread, dead, count = state
    found, size, void = summarize(
        top, total, squares, ref, power_total, excess, spread, dead, count, sign, order, share
    )
    if tl.program_id(1) == 0:
        tl.store(value + i, found, mask=i < batch)
        tl.store(ess + i, size, mask=i < batch)
    c, b = weigh(x, ref, power_total, count, void, sign, order, share)
    at = k[:, None] * batch + i[None, :]
    tl.store(model + at, c, mask=valid)
    if has_path:
        tl.store(path + at, b, mask=valid)
    if has_log_w:
        tl.store(log_w + at, x, mask=valid)


@triton.jit
def reduce_log_weights(
    p, q, states, log_w, count, batch, parts, pk, pi, qk, qi,
    sign: "fp64", order: "fp64",  # noqa: F821
    has_q: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    """Per tile, the log-weights (written where there are two densities) and their state."""
    sign, order = tl.full((1,), sign, acc), tl.full((1,), order, acc)
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(p, q, k, i, valid, pk, pi, qk, qi, has_q, acc)
    if has_q:
        tl.store(log_w + k[:, None] * batch + i[None, :], x, mask=valid)
    store_state(states, state_of(x, valid, sign, order), parts, i, batch)


@triton.jit
def _combine(
    states, merged, batch, parts, left, order: "fp64",  # noqa: F821
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    order = tl.full((1,), order, acc)
    part, i, valid = place(parts, batch, block_k, block_b)
    top, total, squares, ref, power_total, excess, spread, dead, count = load_state(
        states, part[:, None], parts, i[None, :], batch, valid
    )
    state = merge(top, total, squares, ref, power_total, excess, spread, dead, count, order)
    store_state(merged, state, left, i, batch)


@triton.jit
def _write(
    p, q, state, value, ess, log_w, model, path, count, batch, pk, pi, qk, qi,
    sign: "fp64", order: "fp64", share: "fp64",  # noqa: F821
    whole: tl.constexpr, has_q: tl.constexpr, has_path: tl.constexpr, acc: tl.constexpr,
    block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    sign, order, share = tl.full((1,), sign, acc), tl.full((1,), order, acc), tl.full((1,), share, acc)
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(p, q, k, i, valid, pk, pi, qk, qi, has_q, acc)
    if whole:  # noqa: SIM108
        found = state_of(x, valid, sign, order)
    else:
        found = load_state(state, 0, 1, i, batch, i < batch)
    _outputs(x, found, k, i, valid, batch, value, ess, log_w, model, path, sign, order, share, has_q, has_path)


def launch_bound(log_p, log_q, outputs, power, share) -> None:
    """Fill ``outputs`` = (value, ess, log_w or None, model, path or None) from log-densities ``(K, batch)``."""
    tiles, acc = tiling(*log_p.shape), accumulator(log_p)
    sign, order = (-1.0 if power < 0 else 1.0), abs(power)
    value, ess, log_w, model, path = outputs
    p, q, has_q, state = log_p, (log_p if log_q is None else log_q), log_q is not None, None
    if tiles.parts > 1:
        states = value.new_empty(STATE_SIZE, tiles.parts, log_p.shape[1])
        launch(
            reduce_log_weights, tiles, p, q, states, log_w, *p.shape, tiles.parts, *p.stride(), *q.stride(),
            sign, order, has_q=has_q, acc=acc,
        )  # fmt: skip
        state = combine_states(states, order)
        if has_q:
            p, q, has_q = log_w, log_w, False
    launch(
        _write, tiles, p, q, state, value, ess, log_w, model, path, *p.shape, *p.stride(), *q.stride(),
        sign, order, share, whole=state is None, has_q=has_q, has_path=path is not None, acc=acc,
    )  # fmt: skip


def combine_states(states, order):
    """Reduce ``(9, parts, batch)`` to ``(9, 1, batch)``, by a factor of up to 256 at each launch."""
    while states.shape[1] > 1:
        tiles = tiling(*states.shape[1:], most=COMBINED)
        merged = states.new_empty(STATE_SIZE, tiles.parts, states.shape[2])
        launch(
            _combine, tiles, states, merged, states.shape[2], states.shape[1], tiles.parts, order,
            acc=accumulator(states),
        )  # fmt: skip
        states = merged
    return states
