"""The nested reduction of hierarchical proposals: a log-mean-exp within each sample, a bound across the samples."""

# mypy: ignore-errors
# The scalars' annotations are read by Triton, as strings: annotations must not be postponed here.

import triton
import triton.language as tl

from iwbounds.logspace.kernels.launch import accumulator, launch, tiling
from iwbounds.logspace.kernels.triton_bound import combine_states, load_state, place, store_state
from iwbounds.logspace.kernels.triton_math import expm1, finite, log_mean
from iwbounds.logspace.kernels.triton_state import STATE_SIZE, state_of, summarize, weigh

__all__ = ["launch_nested"]


@triton.jit
def _load(
    p, v, k, i, valid, pk, pi, vk, vj, vi, inner_count,
    acc: tl.constexpr, block_j: tl.constexpr,
):  # fmt: skip
    """log p − U of a tile, the inner weights, and where they are."""
    j = tl.arange(0, block_j).to(tl.int64)
    inside = valid[:, None, :] & (j[None, :, None] < inner_count)
    at = k[:, None, None] * vk + j[None, :, None] * vj + i[None, None, :] * vi
    y = tl.load(v + at, mask=inside, other=-float("inf")).to(acc)
    top = tl.max(y, 1)
    d = y - finite(top)[:, None, :]
    e = tl.where(inside, tl.exp(d), 0.0)
    total, excess = tl.sum(e, 1), tl.sum(tl.where(inside, expm1(d), 0.0), 1)
    u = top + log_mean(total, excess, tl.cast(inner_count, acc))
    x = tl.load(p + k[:, None] * pk + i[None, :] * pi, mask=valid, other=0.0).to(acc) - u
    return x, e / tl.where(total < 0.5, 0.5, total)[:, None, :], j, inside


@triton.jit
def _reduce(
    p, v, states, count, inner_count, batch, parts, pk, pi, vk, vj, vi,
    sign: "fp64", order: "fp64",  # noqa: F821
    acc: tl.constexpr, block_j: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    sign, order = tl.full((1,), sign, acc), tl.full((1,), order, acc)
    k, i, valid = place(count, batch, block_k, block_b)
    x, _w, _j, _inside = _load(p, v, k, i, valid, pk, pi, vk, vj, vi, inner_count, acc, block_j)
    store_state(states, state_of(x, valid, sign, order), parts, i, batch)


@triton.jit
def _write(
    p, v, state, value, ess, log_w, model, path, inner, inner_path,
    count, inner_count, batch, pk, pi, vk, vj, vi,
    sign: "fp64", order: "fp64", share: "fp64",  # noqa: F821
    whole: tl.constexpr, acc: tl.constexpr,
    block_j: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    sign, order, share = tl.full((1,), sign, acc), tl.full((1,), order, acc), tl.full((1,), share, acc)
    k, i, valid = place(count, batch, block_k, block_b)
    x, w, j, inside = _load(p, v, k, i, valid, pk, pi, vk, vj, vi, inner_count, acc, block_j)
    if whole:
        top, total, squares, ref, power_total, excess, spread, dead, n = state_of(x, valid, sign, order)
    else:
        top, total, squares, ref, power_total, excess, spread, dead, n = load_state(state, 0, 1, i, batch, i < batch)
    found, size, void = summarize(top, total, squares, ref, power_total, excess, spread, dead, n, sign, order, share)
    if tl.program_id(1) == 0:
        tl.store(value + i, found, mask=i < batch)
        tl.store(ess + i, size, mask=i < batch)
    c, b = weigh(x, ref, power_total, n, void, sign, order, share)
    at = k[:, None] * batch + i[None, :]
    tl.store(log_w + at, x, mask=valid)
    tl.store(model + at, c, mask=valid)
    tl.store(path + at, b, mask=valid)
    at = (k[:, None, None] * inner_count + j[None, :, None]) * batch + i[None, None, :]
    tl.store(inner + at, -c[:, None, :] * w, mask=inside)
    tl.store(inner_path + at, (b - 2.0 * c)[:, None, :] * w * w, mask=inside)


def launch_nested(log_p, inner, outputs, power, share) -> None:
    """Fill ``outputs``, the fields of ``FusedNested``, from log p ``(M, batch)`` and ``inner`` ``(M, J, batch)``."""
    (count, inner_count, batch), acc = inner.shape, accumulator(log_p)
    block_j = triton.next_power_of_2(inner_count)
    tiles = tiling(count, batch, width=block_j)
    sign, order, state = (-1.0 if power < 0 else 1.0), abs(power), None
    sizes = (count, inner_count, batch)
    strides = (*log_p.stride(), *inner.stride())
    if tiles.parts > 1:
        states = outputs[0].new_empty(STATE_SIZE, tiles.parts, batch)
        launch(
            _reduce, tiles, log_p, inner, states, *sizes, tiles.parts, *strides, sign, order, acc=acc, block_j=block_j
        )
        state = combine_states(states, order)
    launch(
        _write, tiles, log_p, inner, state, *outputs, *sizes, *strides, sign, order, share,
        whole=state is None, acc=acc, block_j=block_j,
    )  # fmt: skip
