"""Latents as points that can be moved: flattened, unconstrained and standardised."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.proposals import Proposal
from iwbounds.testing.weights import log_proposal

__all__ = ["Coordinates", "flattened", "is_discrete", "support_bijection", "unflattened"]


def is_discrete(z: Tensor) -> bool:
    """Whether draws are of a discrete latent: a continuous one never falls on integers alone."""
    return not z.is_floating_point() or bool((z == z.round()).all())


def flattened(latents: Latents, leading: int) -> Tensor:
    """All parts side by side, ``(n, *batch, d)``; ``leading`` counts the sample and batch axes."""
    return torch.cat([z.reshape(*z.shape[:leading], -1) for z in latent_leaves(latents)], -1)


def unflattened(points: Tensor, like: Latents) -> Latents:
    """The inverse of :func:`flattened`, in the structure, shapes and dtypes of ``like`` (but for its first axis)."""
    leading = points.ndim - 1
    start = 0

    def take(z: Tensor) -> Tensor:
        nonlocal start
        size = math.prod(z.shape[leading:])
        part = points[..., start : start + size]
        start += size
        return part.reshape(-1, *z.shape[1:]).to(z.dtype)

    return map_latents(take, like)


def support_bijection(proposal: Distribution | Proposal) -> Any | None:
    """The bijection from unconstrained space onto a torch distribution's support; None where it is not known."""
    if not isinstance(proposal, Distribution) or proposal.support is None or proposal.support.is_discrete:
        return None
    try:
        return biject_to(proposal.support)
    except NotImplementedError:
        return None


class Coordinates:
    """Continuous latents, unconstrained where the support is known, standardised per datum.

    Args:
        proposal: whose log-density is asked for.
        bijection: from :func:`support_bijection`; None for the identity.
        reference: latents ``(n, *batch, *event)`` that location and scale are taken from.
        batch: the batch shape.
    """

    def __init__(self, proposal: Proposal, bijection: Any | None, reference: Latents, batch: torch.Size) -> None:
        self._proposal, self._bijection, self._leading = proposal, bijection, 1 + len(batch)
        self._like = reference if bijection is None else bijection.inv(reference)
        raw = flattened(self._like, self._leading)
        scale = raw.std(0)
        self._location, self._scale = raw.mean(0), torch.where(scale > 0, scale, 1.0)

    def of(self, latents: Latents) -> Tensor:
        """``(n, *batch, d)`` standardised coordinates."""
        raw = latents if self._bijection is None else self._bijection.inv(latents)
        return (flattened(raw, self._leading) - self._location) / self._scale

    def log_prob(self, points: Tensor) -> Tensor:
        """The proposal's log-density of standardised coordinates, ``(n, *batch)``; it should integrate to one.

        NaN, as a density outside its support may be, counts as −inf.
        """
        moved = unflattened(points * self._scale + self._location, self._like)
        log_jacobian = self._scale.log().sum(-1)
        if self._bijection is not None:
            log_jacobian = log_jacobian + self._bijection.log_abs_det_jacobian(moved, moved := self._bijection(moved))
        return (log_proposal(self._proposal, moved) + log_jacobian).nan_to_num(
            nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
        )
