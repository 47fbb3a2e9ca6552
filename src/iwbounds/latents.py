"""Latents are a tensor, or a (possibly nested) tuple, list or dict of tensors; these walk them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

__all__ = ["Latents", "latent_leaves", "map_latents"]

Latents: TypeAlias = Any
"""A tensor ``(K, *batch, *event)``, or a tuple, list or dict of latents."""


def map_latents(function: Callable[..., Any], latents: Latents, *others: Latents) -> Latents:
    """Apply ``function`` to every tensor, keeping the structure; ``others`` mirror ``latents`` and go along.

    >>> import torch
    >>> map_latents(torch.neg, {"z": torch.ones(2), "s": (torch.zeros(1),)})
    {'z': tensor([-1., -1.]), 's': (tensor([-0.]),)}
    """
    if isinstance(latents, dict):
        return {key: map_latents(function, part, *(other[key] for other in others)) for key, part in latents.items()}
    if isinstance(latents, tuple | list):
        parts = [map_latents(function, part, *(other[i] for other in others)) for i, part in enumerate(latents)]
        return type(latents)(*parts) if hasattr(latents, "_fields") else type(latents)(parts)
    return function(latents, *others)


def latent_leaves(latents: Latents) -> Iterator[Any]:
    """Every tensor in ``latents``, in the order of :func:`map_latents`."""
    if isinstance(latents, dict):
        latents = latents.values()
    elif not isinstance(latents, tuple | list):
        yield latents
        return
    for part in latents:
        yield from latent_leaves(part)
