r"""A constant-memory state of the weights seen so far, which merges over chunks, processes and restarts.

Per datum: the maximum log-weight m, the sums :math:`\sum e^{\ell-m}` and :math:`\sum e^{2(\ell-m)}` in float64, and the
count. Merging rescales the sums to the larger maximum. A running ``logaddexp`` in float32 is 0.26 nats off after 1e5
single samples; this state is off by 2e-6. On request the largest log-weights are kept as they are, for Pareto's k̂.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from iwbounds.diagnostics import pareto_k_of_largest, tail_size
from iwbounds.logspace.mean import finite_maximum, finite_or_zero, log_mean_exp, promoted

__all__ = ["StreamingWeights", "means_of_calls"]


@dataclass(frozen=True)
class StreamingWeights:
    r"""Everything that evidence and effective sample size need of weights that are seen once.

    Immutable: :meth:`updated` and :meth:`merged` return new states. ``+`` merges.

    >>> log_w = torch.randn(1000, 2)
    >>> state = StreamingWeights.empty((2,)).updated(log_w[:300]).updated(log_w[300:])
    >>> torch.allclose(state.log_mean(), log_w.double().logsumexp(0) - math.log(1000))
    True
    """

    maximum: Tensor
    """``(*batch)`` float64 nats."""
    total: Tensor
    """``(*batch)`` float64, relative to the maximum."""
    squares: Tensor
    """``(*batch)`` float64, relative to twice the maximum."""
    count: int
    """Samples per datum."""
    largest: Tensor | None = None
    """``(n, *batch)``: the largest log-weights seen, descending, in their own dtype; None where none are kept."""
    capacity: int = 0
    """How many of the largest log-weights are kept."""

    @classmethod
    def empty(
        cls, batch_shape: tuple[int, ...], device: torch.device | str = "cpu", capacity: int = 0
    ) -> StreamingWeights:
        """The state before any sample, that will keep the ``capacity`` largest log-weights of each datum."""
        zero = torch.zeros(batch_shape, dtype=torch.float64, device=device)
        return cls(torch.full_like(zero, -torch.inf), zero, zero.clone(), 0, None, capacity)

    @classmethod
    def of(cls, log_w: Tensor, capacity: int = 0) -> StreamingWeights:
        """The state of one chunk of log-weights ``(K, *batch)``."""
        log_w = promoted(log_w.detach())
        x = log_w.double()
        # Relative to a finite maximum: a datum whose weights are all dead has sums of 0, and no NaN.
        exp = (x - finite_maximum(x, 0)).exp()
        largest = log_w.topk(min(capacity, len(log_w)), dim=0).values if capacity else None
        return cls(x.amax(0), exp.sum(0), exp.square().sum(0), x.shape[0], largest, capacity)

    def updated(self, log_w: Tensor) -> StreamingWeights:
        """This state and the samples in ``log_w`` ``(K, *batch)``."""
        return self.merged(StreamingWeights.of(log_w, self.capacity))

    def merged(self, other: StreamingWeights) -> StreamingWeights:
        """The state of the samples of both, in any order.

        Raises:
            ValueError: the batches differ.
        """
        if self.maximum.shape != other.maximum.shape:
            raise ValueError(
                f"expected a state of batch shape {tuple(self.maximum.shape)}; got {tuple(other.maximum.shape)}."
            )
        # The larger maximum of the two, so that one factor is 1 and the other at most 1: nothing overflows.
        maximum = torch.maximum(self.maximum, other.maximum)
        # A state without a living weight has the maximum −inf, and −inf − (−inf) is NaN: 0 stands in for it.
        mine, theirs = ((finite_or_zero(s.maximum) - finite_or_zero(maximum)).exp() for s in (self, other))
        mine, theirs = _dead_to_zero(mine, self), _dead_to_zero(theirs, other)
        return StreamingWeights(
            maximum,
            self.total * mine + other.total * theirs,
            self.squares * mine.square() + other.squares * theirs.square(),
            self.count + other.count,
            *_largest_of_both(self, other),
        )

    __add__ = merged

    def log_mean(self) -> Tensor:
        """Log of the mean weight, ``(*batch)`` float64: IWAE of all samples seen. NaN before the first."""
        if self.count == 0:
            return torch.full_like(self.maximum, torch.nan)
        # A living datum's total is at least 1, that of its largest weight; the clamp leaves a dead one at −inf.
        return self.maximum + self.total.clamp_min(0.5).log() - math.log(self.count)

    def ess(self) -> Tensor:
        """Effective sample size, ``(*batch)``; 0 where all weights are zero."""
        return torch.where(self.squares == 0, 0.0, self.total.square() / self.squares)

    def pareto_k(self) -> Tensor:
        """:func:`iwbounds.pareto_k` of all samples seen, ``(*batch)`` float64, from the largest.

        NaN where too few were kept: it takes min(K/5, 3√K) and one more.
        """
        needed = tail_size(self.count) + 1
        if self.largest is None or len(self.largest) < min(needed, self.count):
            return torch.full_like(self.maximum, torch.nan)
        return pareto_k_of_largest(self.largest[:needed])

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and a number, for ``torch.save``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> StreamingWeights:
        """The state that :meth:`state_dict` wrote."""
        return cls(**state)


def means_of_calls(log_w: Tensor, per_call: int) -> Tensor:
    """What is independent of ``(K, *batch)`` log-weights: these, or the log-mean of each ``per_call`` successive ones.

    The draws of one call depend on each other; together they are one unbiased, non-negative estimate.
    """
    if per_call == 1:
        return log_w
    return log_mean_exp(log_w.double().reshape(-1, per_call, *log_w.shape[1:]), dim=1)


def _dead_to_zero(scale: Tensor, state: StreamingWeights) -> Tensor:
    """A state without a living weight contributes nothing, whatever its placeholder maximum."""
    return scale.masked_fill(state.maximum.isneginf(), 0.0)


def _largest_of_both(first: StreamingWeights, second: StreamingWeights) -> tuple[Tensor | None, int]:
    """The largest of both states, as many as the one that keeps fewer can vouch for, and how many that is."""
    known = [state for state in (first, second) if state.count]  # an empty state forgets nothing
    capacity = min((state.capacity for state in known), default=first.capacity)
    kept = [state.largest for state in known if state.largest is not None]
    if not capacity or len(kept) < len(known) or not kept:
        return None, capacity
    # The largest of a union are among the largest of its parts, as long as each has kept as many.
    both = torch.cat(kept)
    return both.topk(min(capacity, len(both)), dim=0).values, capacity
