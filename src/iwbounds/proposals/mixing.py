"""What a hierarchical proposal is made of, seen alike: distributions, proposals, and what can only be sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.proposals.base import Proposal

__all__ = ["Density", "Sampler", "as_mixing", "draw", "has_density"]

Sampler: TypeAlias = Callable[[tuple[int]], Tensor]
"""An implicit distribution: ``(num_samples,)`` to ``(num_samples, *batch, *event)``, differentiable."""


class Density(Protocol):
    """What a conditional or a reverse model returns: a torch ``Distribution``, or an object with these methods."""

    def log_prob(self, value: Tensor, /) -> Any: ...


def _no_density(_: object) -> Tensor:
    raise TypeError(
        "expected a mixing distribution with a log_prob, as a reverse model or a score-function gradient needs its "
        "density; got one that can only be sampled. Give it a log_prob (iwbounds.Proposal), or use reverse=None."
    )


def as_mixing(mixing: Distribution | Proposal | Sampler) -> Proposal:
    """The mixing distribution as a proposal over ψ; a bare callable is taken to be an implicit one.

    Raises:
        TypeError: neither a ``Distribution`` nor a ``Proposal`` nor callable.
    """
    if isinstance(mixing, Proposal):
        return mixing
    if isinstance(mixing, Distribution):
        sample = mixing.rsample if mixing.has_rsample else mixing.sample
        return Proposal(sample, mixing.log_prob, mixing.has_rsample, type(mixing).__name__)
    if callable(mixing):
        return Proposal(mixing, _no_density, name="the mixing sampler")
    raise TypeError(
        "expected mixing to be a torch Distribution, an iwbounds.Proposal, or a callable from (num_samples,) to "
        f"samples of psi; got {type(mixing).__name__}."
    )


def has_density(mixing: Proposal) -> bool:
    """Whether the density of ψ can be evaluated."""
    return mixing.log_prob is not _no_density


def draw(density: Density, sample_shape: tuple[int, ...], live: bool, name: str) -> Tensor:
    """Samples of what a conditional or a reverse model returned, with a graph only where ``live``.

    Raises:
        ValueError: ``live`` and gradients are on, but it has no ``rsample``.
    """
    reparameterized = getattr(density, "has_rsample", True)
    if live and torch.is_grad_enabled() and not reparameterized:
        raise ValueError(
            f"expected the {name} to return a distribution with rsample; got {type(density).__name__}, which has none. "
            "Say reparameterized=(z, psi) with False for the part that is not, or use VIMCO() or ScoreFunction()."
        )
    sample = getattr(density, "rsample", None) if reparameterized else None
    samples: Tensor = (sample or density.sample)(sample_shape)  # type: ignore[attr-defined]
    return samples if live else samples.detach()
