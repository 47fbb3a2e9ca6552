r"""The recursion of annealed importance sampling, there and back, for states and moves of any kind.

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1})\,[\log p(x,z_{t-1}) - \log q(z_{t-1})]

There, z_0 ~ q and z_t comes from z_{t−1} by a move that leaves :math:`\pi_{\beta_t}` invariant. Back, z_{T−1} is a draw
of the posterior, and the reversals of the same moves are made in the opposite order: the sum is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

__all__ = ["Moved", "annealed", "annealed_back", "conditional_ess"]

State = TypeVar("State")


class Moved(NamedTuple):
    """What is known before a move: the state, and the log-weight that includes it."""

    step: int
    """The number of the next move; there, that of the state too."""
    state: Any
    log_increment: Tensor
    log_w: Tensor


def annealed(
    start: State, increments: list[Tensor], log_ratio: Callable[[State], Tensor], move: Callable[[State, int], State]
) -> Iterator[Moved]:
    """z_0..z_{T−1} with their log-weights, the last of which is the whole path's.

    Args:
        start: z_0.
        increments: β_t − β_{t−1} for t = 1..T.
        log_ratio: log p(x, z) − log q(z).
        move: from (z_{t−1}, t − 1) to z_t.
    """
    return _walk(start, list(enumerate(increments)), log_ratio, move)


def annealed_back(
    start: State, increments: list[Tensor], log_ratio: Callable[[State], Tensor], move: Callable[[State, int], State]
) -> Iterator[Moved]:
    """z_{T−1}..z_0 likewise, from a draw of the posterior. Called with t − 1, ``move`` makes z_{t−1} of z_t."""
    forth = list(enumerate(increments))
    # The increment of step t belongs to z_{t-1}, on the far side of its move: they are paired one apart.
    back = [(step - 1, increment) for step, increment in reversed(forth)]
    return _walk(start, back, log_ratio, move)


def _walk(
    state: State,
    steps: list[tuple[int, Tensor]],
    log_ratio: Callable[[State], Tensor],
    move: Callable[[State, int], State],
) -> Iterator[Moved]:
    log_w: Tensor | None = None
    for number, (step, increment) in enumerate(steps):
        gained = increment * log_ratio(state)
        log_w = gained if log_w is None else log_w + gained
        yield Moved(step, state, gained, log_w)
        # A move after the last increment would change no weight.
        if number + 1 < len(steps):
            state = move(state, step)


def conditional_ess(log_before: Tensor, log_increment: Tensor) -> Tensor:
    r"""How even the increments v of the next step are under the weights so far, ``(*batch)`` in (0, 1].

    .. math:: \mathrm{CESS} = \frac{(\sum_k \tilde W_k v_k)^2}{\sum_k \tilde W_k v_k^2}

    Args:
        log_before: log-weights without the increment, ``(K, *batch)``.
        log_increment: log v.

    Reference: Zhou, Johansen and Aston (2016), Toward Automatic Model Comparison, arXiv:1303.3123, section 3.3.2.
    """
    # CESS does not change with the scale of v: the largest is made 1, so that none overflows.
    top = log_increment.amax(0)
    v = (log_increment - top).exp()
    weight = log_before.softmax(0)
    return (weight * v).sum(0).square() / (weight * v.square()).sum(0)
