"""A few samples in memory at a time, with the exact gradient.

Both log-densities of each chunk of samples are evaluated under a checkpoint: the forward keeps their values only, and
the backward, which needs nothing but the coefficients, makes the graph of one chunk at a time anew. Any chunking gives
the same numbers to rounding, as the latents are drawn outside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iwbounds.checks import check_latents
from iwbounds.engine.routes import Channels, Route, route_for
from iwbounds.engine.rule import Rule
from iwbounds.gradients import Coefficients
from iwbounds.latents import Latents, latent_leaves, map_latents
from iwbounds.proposals import LogJoint, Proposal

__all__ = ["ChunkedRoute", "make_route"]


def make_route(log_joint: LogJoint, proposal: Proposal, rule: Rule, latents: Latents, chunk_size: int | None) -> Route:
    """The route that serves the rule, over all samples at once or chunk by chunk.

    Raises:
        ValueError: ``chunk_size`` is not positive.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"expected a chunk_size of at least 1 sample; got {chunk_size}. None takes all at once.")
    route = route_for(rule)
    if chunk_size is None or chunk_size >= check_latents(latents, None):
        return route(log_joint, proposal, latents)
    return ChunkedRoute(route, log_joint, proposal, latents, chunk_size)


class ChunkedRoute:
    """The routes of all chunks as one."""

    def __init__(
        self, route: type[Route], log_joint: LogJoint, proposal: Proposal, latents: Latents, chunk_size: int
    ) -> None:
        log_joint = _checkpointed(log_joint)
        proposal = dataclasses.replace(proposal, log_prob=_checkpointed(proposal.log_prob))
        self._sizes = [chunk.shape[0] for chunk in torch.split(next(latent_leaves(latents)), chunk_size)]
        self._routes = [route(log_joint, proposal, chunk) for chunk in split_latents(latents, chunk_size)]
        self.log_w = torch.cat([chunk.log_w for chunk in self._routes])

    def channels(self, coefficients: Coefficients) -> Channels:
        parts = zip(*(_split(c, self._sizes) for c in _three(coefficients)), strict=True)
        return [
            channel
            for route, part in zip(self._routes, parts, strict=True)
            for channel in route.channels(Coefficients(*part))
        ]


def split_latents(latents: Latents, size: int) -> Iterator[Latents]:
    """Latents in pieces of ``size`` samples."""
    leaves = [torch.split(leaf, size) for leaf in latent_leaves(latents)]
    for pieces in zip(*leaves, strict=True):
        left = iter(pieces)
        yield map_latents(lambda _, left=left: next(left), latents)


def _three(coefficients: Coefficients) -> tuple[Tensor | None, ...]:
    return coefficients.model, coefficients.path, coefficients.score


def _split(coefficient: Tensor | None, sizes: list[int]) -> list[Tensor | None]:
    return [None] * len(sizes) if coefficient is None else list(torch.split(coefficient, sizes))


def _checkpointed(density: Callable[[Latents], Any]) -> Callable[[Latents], Any]:
    def recomputed(latents: Latents) -> Any:
        return checkpoint(density, latents, use_reentrant=False)

    return recomputed
