"""Latents in chunks: views of latents that are held, or blocks that are forgotten and drawn again.

A block is drawn by one call of the proposal. What is kept of it is the state of the random number generators before
that call. The backward puts that state back and draws the block anew: once for its densities, once for its own graph.
The size of the blocks does not depend on that of the chunks, so any chunking gives the same latents. On the CPU they
are also those of a single call, for distributions that fill a tensor from a sequence of random numbers (the blocks hold
a multiple of 16 samples for the sake of the vectorised normal generator).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iwbounds.latents import Latents, latent_leaves, map_latents

__all__ = ["Chunk", "Draws"]


@dataclass(frozen=True)
class Chunk:
    """A few samples: in the graph, for the forward, and their values once more, for the backward."""

    latents: Latents
    again: Callable[[], Latents]


class Draws:
    """``count`` latents, drawn when they are asked for: all of them, or chunks that are forgotten.

    Args:
        count: K.
        sample: a number of samples to latents.
        per_call: how many samples to draw in one call where they may be forgotten. None: they may not.
    """

    def __init__(self, count: int, sample: Callable[[int], Latents], per_call: int | None = None) -> None:
        self.count, self._sample, self._per_call = count, sample, per_call
        self._held: Latents | None = None
        self._blocks: list[Block] = []
        self._latest: tuple[Block, Latents] | None = None

    @property
    def latents(self) -> Latents:
        """All of them; from now on they are held."""
        if self._held is None:
            self._held = self._sample(self.count)
        return self._held

    @property
    def held(self) -> bool:
        """Whether they are held, or would be."""
        return self._held is not None or self._per_call is None or torch.compiler.is_compiling()

    def chunks(self, size: int) -> Iterator[Chunk]:
        """At most ``size`` samples at a time.

        Raises:
            ValueError: ``size``, or the proposal's ``samples_per_call``, is not positive.
        """
        if size < 1:
            raise ValueError(f"expected a chunk_size of at least 1 sample; got {size}. None takes all at once.")
        if self._per_call is not None and self._per_call < 1:
            raise ValueError(f"expected samples_per_call of at least 1; got {self._per_call}. None draws all at once.")
        if self.held or self._per_call is None:
            yield from (Chunk(chunk, partial(_itself, chunk)) for chunk in _split(self.latents, size))
            return
        for number in _parts(self.count, self._per_call):
            block = Block(partial(self._sample, number))
            self._blocks.append(block)
            for start, chunk in zip(range(0, number, size), _split(block.in_graph(), size), strict=True):
                yield Chunk(chunk, partial(self._again, block, slice(start, start + size)))

    def chunks_again(self, size: int) -> Iterator[Latents]:
        """The same samples as :meth:`chunks` gave, in a graph of their own."""
        if self.held:
            yield from _split(self.latents, size)
        for block in self._blocks:
            yield from _split(block.draw(), size)

    def _again(self, block: Block, part: slice) -> Latents:
        if self._latest is None or self._latest[0] is not block:
            self._latest = None
            self._latest = block, block.values()
        return map_latents(lambda z: z[part], self._latest[1])


def _itself(latents: Latents) -> Latents:
    return latents


def _parts(count: int, size: int) -> list[int]:
    """``count`` in parts of ``size``, the last one larger rather than below 16 samples."""
    whole = max(1, (count + size - 16) // size)
    return [*[size] * (whole - 1), count - size * (whole - 1)]


def _split(latents: Latents, size: int) -> Iterator[Latents]:
    """Latents in views of ``size`` samples."""
    leaves = [torch.split(leaf, size) for leaf in latent_leaves(latents)]
    for pieces in zip(*leaves, strict=True):
        left = iter(pieces)
        yield map_latents(lambda _, left=left: next(left), latents)


class Block:
    """The samples of one call, which can be made again."""

    def __init__(self, sample: Callable[[], Latents]) -> None:
        self._sample = sample
        self._states = random_states()
        self._first: list[Tensor] | None = None

    def in_graph(self) -> Latents:
        """Latents whose graph holds no values: the backward draws the block anew."""
        return checkpoint(self.draw, use_reentrant=False, preserve_rng_state=False)

    @torch.no_grad()
    def values(self) -> Latents:
        """The same numbers, outside every graph."""
        return self.draw()

    def draw(self) -> Latents:
        """For the first time, or once more."""
        if self._first is None:
            latents = self._sample()
            self._first = [z[:1].detach().clone() for z in latent_leaves(latents)]
            return latents
        with restored(self._states):
            latents = self._sample()
        self._check_same(latents)
        return latents

    def _check_same(self, latents: Latents) -> None:
        firsts = zip(latent_leaves(latents), self._first or [], strict=True)
        if not all(torch.allclose(z[:1], first, rtol=0, atol=0, equal_nan=True) for z, first in firsts):
            raise RuntimeError(
                "expected the proposal to draw the same samples again for the backward of a chunk, from the same state "
                "of PyTorch's random number generators; got others. Its randomness comes from elsewhere, or its "
                "parameters were changed in place before the backward. Draw samples yourself and pass samples=…."
            )


def random_states() -> list[Tensor]:
    """The states of PyTorch's generators: the CPU's, and those of CUDA devices in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *cuda]


@contextmanager
def restored(states: list[Tensor]) -> Iterator[None]:
    """Run under earlier states of the generators, and leave no trace of it."""
    cpu, *cuda = states
    with torch.random.fork_rng(devices=range(len(cuda))):
        torch.set_rng_state(cpu)
        for device, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, device)
        yield
