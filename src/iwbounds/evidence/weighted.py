"""Draws of a proposal and their log-weights, in pieces, for what needs the latents and not only an estimate."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, check_latents, latent_leaves, map_latents
from iwbounds.engine import estimate
from iwbounds.proposals import LogJoint, Proposal, as_proposal

__all__ = ["blocks", "chunked_log_weights", "latents_in_chunks", "plain_proposal"]

_FIRST = 16
_ELEMENTS = 2**18  # of latents drawn at once: 2 MB of float64


def plain_proposal(proposal: Distribution | Proposal, instead: str) -> Proposal:
    """The engine's view of a proposal whose latents are the model's own.

    Raises:
        TypeError: the proposal extends the latent (a hierarchy, a path); ``instead`` says what to do.
    """
    plain = as_proposal(proposal)
    if type(plain) is not Proposal:
        raise TypeError(
            f"expected a torch Distribution or an iwbounds.Proposal, whose samples are the model's latents; got "
            f"{type(plain).__name__}, which extends them. {instead}"
        )
    return plain


def blocks(proposal: Proposal, num_samples: int) -> Iterator[Latents]:
    """``num_samples`` latents, drawn in blocks whose sizes depend on the latents alone: any chunking, the same numbers.

    A proposal whose draws depend on each other, or that recognises its own tensors, is called once.
    """
    alone = not getattr(proposal, "independent", True) or getattr(proposal, "needs_own_samples", False)
    size = num_samples if alone else _FIRST
    while num_samples:
        size = min(size, num_samples)
        latents = proposal.sample((size,))
        check_latents(latents, size)
        yield latents
        num_samples -= size
        elements = sum(z.numel() for z in latent_leaves(latents)) / size
        size = max(_FIRST, int(_ELEMENTS / max(1.0, elements)))


def latents_in_chunks(latents: Latents, chunk_size: int | None) -> Iterator[Latents]:
    """At most ``chunk_size`` samples at a time; None: all."""
    count = check_latents(latents, None)
    step = chunk_size or count
    for start in range(0, count, step):
        yield map_latents(lambda z, rows=slice(start, start + step): z[rows], latents)


@torch.no_grad()
def chunked_log_weights(
    log_joint: LogJoint, proposal: Proposal, latents: Latents, chunk_size: int | None = None
) -> Tensor:
    """Log-weights ``(K, *batch)`` of latents at hand, under the checks of :func:`iwbounds.estimate`."""
    chunks = latents_in_chunks(latents, chunk_size)
    return torch.cat([estimate(log_joint, proposal, samples=chunk).log_weights for chunk in chunks])
