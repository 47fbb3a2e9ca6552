"""Latents in blocks: kept as they are, or forgotten and drawn again.

A block that is forgotten is drawn by one call of the proposal. What is kept of it is the state of the random number
generators before that call. The backward puts that state back and draws the block anew: once for its densities, once
for its own graph. The size of the blocks does not depend on that of the chunks, so any chunking gives the same latents.
On the CPU they are also those of a single call, for distributions that fill a tensor from a sequence of random numbers
(the blocks hold a multiple of 16 samples for the sake of the vectorised normal generator).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iwbounds.checks import Latents, check_whole_number, latent_leaves, map_latents
from iwbounds.engine.autograd import compiling

if TYPE_CHECKING:
    from iwbounds.engine.request import Request  # for annotations alone, so that no chain of imports grows

__all__ = ["Block", "Chunk", "blocks", "chunks", "random_states", "restored", "split"]


class Block(Protocol):
    """Samples of one call."""

    def in_graph(self) -> Latents:
        """For the forward: in the graph, where the gradient follows them."""

    def values(self) -> Latents:
        """The same numbers outside every graph."""

    def redraw(self) -> Latents:
        """The same samples for a pass of their own."""


class Chunk(NamedTuple):
    """A few samples: in the graph, for the forward, and their values once more, for the backward."""

    latents: Latents
    values: Callable[[], Latents]


def blocks(request: Request) -> Iterator[Block]:
    """The samples in blocks, each drawn when it is asked for; a single one where they must be kept."""
    per_call = request.proposal.samples_per_call
    if per_call is not None:
        per_call = check_whole_number("samples_per_call", per_call, 1, "Draw at least 1; None draws all at once.")
    if request.samples is not None or per_call is None or compiling():
        # In the graph even where the pass that asks for them, the first of two, is not.
        with torch.set_grad_enabled(request.differentiate):
            latents = request.all_samples()
        yield KeptBlock(latents)
        return
    # The last block is the larger one, rather than below 16 samples.
    # By number of samples and per_call alone, never by the chunk size: every chunking then draws the same latents.
    number = max(1, (request.count + per_call - 16) // per_call)
    for size in [*[per_call] * (number - 1), request.count - per_call * (number - 1)]:
        yield RedrawnBlock(partial(request.draw, size))


def chunks(found: Iterator[Block], size: int) -> Iterator[Chunk]:
    """At most ``size`` samples at a time, of one block after the other.

    The chunks of a block are walked one after the other in the backward too, so that the values of one block, the
    latest, are all that is kept there.
    """
    latest: list[tuple[Block, Latents]] = []

    def values(block: Block, part: slice) -> Latents:
        if not latest or latest[0][0] is not block:
            latest.clear()  # before the next block is drawn, so that two are never held
            latest.append((block, block.values()))
        return map_latents(lambda z: z[part], latest[0][1])

    for block in found:
        start = 0
        for latents in split(block.in_graph(), size):
            stop = start + latent_leaves(latents)[0].shape[0]
            yield Chunk(latents, partial(values, block, slice(start, stop)))
            start = stop


def split(latents: Latents, size: int) -> Iterator[Latents]:
    """Latents in views of ``size`` samples."""
    # torch.split makes one node of the graph for all its views, where indexing would make one for each.
    leaves = [torch.split(leaf, size) for leaf in latent_leaves(latents)]
    for pieces in zip(*leaves, strict=True):
        left = iter(pieces)
        yield map_latents(lambda _, left=left: next(left), latents)


class KeptBlock:
    """Samples that stay in memory, all in one graph."""

    def __init__(self, latents: Latents) -> None:
        self._latents = latents

    def in_graph(self) -> Latents:
        return self._latents

    def values(self) -> Latents:
        return self._latents

    def redraw(self) -> Latents:
        return self._latents


class RedrawnBlock:
    """Samples that are forgotten, and can be made again."""

    def __init__(self, sample: Callable[[], Latents]) -> None:
        self._sample = sample
        # Taken when the block is made, which is right before its first draw: blocks are made one at a time.
        self._states = random_states()
        self._first: list[Tensor] | None = None

    def in_graph(self) -> Latents:
        """Latents whose graph holds no values: the backward draws the block anew."""
        # preserve_rng_state would fork the generators around the first draw too; redraw restores them itself.
        return checkpoint(self.redraw, use_reentrant=False, preserve_rng_state=False)

    @torch.no_grad()
    def values(self) -> Latents:
        return self.redraw()

    def redraw(self) -> Latents:
        """For the first time, or once more."""
        if self._first is None:
            latents = self._sample()
            # A few numbers are kept, to tell a redraw that is not the same from one that is.
            self._first = list(_first_numbers(latents))
            return latents
        with restored(self._states):
            latents = self._sample()
        self._check_same(latents)
        return latents

    def _check_same(self, latents: Latents) -> None:
        firsts = zip(_first_numbers(latents), self._first or [], strict=True)
        if not all(torch.allclose(z, first, rtol=0, atol=0, equal_nan=True) for z, first in firsts):
            raise RuntimeError(
                "expected the proposal to draw the same samples again for the backward of a chunk, from the same state "
                "of PyTorch's random number generators; got others. Its randomness comes from elsewhere, or its "
                "parameters were changed in place before the backward. Draw samples yourself and pass samples=…."
            )


def _first_numbers(latents: Latents) -> Iterator[Tensor]:
    """Of every part, as many numbers of its first sample as tell it from another draw: a block keeps no more."""
    for leaf in latent_leaves(latents):
        yield leaf[:1].detach().flatten()[:16].clone()


def random_states() -> list[Tensor]:
    """The states of PyTorch's generators: the CPU's, and those of CUDA devices in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *cuda]


@contextmanager
def restored(states: list[Tensor]) -> Iterator[None]:
    """Run under earlier states of the generators, and leave no trace of it."""
    cpu, *cuda = states
    # fork_rng puts back what was there before: the backward must not move the user's random numbers.
    with torch.random.fork_rng(devices=range(len(cuda))):
        torch.set_rng_state(cpu)
        for device, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, device)
        yield
