"""Value and coefficients of power-mean bounds; log-mean-exp and its backward, which are one of them.

Of any subset of a datum's log-weights six numbers are enough, its *state*: the reference r = max σx, S = Σ e^u,
E = Σ (e^u − 1), D = Σ (σx − r), the number of dead (−inf) log-weights, and the number of all. A single log-weight is a
state, and :func:`merge` reduces any number of states to one. Where the samples of a datum fit into a tile, one launch
does everything. Otherwise ``_reduce`` writes one state per tile, ``_combine`` reduces the states until one is left, and
the writing kernel reads the log-weights once more. The README beside this file derives the formulas.
"""

# mypy: ignore-errors
# The scalars' annotations are read by Triton, as strings: annotations must not be postponed here.

import triton
import triton.language as tl

from iwbounds.kernels.triton_tiles import (
    COMBINED,
    Tiling,
    accumulator,
    expm1,
    finite,
    launch,
    load,
    log_mean,
    place,
    tiling,
)

__all__ = ["launch_bound", "launch_mean", "launch_mean_backward"]

STATE_SIZE = 6


@triton.jit
def merge(state, order):
    """Reduce the leading axis of a tile of states to one state per column."""
    ref, total, excess, spread, dead, count = state
    none = -float("inf")
    new_ref = tl.max(ref, 0)
    d = ref - finite(new_ref)[None, :]
    u = order * d
    # A state of dead log-weights only has r = −inf: it adds nothing to S, and −1 for each to E.
    scale = tl.where(ref == none, 0.0, tl.exp(u))
    gap = tl.where(ref == none, -1.0, expm1(u))
    return (
        new_ref,
        tl.sum(total * scale, 0),
        tl.sum(excess * scale + count * gap, 0),
        # Entries beyond the data have count 0, and 0 · inf is NaN.
        tl.sum(tl.where(count > 0.0, spread + count * d, 0.0), 0),
        tl.sum(dead, 0),
        tl.sum(count, 0),
    )


@triton.jit
def state_of(x, valid, sign, order):
    """One state per column of a tile of log-weights; entries that are not ``valid`` count nothing."""
    none = -float("inf")
    one = tl.where(valid, 1.0, 0.0).to(x.dtype)
    zero = one * 0.0
    dead = tl.where(valid & (x == none), 1.0, 0.0).to(x.dtype)
    return merge((tl.where(valid, sign * x, none), one, zero, zero, dead, one), order)


@triton.jit
def load_state(states, part, parts, i, batch, valid):
    """Six numbers from ``states[number, part, datum]``; an absent state is that of no log-weights."""
    at = states + part * batch + i
    step = tl.cast(parts, tl.int64) * batch
    return (
        tl.load(at, mask=valid, other=-float("inf")),
        tl.load(at + step, mask=valid, other=0.0),
        tl.load(at + 2 * step, mask=valid, other=0.0),
        tl.load(at + 3 * step, mask=valid, other=0.0),
        tl.load(at + 4 * step, mask=valid, other=0.0),
        tl.load(at + 5 * step, mask=valid, other=0.0),
    )


@triton.jit
def _store_state(states, state, parts, i, batch):
    """Write this program's state to ``states[:, program, datum]``."""
    at = states + tl.program_id(1).to(tl.int64) * batch + i
    step = tl.cast(parts, tl.int64) * batch
    for n in tl.static_range(6):
        tl.store(at + n * step, state[n], mask=i < batch)


