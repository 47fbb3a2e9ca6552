"""Log-mean-exp and its backward: the bound's states, without coefficients."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from iwbounds.logspace.kernels.launch import Tiling, accumulator, launch, tiling
from iwbounds.logspace.kernels.triton_bound import (
    combine_states,
    load_log_weights,
    load_state,
    place,
    reduce_log_weights,
)
from iwbounds.logspace.kernels.triton_math import finite, log_mean
from iwbounds.logspace.kernels.triton_state import STATE_SIZE, state_of

__all__ = ["launch_mean", "launch_mean_backward"]


@triton.jit
def _mean(
    x, state, value, maximum, total, count, batch, xk, xi,
    whole: tl.constexpr, acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    if whole:
        one = tl.full((1,), 1.0, acc)
        x = load_log_weights(x, x, k, i, valid, xk, xi, xk, xi, False, acc)
        top, found, _squares, _ref, _power, excess, _spread, _dead, n = state_of(x, valid, one, one)
    else:
        top, found, _squares, _ref, _power, excess, _spread, _dead, n = load_state(state, 0, 1, i, batch, i < batch)
    tl.store(value + i, top + log_mean(found, excess, n), mask=i < batch)
    tl.store(maximum + i, top, mask=i < batch)
    tl.store(total + i, found, mask=i < batch)


@triton.jit
def _backward(
    grad, x, maximum, total, out, count, batch, gi, xk, xi,
    acc: tl.constexpr, block_k: tl.constexpr, block_b: tl.constexpr,
):  # fmt: skip
    k, i, valid = place(count, batch, block_k, block_b)
    x = load_log_weights(x, x, k, i, valid, xk, xi, xk, xi, False, acc)
    top = tl.load(maximum + i, mask=i < batch, other=0.0)
    bottom = tl.load(total + i, mask=i < batch, other=1.0)
    g = tl.load(grad + i * gi, mask=i < batch, other=0.0).to(acc)
    w = tl.exp(x - finite(top)[None, :]) / tl.where(bottom < 0.5, 0.5, bottom)[None, :]
    tl.store(out + k[:, None] * batch + i[None, :], g[None, :] * w, mask=valid)


def launch_mean(x, value, maximum, total) -> None:
    """Fill ``value``, and the maximum and scaled sum that its backward needs, each ``(batch)``, from ``(K, batch)``."""
    tiles, acc, state = tiling(*x.shape), accumulator(x), None
    if tiles.parts > 1:
        states = value.new_empty(STATE_SIZE, tiles.parts, x.shape[1])
        none = (*x.shape, tiles.parts, *x.stride(), *x.stride())
        launch(reduce_log_weights, tiles, x, x, states, None, *none, 1.0, 1.0, has_q=False, acc=acc)
        state = combine_states(states, 1.0)
        tiles = Tiling(1, tiles.block_b, 1, tiles.columns)
    launch(_mean, tiles, x, state, value, maximum, total, *x.shape, *x.stride(), whole=state is None, acc=acc)


def launch_mean_backward(grad, x, maximum, total, out) -> None:
    """Fill ``out`` ``(K, batch)`` with the gradient of ``x``."""
    tiles = tiling(*x.shape)
    launch(_backward, tiles, grad, x, maximum, total, out, *x.shape, *grad.stride(), *x.stride(), acc=accumulator(x))
