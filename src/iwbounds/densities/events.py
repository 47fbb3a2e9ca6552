"""How arguments of different leading shape are laid out, and cut into blocks that stay in a processor's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from iwbounds.checks import full_precision

__all__ = ["add_block", "arrange", "block_of", "blocks"]

BLOCK = 1 << 20
"""Entries of a block, four megabytes of float32: the passes over it stay in a last-level cache, and are few enough that
threads seldom wait for each other."""


def arrange(event_dims: int, **arguments: Tensor) -> tuple[list[Tensor], torch.Size]:
    """Each argument as ``(S, B, D)`` or, where it is shared by all S, ``(B, D)``; and the shape of the log-density.

    The event is flattened into D. An argument's shape is the trailing part of the largest argument's, whose axes it
    lacks are S; arguments of yet fewer axes are expanded to B.

    Raises:
        TypeError: float32 among float64.
        ValueError: ``event_dims`` below 1, or shapes that do not match.
    """
    full = _largest_shape(arguments)
    if not 1 <= event_dims <= len(full):
        raise ValueError(f"expected event_dims between 1 and {len(full)}, the axes of the arguments; got {event_dims}.")
    dtype = _common_dtype(arguments)
    lead, event = full[: len(full) - event_dims], full[len(full) - event_dims :]
    # The axes that the longest of the shorter arguments still has are the batch B; those in front of it, S, are the
    # samples that all shorter ones share.
    shorter = [max(t.ndim - event_dims, 0) for t in arguments.values() if t.ndim < len(full)]
    base = lead[len(lead) - max(shorter) :] if shorter else torch.Size()
    shared = (math.prod(base), math.prod(event))
    each = (math.prod(lead[: len(lead) - len(base)]), *shared)
    laid = [
        t.reshape(each) if t.ndim == len(full) else t.expand(*base, *event).reshape(shared) for t in arguments.values()
    ]
    return [t if t.is_floating_point() else t.to(dtype) for t in laid], lead


def _largest_shape(arguments: dict[str, Tensor]) -> torch.Size:
    """The shape that has all the axes, known to end in the shape of every argument."""
    # The largest by number of axes, so that (1, D) is not taken for a broadcastable (K, D): sizes must agree.
    most = max(t.ndim for t in arguments.values())
    full = next(t.shape for t in arguments.values() if t.ndim == most)
    for name, t in arguments.items():
        if t.shape != full[most - t.ndim :]:
            raise ValueError(
                f"expected {name} to have the trailing axes of {tuple(full)}, the largest argument's shape; got "
                f"{tuple(t.shape)}. Arguments may lack leading (sample) axes only: unsqueeze or expand the others."
            )
    return full


def _common_dtype(arguments: dict[str, Tensor]) -> torch.dtype:
    found = {full_precision(t.dtype): f"{name}: {t.dtype}" for name, t in arguments.items() if t.is_floating_point()}
    if len(found) > 1:
        raise TypeError(f"expected arguments of one precision; got {', '.join(found.values())}. Convert one of them.")
    if not found:
        raise TypeError("expected at least one floating-point argument; got integers only. Convert one with .float().")
    return next(iter(found))


def blocks(samples: int, batch: int, events: int) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and of data whose events together make about ``BLOCK`` entries."""
    # Whole events always: they are what is summed. An event above BLOCK is a block by itself.
    data = max(1, min(batch, BLOCK // max(events, 1)))
    step = max(1, BLOCK // max(data * events, 1))
    for s in range(0, samples, step):
        for b in range(0, batch, data):
            yield slice(s, s + step), slice(b, b + data)


def block_of(x: Tensor, s: slice, b: slice, dtype: torch.dtype) -> Tensor:
    """A block of an argument ``(S, B, D)``, or of a shared one ``(B, D)``, in the precision of the sums."""
    return (x[s, b] if x.ndim == 3 else x[b]).to(dtype)


def add_block(total: Tensor, s: slice, b: slice, block: Tensor) -> None:
    """Put a block of a gradient in its place, summed over the samples where the argument is shared by them."""
    if total.ndim == 3:
        total[s, b] = block
    else:
        total[b] += block.sum(0)
