"""A few samples in memory at a time, with the exact gradient: in one graph, or in two passes.

The coefficients need all log-weights, and the backward nothing but the coefficients. In one graph, both log-densities
of each chunk are evaluated under a checkpoint: the forward keeps their values only, and the backward makes the graph of
one chunk at a time anew. In two passes there is no such graph: the first takes the log-weights alone, the second makes
the graph of one chunk after the other and runs its backward at once. Its nodes would lie scattered between the buffers
of the chunks and keep the C library's allocator from using their memory again; :func:`iwbounds.accumulate` needs none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.engine.autograd import attach, compiling, first_pass
from iwbounds.engine.evaluate import Channels, Evaluated, evaluate
from iwbounds.engine.result import Estimate
from iwbounds.engine.samples import Block, blocks, chunks, random_states, restored, split
from iwbounds.gradients.base import Coefficients

if TYPE_CHECKING:
    from iwbounds.engine.request import Request  # for annotations alone, so that no chain of imports grows

__all__ = ["evaluate_in_chunks", "run_in_two_passes"]


def evaluate_in_chunks(request: Request, size: int) -> Evaluated:
    """:func:`evaluate` for all samples, ``size`` at a time, in one graph of checkpoints."""
    if compiling():
        raise RuntimeError(
            "chunk_size draws and evaluates samples anew in the backward, which torch.compile cannot trace. Compile "
            "the model's modules instead, or drop chunk_size inside compiled code."
        )
    if request.gradient.needs_prior:
        raise ValueError(
            f"{request.gradient!r} takes slopes of the densities in the forward, and chunk_size makes their graphs "
            "in the backward alone. Call iwbounds.accumulate, which takes chunk_size; or drop it."
        )
    found = [evaluate(_recomputed(request, chunk.values), chunk.latents) for chunk in chunks(blocks(request), size)]
    sizes = [part.log_w.shape[0] for part in found]

    def channels(coefficients: Coefficients) -> Channels:
        parts = zip(found, coefficients.split(sizes), strict=True)
        return [channel for each, part in parts for channel in each.channels(part)]

    return Evaluated(torch.cat([part.log_w for part in found]), channels)


def _recomputed(request: Request, values: Callable[[], Latents]) -> Request:
    """The request with both densities under a checkpoint."""
    log_prob = _checkpointed(request.proposal.log_prob, values)
    # fixed_log_prob would go around the checkpoint, and keep the activations that this is for.
    proposal = dataclasses.replace(request.proposal, log_prob=log_prob, fixed_log_prob=None)
    return dataclasses.replace(request, log_joint=_checkpointed(request.log_joint, values), proposal=proposal)


def _checkpointed(density: Callable[[Latents], Any], values: Callable[[], Latents]) -> Callable[[Latents], Any]:
    """The density under a checkpoint that keeps no latents: its second evaluation gets them from ``values``."""

    def checkpointed(latents: Latents) -> Any:
        # Emptied by the first evaluation, so that the checkpoint's closure holds no latents afterwards.
        given = [latents]
        live = map_latents(lambda z: z.requires_grad, latents)
        device = latent_leaves(latents)[0].device

        def once_more(_: Tensor) -> Any:
            if given:  # a density that differentiates inside makes its graph anew while the forward still runs
                return density(given[0])
            return density(map_latents(lambda z, grad: z.detach().requires_grad_(grad), values(), live))

        # An empty tensor on the device: checkpoint looks at its arguments for the generators to save.
        found = checkpoint(once_more, torch.empty(0, device=device), use_reentrant=False)
        given.clear()
        return found

    return checkpointed


class _FirstPass(NamedTuple):
    """What is kept of a pass without graphs."""

    log_w: Tensor
    sizes: list[int]
    """Of the chunks."""
    states: list[list[Tensor]]
    """Of the random number generators, before the densities of each chunk."""
    blocks: list[Block]


def run_in_two_passes(request: Request, size: int, weight: Callable[[Tensor], float]) -> Estimate:
    """Hold ``size`` samples at a time; the backward of ``weight(value) · value.sum()`` is run, and no graph is left.

    Args:
        weight: from the values to what each of them counts in the loss; raises where they are not of the data.
    """
    with first_pass("chunk_size"):
        first = _first_pass(request, size)
        value, coefficients = request.evaluate(first.log_w)
    # The gradient that −mean over the whole batch sends to each datum: known before any backward is run.
    upstream = torch.full_like(value, weight(value))
    if coefficients is not None:
        if coefficients.lesson is not None:
            coefficients.lesson.notes.upstream = upstream
        _run(coefficients.extra, upstream)
        _second_pass(request, size, coefficients, first, upstream)
    return Estimate(value, first.log_w, request.direction)


def _first_pass(request: Request, size: int) -> _FirstPass:
    """The log-weights, written to one place as they come: small results kept between the chunks' large buffers would
    keep the allocator from using their memory again."""
    log_w: Tensor | None = None
    first = _FirstPass(torch.empty(0), [], [], [])
    for chunk in chunks(_recorded(blocks(request), first.blocks), size):
        first.states.append(_equal_or_new(random_states(), first.states[-1:]))
        part = evaluate(request, chunk.latents).log_w
        log_w = part.new_empty((request.count, *part.shape[1:])) if log_w is None else log_w
        start = sum(first.sizes)
        log_w[start : start + len(part)] = part
        first.sizes.append(len(part))
    assert log_w is not None, "there is at least one chunk"
    return first._replace(log_w=log_w)


def _recorded(found: Iterator[Block], record: list[Block]) -> Iterator[Block]:
    for block in found:
        record.append(block)
        yield block


def _equal_or_new(state: list[Tensor], others: list[list[Tensor]]) -> list[Tensor]:
    """The first of ``others`` that equals ``state``, which then need not be kept (densities are rarely random)."""
    return next((other for other in others if all(map(torch.equal, state, other))), state)


def _second_pass(request: Request, size: int, coefficients: Coefficients, first: _FirstPass, upstream: Tensor) -> None:
    latents = (part for block in first.blocks for part in split(block.redraw(), size))
    for chunk, part, state in zip(latents, coefficients.split(first.sizes), first.states, strict=True):
        # Dropout and the like inside the densities: the second evaluation must see the random numbers of the first.
        with restored(state):
            channels = evaluate(request, chunk).channels(part)
        _run(channels, upstream)
        del channels  # the graph of the chunk, before that of the next is made


def _run(channels: Channels, upstream: Tensor) -> None:
    """Their backward. What leads to the proposal's parameters is walked for every chunk, hence kept."""
    carrier = attach(torch.zeros_like(upstream), channels)
    if carrier.requires_grad:
        # The chunk's own nodes are freed with its tensors.
        carrier.backward(upstream, retain_graph=True)  # type: ignore[no-untyped-call]
