"""Draws of a proposal and their log-weights, in pieces, for what needs the latents and not only an estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, check_latents, latent_leaves, map_latents
from iwbounds.engine import estimate
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal
from iwbounds.proposals.distributions import as_proposal

__all__ = ["Weighted", "latents_in_chunks"]

_FIRST = 16
_ELEMENTS = 2**18  # of latents drawn at once: 2 MB of float64


@dataclass(frozen=True)
class Weighted:
    """A log-joint and a proposal as the engine sees them, those of an extended latent included.

    A hierarchy, a path or a stratum is an ordinary proposal over more than z: its weights p(x, s)/q(s), of draws s of
    either density, are all that an evidence from both sides, or an expectation, needs to know of it.
    """

    log_joint: LogJoint
    """Of the extended latent s."""
    proposal: Proposal
    """Over s."""
    given: Proposal | ExtendedProposal
    of_z: LogJoint
    """The user's log-joint."""

    @classmethod
    def of(cls, log_joint: LogJoint, proposal: Distribution | Proposal | ExtendedProposal) -> Weighted:
        """Of whatever :func:`iwbounds.estimate` takes."""
        given = as_proposal(proposal)
        if isinstance(given, ExtendedProposal):
            return cls(*given.extend(log_joint), given, log_joint)
        return cls(log_joint, given, given, log_joint)

    def blocks(self, num_samples: int) -> Iterator[Latents]:
        """``num_samples`` draws of s, in blocks whose sizes depend on the latents alone: any chunking, the same ones.

        A proposal whose draws depend on each other, or that recognises its own tensors, is called once.
        """
        # One call: dependent draws are even only as a whole, and a cache knows the last call alone.
        alone = not self.proposal.independent or self.proposal.needs_own_samples
        size = num_samples if alone else _FIRST
        while num_samples:
            size = min(size, num_samples)
            latents = self.proposal.sample((size,))
            check_latents(latents, size)
            yield latents
            num_samples -= size
            # Known from the first block: how many numbers one sample has, and so how many fit.
            elements = sum(z.numel() for z in latent_leaves(latents)) / size
            size = max(_FIRST, int(_ELEMENTS / max(1.0, elements)))

    def calls(self, num_samples: int, per_call: int) -> Iterator[Latents]:
        """``num_samples`` draws of s, so many in each call."""
        for _ in range(num_samples // per_call):
            yield self.proposal.sample((per_call,))

    def chunks(self, latents: Latents, chunk_size: int | None) -> Iterator[Latents]:
        """At most ``chunk_size`` samples at a time; all at once for a proposal that must see its own tensors again."""
        return latents_in_chunks(latents, None if self.proposal.needs_own_samples else chunk_size)

    def visible(self, latents: Latents) -> Latents:
        """z of s."""
        return latents if self.proposal.visible is None else self.proposal.visible(latents)

    @torch.no_grad()
    def log_weights(self, latents: Latents, chunk_size: int | None = None) -> Tensor:
        """``(K, *batch)`` of draws of s, under the checks of :func:`iwbounds.estimate`."""
        chunks = self.chunks(latents, chunk_size)
        # Through estimate, which checks shapes, dtypes and parts; under no_grad it keeps no graph.
        return torch.cat([estimate(self.log_joint, self.proposal, samples=chunk).log_weights for chunk in chunks])

    @torch.no_grad()
    def posterior_log_weights(self, z: Latents, chunk_size: int | None = None) -> Tensor:
        """``(S, *batch)`` of draws of the posterior of z, each completed to one of s.

        Raises:
            TypeError: an extended proposal that cannot complete them.
        """
        if not isinstance(self.given, ExtendedProposal):
            # Draws from elsewhere are nobody's own tensors: slices of them are as good.
            chunks = latents_in_chunks(z, chunk_size)
            return torch.cat([estimate(self.log_joint, self.proposal, samples=c).log_weights for c in chunks])
        # With the user's log-joint: what else s has is completed by the proposal, with densities of its own.
        return torch.cat([self.given.posterior_log_weights(self.of_z, c) for c in latents_in_chunks(z, chunk_size)])


def latents_in_chunks(latents: Latents, chunk_size: int | None) -> Iterator[Latents]:
    """At most ``chunk_size`` samples at a time; None: all, and the very tensors, which log_prob may recognise."""
    count = check_latents(latents, None)
    if chunk_size is None or chunk_size >= count:
        yield latents
        return
    for start in range(0, count, chunk_size):
        yield map_latents(lambda z, rows=slice(start, start + chunk_size): z[rows], latents)
