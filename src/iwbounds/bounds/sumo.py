"""SUMO: the importance-weighted bound by a randomly truncated telescoping sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Derivatives, Direction
from iwbounds.bounds.closed_form import ClosedForm
from iwbounds.checks import check_real, check_whole_number
from iwbounds.logspace.log_sums import LogSums

__all__ = ["SUMO", "StoppedSUMO"]

_LEAST_SURVIVAL = 2.0**-53
"""T is drawn from uniform numbers of 53 bits: none of them reaches a T that is less likely than this."""


@final
@dataclass(frozen=True)
class SUMO(Bound):
    r"""Lower bound of log p(x) with K samples fixed: a random truncation of the telescoping sum of IWAE.

    .. math:: L = L_m + \sum_{k=m}^{T} \frac{L_{k+1}-L_k}{P(T\ge k)}, \qquad
              P(T \ge m - 1 + i) = \begin{cases} 1/i & i < \alpha \\
              \delta^{\,i-\alpha}/\alpha & i \ge \alpha\end{cases}

    with :math:`L_k` IWAE of the first k samples, and T cut off at K − 1. Given T it is a smooth function of the
    log-weights; T is drawn once per datum.

    Direction: lower. Over T its expectation is *exactly* IWAE of the K samples, so that it is a lower bound of log p(x)
    with the bias of IWAE, noisier than IWAE and no tighter. Its use is where T is drawn first and only T + 1 samples
    are: see :meth:`draw_stops` and :meth:`stopped_at`, unbiased for log p(x). That estimate is no bound of anything
    (direction none), and with the published truncation its variance may be infinite: the geometric tail, which keeps
    the cost finite, falls faster than the differences do. Larger ``start`` and ``alpha`` reduce the variance. For an
    unbiased estimate of finite variance, whose gradient the engine makes too, use :class:`iwbounds.UMLMC` instead.
    Unbiased gradients: reparameterised and DReG, given T. Time and memory O(K).

    Args:
        start: m, how many samples always count; IWAE of m samples is what the sum starts from.
        alpha: α, where the tail of T turns from 1/i to geometric.
        decay: δ in (0, 1), the ratio of the geometric tail.

    Randomness: every call draws T afresh from torch's generator on the device of the log-weights. A value and a
    gradient that belong together come from one :meth:`frozen` bound.

    Edge cases: where the first samples that count are all −inf the value is −inf, with gradient 0. Depends on the order
    of the samples.

    Raises:
        ValueError: ``start`` or ``alpha`` below 1, ``decay`` outside (0, 1); on use, fewer than ``start`` samples.

    Reference: Luo, Beatson, Norouzi, Zhu, Duvenaud, Adams and Chen (2020), SUMO: Unbiased Estimation of Log Marginal
    Probability for Latent Variable Models, arXiv:2004.00353.

    >>> import torch
    >>> SUMO(start=3)(torch.tensor([1.0, 1.0, 1.0]))
    tensor(1.)
    """

    start: int = 1
    alpha: int = 80
    decay: float = 0.9
    direction = Direction.LOWER

    def __post_init__(self) -> None:
        for name in ("start", "alpha"):
            object.__setattr__(self, name, check_whole_number(name, getattr(self, name), 1))
        object.__setattr__(self, "decay", check_real("decay", self.decay, "The paper uses 0.9."))
        if not 0 < self.decay < 1:
            raise ValueError(f"expected decay in (0, 1); got {self.decay}. The paper uses 0.9.")

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """start: the samples that always count."""
        return self.start

    def __call__(self, log_w: Tensor) -> Tensor:
        return self.frozen(self.checked(log_w))(log_w)

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        return self.frozen(log_w).differentiate(log_w, path)  # one T for the value and its derivatives

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        return self.frozen(log_w).replace_each(log_w, fill)

    def frozen(self, log_w: Tensor) -> StoppedSUMO:
        """A deterministic bound: T drawn for every datum of ``log_w`` ``(K, *batch)``, whose values it ignores."""
        return StoppedSUMO(self, self.draw_stops(log_w.shape[1:], device=log_w.device), Direction.LOWER)

    def stopped_at(self, stops: Tensor) -> StoppedSUMO:
        """The estimate with given T, ``(*batch)`` whole numbers; unbiased for log p(x) if every T < K and independent
        of the samples."""
        return StoppedSUMO(self, stops, Direction.NONE)

    def draw_stops(
        self,
        batch_shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """T for every datum, not cut off: draw ``int(T.max()) + 1`` samples, and use :meth:`stopped_at`.

        >>> stops = SUMO().draw_stops((1000,), generator=torch.Generator().manual_seed(0))
        >>> stops.min(), (stops >= 2).float().mean()
        (tensor(1), tensor(0.5000))
        """
        # In (0, 1], as a T drawn from u = 0 would be infinite. float64, or the tail would end at 24 bits.
        u = 1.0 - torch.rand(tuple(batch_shape), dtype=torch.float64, generator=generator, device=device)
        # The inverse of the survival function: below 1/α it is α + log(α u)/log δ.
        geometric = self.alpha + (self.alpha * u).log() / math.log(self.decay)
        steps = torch.where(u * self.alpha > 1, 1.0 / u, geometric)
        return self.start - 1 + steps.floor().long()

    def survival(self, count: int) -> Tensor:
        """P(T ≥ k) for k = 1, …, ``count``, float64."""
        # The first m samples count for certain: survival 1, hence i = 1 for all of them.
        steps = (torch.arange(1, count + 1, dtype=torch.float64) - (self.start - 1)).clamp_min(1.0)
        return torch.where(steps < self.alpha, 1.0 / steps, self.decay ** (steps - self.alpha) / self.alpha)


@final
@dataclass(frozen=True, eq=False)
class StoppedSUMO(ClosedForm):
    r"""SUMO with T given for every datum: a fixed combination of IWAE of the first k samples, k = m, …, T + 1.

    .. math:: L = \sum_k a_k L_k, \qquad c_j = \sum_{k\ge j} a_k\frac{w_j}{S_k}, \qquad
              c_j - h_j = \sum_{k\ge j} a_k\Bigl(\frac{w_j}{S_k}\Bigr)^2, \qquad S_k = w_1+\dots+w_k

    Made by :meth:`SUMO.frozen` and :meth:`SUMO.stopped_at`.
    """

    sumo: SUMO
    stops: Tensor
    """T, ``(*batch)``; what exceeds K − 1, or a T that is ever drawn, P(T ≥ k) < 2^−53, counts as that."""
    direction: Direction = Direction.LOWER

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """As of the SUMO it comes from."""
        return self.sumo.min_samples

    def dead(self, x: Tensor) -> Tensor:
        # Only prefixes that enter the sum: later samples may be dead.
        used = self._coefficients(len(x)) != 0
        return (x.isneginf().cumprod(0).bool() & used).any(0)

    def combination(self, x: Tensor) -> LogSums:
        return _PrefixSums(x, self._coefficients(len(x)))

    def _coefficients(self, count: int) -> Tensor:
        """a_k, ``(K, batch)``: differences of the factors of the telescoping sum."""
        stops = self.stops.flatten()
        k = torch.arange(1, count + 1, device=stops.device).unsqueeze(1)
        survival = self.sumo.survival(count).to(stops.device).unsqueeze(1)
        # Far out the survival underflows, and differences of infinite factors would be NaN.
        counted = (k >= self.sumo.start) & (k <= stops) & (k < count) & (survival >= _LEAST_SURVIVAL)
        factors = torch.where(counted, 1.0 / survival, 0.0)
        # Σ_k f_k (L_{k+1} − L_k), sorted by L_k: L_k has the factor of the step before less its own.
        before = torch.cat([torch.zeros_like(factors[:1]), factors[:-1]])
        return (k == self.sumo.start).double() + before - factors


class _PrefixSums(LogSums):
    """Sums over the first k samples, combined with coefficients a_k that add up to one."""

    def __init__(self, x: Tensor, coefficients: Tensor) -> None:
        # Below every finite number but finite: cumulative sums of −inf have no derivative.
        self._x = x.clamp_min(-1e300)
        self._coefficients = coefficients
        self._log_sums = self._x.logcumsumexp(0)

    def value(self) -> Tensor:
        steps = torch.arange(1, len(self._x) + 1, dtype=self._x.dtype, device=self._x.device)
        return (self._coefficients * (self._log_sums - steps.log().unsqueeze(1))).sum(0)

    def combined_ratios(self, exponent: int) -> Tensor:
        return self._signed(exponent, 1.0) - self._signed(exponent, -1.0)

    def _signed(self, exponent: int, sign: float) -> Tensor:
        """Σ_{k≥j} a_k (w_j / S_k)^exponent over the coefficients of one sign, summed from the back in log-space."""
        # Apart by sign, as a logarithm takes no negative coefficient; one of the other sign counts as 1e-300, which is
        # 0.
        part = (sign * self._coefficients).clamp_min(1e-300).log()
        return (exponent * self._x + (part - exponent * self._log_sums).flip(0).logcumsumexp(0).flip(0)).exp()
