r"""What an estimator learns from a backward: sums over samples of the slopes of log p and log q, as they come by.

An estimator that learns says with its coefficients, sample by sample, what it would multiply the two slopes by. The
engine listens where a backward has the slopes at hand anyway, sums them at once (what is kept has no sample axis), and
hands the sums to the estimator when the last slope has come. So nothing is evaluated twice, and nothing is learned
before the backward is through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Lesson", "Listener", "Notes"]

Listener: TypeAlias = Callable[[int, Tensor | None], None]
"""Is told a part of the latents, by its place, and what has come by there, ``(K, *batch, *event)``; None for zeros."""


@dataclass(eq=False)
class Notes:
    """What the parts of one estimate's backward have brought so far, and who wants to know."""

    learn: Callable[[Tensor], None]
    """Takes the sums ``(J, *batch, events)`` of all samples, once."""
    commit: Callable[[], None]
    """Makes what was learned count."""
    commit_at_end: bool = False
    """Whether this estimate is a step of its own, and not one part of several."""
    upstream: Tensor | None = None
    """The gradient that has arrived at the value, ``(*batch)``."""
    total: Callable[[Tensor], Tensor] | None = None
    """Adds up what several processes bring, each of its own samples; None where all samples are here."""
    outstanding: int = 1
    """Groups of samples whose slopes have not all come."""
    sums: dict[int, Tensor] = field(default_factory=dict)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The upstream gradient, and its root mean square.

        Data count as they count in the loss, as its variance is what is to be small. The scale of the loss drops out.
        """
        assert self.upstream is not None, "the gradient of the value is the first to be known"
        size = self.upstream.square().mean().sqrt()
        # A loss that does not depend on the value teaches zeros, not NaN.
        return self.upstream, torch.where(size == 0, torch.ones_like(size), size)

    def add(self, place: int, found: Tensor) -> None:
        """Sums over some samples, of one part of the latents."""
        # Chunks come one by one, and only their sums are kept: no slope outlives its chunk.
        self.sums[place] = self.sums[place] + found if place in self.sums else found

    def close_one(self) -> None:
        """A group of samples is through; the last one hands all in."""
        self.outstanding -= 1
        if self.outstanding == 0 and self.sums:
            # By place, not by arrival: parts of the latents come in whatever order autograd walks.
            found = torch.cat([self.sums[place] for place in sorted(self.sums)], -1)
            self.sums.clear()
            self.learn(found if self.total is None else self.total(found))
            if self.commit_at_end:
                self.commit()


@dataclass(eq=False)
class Lesson:
    """The multipliers of some samples' slopes; the notes are shared by all samples of an estimate."""

    on_p: Tensor
    """Of ∂_z log p: ``(J, K, *batch)``."""
    on_q: Tensor
    """Of ∂_z log q at fixed parameters."""
    notes: Notes
    _awaited: int = 0

    def split(self, sizes: list[int]) -> list[Lesson]:
        """Those of the first ``sizes[0]`` samples, of the next ``sizes[1]``, and so on."""
        # One group became len(sizes) of them, and the last to come hands in the sums of all.
        self.notes.outstanding += len(sizes) - 1
        pairs = zip(torch.split(self.on_p, sizes, 1), torch.split(self.on_q, sizes, 1), strict=True)
        return [Lesson(p, q, self.notes) for p, q in pairs]

    def chosen(self, take: Callable[[Tensor], Tensor]) -> Lesson:
        """That of selected samples; ``take`` selects from one ``(K, *batch)`` tensor, and weighs what it selects."""
        on_p, on_q = (torch.stack([take(row) for row in rows]) for rows in (self.on_p, self.on_q))
        return Lesson(on_p, on_q, self.notes)

    def share(self, rows: slice, total: Callable[[Tensor], Tensor]) -> Lesson:
        """That of one process's samples; ``total`` adds the sums up over all processes, once, at the end of the
        backward. Then all of them learn the same."""
        self.notes.total = total
        return Lesson(self.on_p[:, rows], self.on_q[:, rows], self.notes)

    def of_weighted_p(self, model: Tensor, parts: int) -> Listener:
        """For slopes of log p that come multiplied by the upstream gradient and the ``model`` coefficient.

        They are never divided by it: it underflows for most samples. The multipliers are, whose ratio to it is bounded
        (the caller knows); where it is 0 the slopes that come are, too.
        """
        # 0/0 where the coefficient vanished: the slope that comes is 0 there, too.
        relative = (self.on_p / model).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return self._listener(relative, parts, weighted=True)

    def of_p(self, parts: int) -> Listener:
        """For plain slopes of log p."""
        return self._listener(self.on_p, parts, weighted=False)

    def of_q(self, parts: int) -> Listener:
        """For plain slopes of log q."""
        return self._listener(self.on_q, parts, weighted=False)

    def _listener(self, multipliers: Tensor, parts: int, weighted: bool) -> Listener:
        self._awaited += parts

        @torch.no_grad()
        def hear(place: int, slope: Tensor | None) -> None:
            if slope is not None:
                upstream, size = self.notes.weights()
                # A slope that came through the gate has the upstream gradient in it already.
                weight = 1 / size if weighted else (upstream / size).unsqueeze(-1)
                self.notes.add(place, weight * _sum_over_samples(multipliers, slope))
            self._awaited -= 1
            if self._awaited == 0:
                self.notes.close_one()

        return hear


def _sum_over_samples(multipliers: Tensor, slope: Tensor) -> Tensor:
    """``(J, K, *batch)`` and ``(K, *batch, *event)`` to ``(J, *batch, events)``."""
    # In the multipliers' precision, float32 or more: half slopes would lose the small ones in the sum.
    flat = slope.reshape(*multipliers.shape[1:], -1).to(multipliers.dtype)
    return torch.einsum("jk...,k...e->j...e", multipliers, flat)
