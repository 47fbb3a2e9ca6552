"""Many samples of few data, with a backward that is run chunk by chunk and leaves no graph behind.

The first pass takes the log-weights alone; they give the coefficients. The second makes the graph of one chunk after
the other, with the same latents and the same random state, and runs its backward at once. Checkpoints (see
:mod:`iwbounds.engine.chunks`) do the same within one graph, whose nodes lie scattered between the buffers of the chunks
and keep the C library's allocator from using their memory again; :func:`iwbounds.accumulate` needs no such graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from iwbounds.engine.draws import Prepared
from iwbounds.engine.redraws import random_states, restored
from iwbounds.engine.result import Estimate
from iwbounds.engine.routes import Channels, route_for
from iwbounds.engine.routing import attach
from iwbounds.gradients import Coefficients
from iwbounds.latents import Latents

__all__ = ["Share", "run_in_two_passes"]

Share: TypeAlias = Callable[[Tensor], float]
"""From the values of some data to the factor of each in the loss; raises where they are not of those data."""


def run_in_two_passes(prepared: Prepared, size: int, share: Share) -> Estimate:
    """Hold ``size`` samples at a time; the backward is that of ``share(value) · value.sum()``."""
    differentiate, draws = torch.is_grad_enabled(), prepared.draws
    _ = draws.latents if draws.held else None  # in the graph, which the first pass is not
    with torch.no_grad():
        log_w, sizes, states = _first_pass(prepared, size)
        value, coefficients = prepared.rule.evaluate(log_w, differentiate)
    upstream = torch.full_like(value, share(value))
    if coefficients is not None:
        _run(coefficients.extra, upstream)
        _second_pass(prepared, size, coefficients.split(sizes), states, upstream)
    return Estimate(value, log_w, prepared.rule.bound.direction)


def _first_pass(prepared: Prepared, size: int) -> tuple[Tensor, list[int], list[list[Tensor]]]:
    """The log-weights, and for each chunk its size and the random states before its densities.

    What is kept of a chunk is written to one place, for the sake of the memory between the chunks' buffers.
    """
    route, draws = route_for(prepared.rule, prepared.proposal), prepared.draws
    log_w: Tensor | None = None
    sizes: list[int] = []
    states: list[list[Tensor]] = []
    for chunk in draws.chunks(size):
        states.append(_or_equal(random_states(), states[-1:]))
        part = route(prepared.log_joint, prepared.proposal, chunk.latents).log_w
        log_w = part.new_empty((draws.count, *part.shape[1:])) if log_w is None else log_w
        start = sum(sizes)
        log_w[start : start + len(part)] = part
        sizes.append(len(part))
    assert log_w is not None, "there is at least one chunk"
    return log_w, sizes, states


def _or_equal(state: list[Tensor], others: list[list[Tensor]]) -> list[Tensor]:
    """The first of ``others`` that equals ``state``, which need not be kept then."""
    return next((other for other in others if all(map(torch.equal, state, other))), state)


def _second_pass(
    prepared: Prepared, size: int, parts: list[Coefficients], states: list[list[Tensor]], upstream: Tensor
) -> None:
    for chunk, part, state in zip(prepared.draws.chunks_again(size), parts, states, strict=True):
        with restored(state):
            channels = _channels(prepared, chunk, part)
        _run(channels, upstream)
        del channels  # the graph of the chunk, before that of the next is made


def _channels(prepared: Prepared, chunk: Latents, part: Coefficients) -> Channels:
    return route_for(prepared.rule, prepared.proposal)(prepared.log_joint, prepared.proposal, chunk).channels(part)


def _run(channels: Channels, upstream: Tensor) -> None:
    """Their backward. What leads to the proposal's parameters is walked for every chunk, hence kept."""
    carrier = attach(torch.zeros_like(upstream), channels)
    if carrier.requires_grad:
        carrier.backward(upstream, retain_graph=True)  # type: ignore[no-untyped-call]
