"""A few samples in memory at a time, with the exact gradient.

Both log-densities of each chunk of samples are evaluated under a checkpoint: the forward keeps their values only, and
the backward, which needs nothing but the coefficients, makes the graph of one chunk at a time anew. The latents of a
torch ``Distribution`` are not kept either (see :mod:`iwbounds.engine.redraws`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iwbounds.engine.redraws import Chunk, Draws
from iwbounds.engine.routes import Channels, Route, route_for
from iwbounds.engine.rule import Rule
from iwbounds.gradients import Coefficients
from iwbounds.latents import Latents, latent_leaves, map_latents
from iwbounds.proposals import LogJoint, Proposal

__all__ = ["ChunkedRoute", "make_route"]


def make_route(log_joint: LogJoint, proposal: Proposal, rule: Rule, draws: Draws, chunk_size: int | None) -> Route:
    """The route that serves the rule, over all samples at once or chunk by chunk."""
    if chunk_size is None or chunk_size >= draws.count:
        return route_for(rule, proposal)(log_joint, proposal, draws.latents)
    return ChunkedRoute(rule, log_joint, proposal, draws.chunks(chunk_size))


class ChunkedRoute:
    """The routes of all chunks as one."""

    def __init__(self, rule: Rule, log_joint: LogJoint, proposal: Proposal, chunks: Iterable[Chunk]) -> None:
        def of_chunk(chunk: Chunk) -> Route:
            log_prob = _recomputed(proposal.log_prob, chunk.again)
            replaced = dataclasses.replace(proposal, log_prob=log_prob, fixed_log_prob=None)
            return route_for(rule, replaced)(_recomputed(log_joint, chunk.again), replaced, chunk.latents)

        self._routes = list(map(of_chunk, chunks))
        self._sizes = [part.log_w.shape[0] for part in self._routes]
        self.log_w = torch.cat([part.log_w for part in self._routes])

    def channels(self, coefficients: Coefficients) -> Channels:
        parts = zip(self._routes, coefficients.split(self._sizes), strict=True)
        return [channel for route, part in parts for channel in route.channels(part)]


def _recomputed(density: Callable[[Latents], Any], again: Callable[[], Latents]) -> Callable[[Latents], Any]:
    """The density under a checkpoint, whose second evaluation gets its latents from ``again`` and holds none itself."""

    def evaluate(latents: Latents) -> Any:
        given = [latents]
        live = map_latents(lambda z: z.requires_grad, latents)
        device = next(latent_leaves(latents)).device

        def once_more(_: Tensor) -> Any:
            if given:
                return density(given.pop())
            return density(map_latents(lambda z, grad: z.detach().requires_grad_(grad), again(), live))

        return checkpoint(once_more, torch.empty(0, device=device), use_reentrant=False)

    return evaluate