@triton.jit
def _reduce(
    x, states, count, batch, parts, xk, xi,
    sign: "fp64", order: "fp64",  # noqa: F821
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    # Python floats arrive as float64 by their annotations (Triton would round them to float32), and are narrowed here.
    sign, order = tl.full((1,), sign, acc), tl.full((1,), order, acc)
    k, i, valid = place(count, batch, block_k, block_b)
    _store_state(states, state_of(load(x, k, i, valid, xk, xi, acc), valid, sign, order), parts, i, batch)


@triton.jit
def _combine(
    states, merged, batch, parts, left, order: "fp64",  # noqa: F821
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    order = tl.full((1,), order, acc)
    part, i, valid = place(parts, batch, block_k, block_b)
    state = merge(load_state(states, part[:, None], parts, i[None, :], batch, valid), order)
    _store_state(merged, state, left, i, batch)


@triton.jit
def _write(
    x, states, value, model, path, count, batch, xk, xi,
    sign: "fp64", order: "fp64", elbo_part: "fp64",  # noqa: F821
    whole: tl.constexpr, has_path: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    """Value, c and c − h of a tile, from the state of its data."""
    sign, order, elbo_part = tl.full((1,), sign, acc), tl.full((1,), order, acc), tl.full((1,), elbo_part, acc)
    k, i, valid = place(count, batch, block_k, block_b)
    x = load(x, k, i, valid, xk, xi, acc)
    if whole:  # noqa: SIM108
        state = state_of(x, valid, sign, order)
    else:
        state = load_state(states, 0, 1, i, batch, i < batch)
    ref, total, excess, spread, dead, n = state
    # The mean of the logs and a mean of negative powers are −inf as soon as one weight is zero.
    void = (dead > 0.0) & ((elbo_part > 0.0) | (sign < 0.0))
    rest = 1.0 - elbo_part
    # Every program of a column has the state; one of them writes the value.
    if tl.program_id(1) == 0:
        mean = sign * (finite(ref) + spread / n)
        power_mean = sign * (ref + log_mean(total, excess, n) / order)
        # Each part is dropped where its weight is 0, since 0 · inf is NaN.
        found = tl.where(elbo_part > 0.0, elbo_part * mean, 0.0) + tl.where(rest > 0.0, rest * power_mean, 0.0)
        tl.store(value + i, tl.where(void, -float("inf"), found), mask=i < batch)
    # S ≥ 1 where a weight lives; 1/2 in place of 0 makes the coefficients of dead data 0 / 0.5 = 0.
    v = tl.exp(order * (sign * x - finite(ref)[None, :])) / tl.where(total < 0.5, 0.5, total)[None, :]
    power = sign * order
    uniform = (elbo_part / n)[None, :]
    at = k[:, None] * batch + i[None, :]
    c = uniform + tl.where(rest > 0.0, rest * v, 0.0)
    tl.store(model + at, tl.where(void[None, :], 0.0, c), mask=valid)
    if has_path:
        b = uniform + tl.where(rest > 0.0, rest * v * ((1.0 - power) + power * v), 0.0)
        tl.store(path + at, tl.where(void[None, :], 0.0, b), mask=valid)


@triton.jit
def _mean(
    x, states, value, maximum, total, count, batch, xk, xi,
    whole: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    if whole:
        one = tl.full((1,), 1.0, acc)
        state = state_of(load(x, k, i, valid, xk, xi, acc), valid, one, one)
    else:
        state = load_state(states, 0, 1, i, batch, i < batch)
    ref, found, excess, _spread, _dead, n = state
    tl.store(value + i, ref + log_mean(found, excess, n), mask=i < batch)
    tl.store(maximum + i, ref, mask=i < batch)
    tl.store(total + i, found, mask=i < batch)


@triton.jit
def _backward(
    grad, x, maximum, total, out, count, batch, gi, xk, xi,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load(x, k, i, valid, xk, xi, acc)
    top = tl.load(maximum + i, mask=i < batch, other=0.0)
    bottom = tl.load(total + i, mask=i < batch, other=1.0)
    g = tl.load(grad + i * gi, mask=i < batch, other=0.0).to(acc)
    w = tl.exp(x - finite(top)[None, :]) / tl.where(bottom < 0.5, 0.5, bottom)[None, :]
    tl.store(out + k[:, None] * batch + i[None, :], g[None, :] * w, mask=valid)


def launch_bound(x, value, model, path, power, elbo_part) -> None:
    """Fill ``value`` ``(batch)``, c and (unless None) c − h ``(K, batch)`` from log-weights ``(K, batch)``."""
    sign, order = (-1.0 if power < 0 else 1.0), abs(power)
    tiles, acc = tiling(*x.shape), accumulator(x)
    states = _states(x, tiles, sign, order, value) if tiles.parts > 1 else None
    launch(
        _write, tiles, x, states, value, model, path, *x.shape, *x.stride(), sign, order, elbo_part,
        whole=states is None, has_path=path is not None, acc=acc,
    )  # fmt: skip


def launch_mean(x, value, maximum, total) -> None:
    """Fill ``value``, and the maximum and scaled sum that its backward needs, each ``(batch)``, from ``(K, batch)``."""
    tiles, states = tiling(*x.shape), None
    if tiles.parts > 1:
        states = _states(x, tiles, 1.0, 1.0, value)
        # Nothing of the size of x is left to do: one program per column, and a tile of one row.
        tiles = Tiling(1, tiles.block_b, 1, tiles.columns)
    launch(
        _mean, tiles, x, states, value, maximum, total, *x.shape, *x.stride(), whole=states is None, acc=accumulator(x)
    )


def launch_mean_backward(grad, x, maximum, total, out) -> None:
    """Fill ``out`` ``(K, batch)`` with the gradient of ``x``."""
    tiles = tiling(*x.shape)
    launch(_backward, tiles, grad, x, maximum, total, out, *x.shape, *grad.stride(), *x.stride(), acc=accumulator(x))


def _states(x, tiles, sign, order, like):
    """States ``(6, 1, batch)`` of all samples: one per tile, then merged by a factor of up to 256 at each launch."""
    acc, batch = accumulator(x), x.shape[1]
    states = like.new_empty(STATE_SIZE, tiles.parts, batch)
    launch(_reduce, tiles, x, states, *x.shape, tiles.parts, *x.stride(), sign, order, acc=acc)
    while states.shape[1] > 1:
        tiles = tiling(*states.shape[1:], most=COMBINED)
        merged = states.new_empty(STATE_SIZE, tiles.parts, batch)
        launch(_combine, tiles, states, merged, batch, states.shape[1], tiles.parts, order, acc=acc)
        states = merged
    return states
