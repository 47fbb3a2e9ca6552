"""The thermodynamic variational objective: Riemann sums of the log-evidence along a path of tempered weights."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Derivatives, Direction
from iwbounds.checks import check_real, check_whole_number
from iwbounds.logspace.mean import finite_maximum
from iwbounds.logspace.power import tempered_derivatives, tempered_mean, tempered_mean_replacing_each

__all__ = ["EUBO", "TVO", "Tempered", "log_spaced_partition"]


class Tempered(Bound):
    r"""A weighted mean of tempered means of the log-weights.

    .. math:: L = \sum_i \omega_i S_{\beta_i}, \qquad S_\beta=\sum_k v_k\log w_k, \qquad
              v=\operatorname{softmax}(\beta\log w)

    .. math:: \frac{\partial S_\beta}{\partial\log w_k} = v_k(1+g_k), \qquad
              \frac{\partial^2 S_\beta}{\partial(\log w_k)^2} = \beta v_k\bigl(1+(1-2v_k)(1+g_k)\bigr), \qquad
              g_k = \beta(\log w_k - S_\beta)
    """

    @property
    @abstractmethod
    def nodes(self) -> tuple[tuple[float, float], ...]:
        """Pairs (β_i, ω_i), the ω adding up to 1."""

    def __call__(self, log_w: Tensor) -> Tensor:
        log_w = self.checked(log_w)
        dead = self._dead(log_w)
        # A dead datum is filled before the reductions, so that no term gives it a gradient.
        log_w = log_w.masked_fill(dead, 0.0)
        # Each tempered mean is taken relative to the largest weight, and as the ω add up to one, that is added back
        # once: sums of terms of size 1e7 would lose the differences between them.
        return (finite_maximum(log_w, 0).squeeze(0) + self._sum(log_w, tempered_mean)).masked_fill(dead, -torch.inf)

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        log_w = self.checked(log_w).detach()
        dead = self._dead(log_w)
        # c and c − h side by side, since both are weighted sums over the same nodes.
        both = self._sum(log_w.masked_fill(dead, 0.0), lambda x, beta: torch.stack(tempered_derivatives(x, beta)))
        c, c_minus_h = both.masked_fill(dead, 0.0)
        return Derivatives(self(log_w), c, c_minus_h if path else None)

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        if len(log_w) < 2:  # the closed form needs others
            return super().replace_each(log_w, fill)
        return self._sum(self.checked(log_w), lambda x, beta: tempered_mean_replacing_each(x, fill, beta))

    def _sum(self, x: Tensor, term: Callable[[Tensor, float], Tensor]) -> Tensor:
        """Σ ω_i term(x, β_i), one term in memory at a time."""
        (beta, weight), *rest = self.nodes
        total = weight * term(x, beta)
        for beta, weight in rest:
            total = total + weight * term(x, beta)
        return total

    def _dead(self, log_w: Tensor) -> Tensor:
        """``(*batch)``: no weight lives; or one is dead, and S_0, the plain mean, needs them all."""
        dead = log_w.detach().isneginf()
        return dead.any(0) if self.nodes[0][0] == 0 else dead.all(0)


@final
@dataclass(frozen=True)
class TVO(Tempered):
    r"""Lower bound of log p(x) on the left side: the thermodynamic variational objective.

    :math:`\log\frac1K\sum_k w_k=\int_0^1 S_\beta\,d\beta`, with :math:`S_\beta` non-decreasing in β. For a partition
    :math:`0=\beta_0<\dots<\beta_T=1`,

    .. math:: L_\text{left} = \sum_{t=0}^{T-1} (\beta_{t+1}-\beta_t)\,S_{\beta_t}, \qquad
              L_\text{right} = \sum_{t=0}^{T-1} (\beta_{t+1}-\beta_t)\,S_{\beta_{t+1}}, \qquad
              S_\beta=\sum_k \operatorname{softmax}(\beta\log w)_k\log w_k,

    and ``trapezoid`` is their mean. Derivatives: ``Tempered``.

    Direction: lower on the left, at every K: for any fixed weights it is at most IWAE. The right side is at least IWAE,
    which does not make it an upper bound at finite K; right and trapezoid: none. One interval on the left is the ELBO,
    on the right :class:`EUBO`. Bias: O(1/T) around IWAE on either side, O(1/T²) for the trapezoid. Unbiased gradients:
    reparameterised and DReG. Time O(K T).

    Args:
        betas: a number T of even intervals, or the partition itself; see :func:`log_spaced_partition`.
        side: ``"left"``, ``"right"`` or ``"trapezoid"``.

    Edge cases: left and trapezoid contain β = 0, the plain mean: any −inf log-weight makes them −inf, with gradient 0.
    For β > 0 a dead sample's 0·(−inf) is 0.

    Raises:
        ValueError: a partition that does not rise from 0 to 1; fewer than one interval; an unknown side.

    Reference: Masrani, Le and Wood (2019), The Thermodynamic Variational Objective, arXiv:1907.00031.

    >>> log_w = torch.tensor([0.0, 2.0])
    >>> TVO(1)(log_w), TVO([0.0, 0.1, 1.0])(log_w), TVO(1, side="right")(log_w)
    (tensor(1.), tensor(1.0897), tensor(1.7616))
    """

    betas: int | Sequence[float]
    side: Literal["left", "right", "trapezoid"] = "left"

    def __post_init__(self) -> None:
        if self.side not in ("left", "right", "trapezoid"):
            raise ValueError(f"expected side to be 'left', 'right' or 'trapezoid'; got {self.side!r}.")
        given: object = self.betas
        if not isinstance(given, Iterable) or isinstance(given, str):  # a number of intervals, which has to be whole
            hint = "1 on the left is the ELBO. Or give the partition itself, such as (0.0, 0.1, 1.0)."
            object.__setattr__(self, "betas", check_whole_number("betas", given, 1, hint))
            return
        object.__setattr__(self, "betas", tuple(float(check_real("every one of betas", beta)) for beta in given))
        # Exactly 0 and 1: S_0 and S_1 are the ELBO and the EUBO, between which the areas add up to log p(x).
        if len(self.partition) < 2 or self.partition[0] != 0 or self.partition[-1] != 1:
            raise ValueError(f"expected a partition that starts at 0 and ends at 1; got {self.partition}.")
        if not all(low < high for low, high in pairwise(self.partition)):
            raise ValueError(f"expected a partition that rises strictly from 0 to 1; got {self.partition}. Sort it.")

    @property
    def partition(self) -> tuple[float, ...]:
        """β_0 = 0 < … < β_T = 1."""
        if isinstance(self.betas, int):
            # A quotient for each, not steps added up: the last is exactly 1.
            return tuple(t / self.betas for t in range(self.betas + 1))
        return tuple(self.betas)

    @property
    def direction(self) -> Direction:  # type: ignore[override]
        """Lower on the left, else none."""
        return Direction.LOWER if self.side == "left" else Direction.NONE

    @property
    def nodes(self) -> tuple[tuple[float, float], ...]:
        partition = self.partition
        widths = [high - low for low, high in pairwise(partition)]
        left, right = [*widths, 0.0], [0.0, *widths]
        both = [0.5 * (low + high) for low, high in zip(left, right, strict=True)]
        weights = {"left": left, "right": right, "trapezoid": both}[self.side]
        # A node without weight goes: at β = 0 it would still need every weight alive.
        return tuple((beta, weight) for beta, weight in zip(partition, weights, strict=True) if weight)


@final
@dataclass(frozen=True)
class EUBO(Tempered):
    r"""The evidence upper bound's plug-in estimate, which bounds nothing at finite K.

    .. math:: L = \sum_k \tilde w_k\log w_k, \qquad c_k = \tilde w_k(1+g_k), \qquad
              h_k = \tilde w_k\bigl(1+(1-2\tilde w_k)(1+g_k)\bigr), \qquad g_k = \log w_k - L

    Direction: none. :math:`E_{p(z|x)}[\log w]` is at least log p(x); this self-normalised estimate of it is not, in
    expectation: at K = 1 it is the ELBO. For any fixed weights it is at least IWAE. Bias: O(1/K) around
    :math:`E_{p(z|x)}[\log w]`. Unbiased gradients, of its own expectation: reparameterised and DReG.

    Edge cases: a −inf log-weight counts as 0·(−inf) = 0; all −inf give −inf with gradient 0.

    Reference: Ji and Shen (2019), Stochastic Variational Inference via Upper Bound, arXiv:1912.00650.

    >>> EUBO()(torch.tensor([0.0, -torch.inf])), EUBO()(torch.tensor([0.0, 2.0]))
    (tensor(0.), tensor(1.7616))
    """

    direction = Direction.NONE

    @property
    def nodes(self) -> tuple[tuple[float, float], ...]:
        return ((1.0, 1.0),)


def log_spaced_partition(intervals: int, smallest: float = 0.025) -> tuple[float, ...]:
    r"""A partition of [0, 1] for :class:`TVO` that is evenly spaced in log β above its first interval.

    .. math:: \beta_0 = 0, \qquad \beta_t = \beta_1^{(T-t)/(T-1)} \quad (t = 1, …, T)

    Most of the curvature of :math:`S_\beta` is near β = 0, so that a few intervals there are worth many elsewhere.

    Args:
        intervals: T ≥ 2.
        smallest: β_1, in (0, 1).

    Returns:
        T + 1 numbers from 0 to 1.

    Raises:
        ValueError: fewer than two intervals; ``smallest`` outside (0, 1).

    Reference: Masrani, Le and Wood (2019), arXiv:1907.00031.

    >>> log_spaced_partition(3, smallest=0.25)
    (0.0, 0.25, 0.5, 1.0)
    """
    intervals = check_whole_number("intervals", intervals, 2, "Use TVO(1) for the ELBO.")
    if not 0 < smallest < 1:
        raise ValueError(f"expected smallest in (0, 1); got {smallest}.")
    # The two ends are written, not computed: rounding would move them off β₁ and 1.
    inner = [math.exp(math.log(smallest) * (intervals - t) / (intervals - 1)) for t in range(2, intervals)]
    return (0.0, smallest, *inner, 1.0)
