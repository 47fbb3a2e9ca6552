r"""U-MLMC: an estimate of log p(x) without bias and of finite variance, by a random level of a telescoping sum.

With :math:`L_n` IWAE of n samples, :math:`\log p(x) = E L_{n_0} + \sum_\ell E[L_{2n} - L_n]`, n = n₀ 2^ℓ. One level is
drawn with probability :math:`p_\ell`, and its difference is weighed by :math:`1/p_\ell`. A difference is estimated from
2n samples at once, as :math:`\Delta_\ell = L_{2n} - U_n` with :math:`U_n` the average of :math:`L_n` over all sets of n
of them: its second moment falls as :math:`n^{-2}`, as for the usual two halves, and is two to three times smaller. With
:math:`p_\ell \propto 2^{-3\ell/2}`, between the decay 2^{-2ℓ} of the moments and the growth 2^ℓ of the cost, both
:math:`\sum_\ell E\Delta_\ell^2/p_\ell` and :math:`\sum_\ell p_\ell\, n` are finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Derivatives, Direction
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.miwae import MIWAE
from iwbounds.bounds.u_statistic import IncompleteUStatistic, UStatistic
from iwbounds.checks import check_whole_number

__all__ = ["UMLMC", "UMLMCLevel"]

_RATIO = 2.0**-1.5
"""p_{ℓ+1} / p_ℓ."""


@final
@dataclass(frozen=True)
class UMLMC(Bound):
    r"""Unbiased estimate of log p(x), which chooses the number of samples itself.

    .. math:: L = L_{n_0} + \frac{L_{2n} - U_n}{p_\ell}, \qquad n = n_0 2^\ell, \qquad
              P(\ell) = p_\ell = (1 - 2^{-3/2})\, 2^{-3\ell/2}

    with :math:`L_m` IWAE of m samples and :math:`U_n` the complete U-statistic of n of the 2n samples drawn.

    Direction: exact, :math:`E L = \log p(x)`; no bound in either direction, and no certificate. Variance and expected
    cost (:math:`2 n_0 \cdot 2.2` samples) are finite where the weights' tails are light enough for the variance of
    :math:`L_{2n} - U_n` to fall as n⁻². One level is drawn per call, and couples the data of that call. Needs
    independent draws. Unbiased gradients, given the level: reparameterised and DReG, for the model. The proposal's
    gradient is zero in expectation, as log p(x) does not depend on it: train it by ``proposal_bound=IWAE()`` or by a
    bound of its own.

    A call on *given* log-weights cannot choose K: the levels are then those that K samples allow, and the expectation
    is IWAE of :math:`n_0 2^{\lfloor\log_2 (K/n_0)\rfloor}` samples, a lower bound.

    Args:
        base_size: n₀, the samples of the base term. 8 to 32 for well-fitted proposals; larger lowers the variance.
        max_level: the highest ℓ, to cap time and memory at :math:`n_0 2^{\ell + 1}` samples; the estimate is then a
            lower bound, with the bias of IWAE of so many. None: unlimited (:math:`P(\ell \ge 10) = 3\cdot10^{-5}`).
        splits: beyond ``complete_up_to``, :math:`U_n` is replaced by the average over so many random halvings of the
            samples: the same expectation at O(K) cost.
        complete_up_to: the largest n whose :math:`U_n` is complete. Its O(n²) arithmetic is 0.1 s per datum and up
            beyond 256; take 0 for training with a small decoder, whose cost it would rule at any n. The second moment
            of :math:`L_{2n} - U_n` is then at most 1.5 times as large.

    Randomness: :meth:`frozen_level` draws ℓ from torch's generator, before anything is sampled.

    Edge cases: where a term is −inf (n of 2n log-weights are) the value is −inf, with gradient 0.

    Raises:
        ValueError: ``base_size`` or ``splits`` below 1, ``max_level`` or ``complete_up_to`` below 0; on use, fewer
            than n₀ samples.

    References: Rhee and Glynn (2015), Unbiased Estimation with Square Root Convergence for SDE Models. Blanchet and
    Glynn (2015), Unbiased Monte Carlo for Optimization and Functions of Expectations via Multi-Level Randomization.
    Ishikawa and Goda (2021), Efficient Debiased Evidence Estimation by Multilevel Monte Carlo Sampling,
    arXiv:2001.04676.

    >>> bound, num_samples = UMLMC(4).frozen_level(torch.Generator().manual_seed(0))
    >>> bound.level, num_samples, bound(torch.zeros(num_samples, 1))
    (3, 64, tensor([0.]))
    """

    base_size: int
    max_level: int | None = None
    splits: int = 4
    complete_up_to: int = 256
    chooses_num_samples = True
    """Read by the engine, which asks :meth:`frozen_level` how many samples to draw."""

    def __post_init__(self) -> None:
        check_whole_number("base_size", self.base_size, 1)
        check_whole_number("splits", self.splits, 1)
        check_whole_number("complete_up_to", self.complete_up_to, 0, "0 is halvings at every level.")
        if self.max_level is not None:
            check_whole_number("max_level", self.max_level, 0, "None is unlimited.")

    @property
    def direction(self) -> Direction:  # type: ignore[override]
        """Exact; lower with a ``max_level``."""
        return Direction.EXACT if self.max_level is None else Direction.LOWER

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """base_size: the base term's."""
        return self.base_size

    def frozen_level(self, generator: torch.Generator | None = None) -> tuple[UMLMCLevel, int]:
        """One level drawn: the bound for this call, and how many samples it takes. Call it once, before sampling."""
        bound = self.at_level(self.draw_level(generator))
        return bound, bound.min_samples

    def draw_level(self, generator: torch.Generator | None = None) -> int:
        """ℓ; over a process group, draw it on one rank and hand the number to :meth:`at_level` on all."""
        return _draw(self.max_level, generator)

    def at_level(self, level: int) -> UMLMCLevel:
        """The estimate given ℓ, from ``base_size * 2 ** (level + 1)`` samples."""
        return UMLMCLevel(self, level, 1 / _probability(level, self.max_level), self.direction)

    def probability(self, level: int) -> float:
        """p_ℓ.

        >>> round(UMLMC(8).probability(0), 4)
        0.6464
        """
        return _probability(level, self.max_level)

    def frozen(self, log_w: Tensor) -> Bound:
        """A deterministic lower bound for given weights ``(K, *batch)``: ℓ drawn among those that K samples allow."""
        self.check_count(len(log_w))
        doublings = (len(log_w) // self.base_size).bit_length() - 1
        # Level ℓ takes n₀ 2^{ℓ+1} samples: one doubling more than ℓ.
        highest = doublings - 1 if self.max_level is None else min(doublings - 1, self.max_level)
        if highest < 0:
            # Too few for even one difference: the base term alone, from all of the samples.
            return UStatistic(self.base_size)
        level = _draw(highest, None)
        return UMLMCLevel(self, level, 1 / _probability(level, highest), Direction.LOWER)

    def __call__(self, log_w: Tensor) -> Tensor:
        return self.frozen(log_w)(log_w)

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        return self.frozen(log_w).differentiate(log_w, path)


@final
@dataclass(frozen=True)
class UMLMCLevel(Bound):
    r"""U-MLMC given its level: a fixed linear combination of bounds of the first n₀ 2^{ℓ+1} samples.

    .. math:: L = \bar L_{n_0} + \frac{L_{2n} - U_n}{p_\ell}, \qquad c = \sum_i a_i c^{(i)}, \qquad
              c - h = \sum_i a_i (c - h)^{(i)}

    The base term is the mean of :math:`L_{n_0}` over blocks of all samples, or :math:`U_{n_0}` itself at ℓ = 0. Made by
    :meth:`UMLMC.frozen_level`, :meth:`UMLMC.at_level` and :meth:`UMLMC.frozen`.
    """

    umlmc: UMLMC
    level: int
    weight: float
    """1/p_ℓ."""
    direction: Direction = Direction.EXACT

    @property
    def size(self) -> int:
        """n = n₀ 2^ℓ."""
        return self.umlmc.base_size << self.level

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """2n; further samples count nothing."""
        return 2 * self.size

    def terms(self) -> list[tuple[float, Bound]]:
        """Coefficients, which add up to one, and bounds."""
        subsets = self._subsets()
        if self.level == 0:
            # At ℓ = 0 the base term and the difference share U: L_{2n}/p + U (1 − 1/p). The base as the U-statistic of
            # all 2n samples has the least variance.
            return [(self.weight, IWAE()), (1 - self.weight, subsets)]
        return [(1.0, MIWAE(2 ** (self.level + 1))), (self.weight, IWAE()), (-self.weight, subsets)]

    def _subsets(self) -> Bound:
        if self.size <= self.umlmc.complete_up_to:
            return UStatistic(self.size)
        # Each permutation is cut in two halves of n. That they are the same in every call does not matter, as the
        # samples are independent.
        return IncompleteUStatistic(self.size, permutations=self.umlmc.splits)

    def __call__(self, log_w: Tensor) -> Tensor:
        log_w = self.checked(log_w)
        return self._combined([bound(self._used(log_w)) for _, bound in self.terms()]).to(log_w.dtype)

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        log_w = self.checked(log_w).detach()
        found = [bound.differentiate(self._used(log_w), path) for _, bound in self.terms()]
        value = self._combined([one.value for one in found])
        dead = value.isneginf()

        def summed(parts: list[Tensor]) -> Tensor:
            total = sum(a * part for (a, _), part in zip(self.terms(), parts, strict=True))
            result = torch.zeros_like(log_w)
            # Samples beyond 2n keep coefficient 0: they were drawn, and are not used.
            result[: self.min_samples] = torch.as_tensor(total).masked_fill(dead, 0.0).to(log_w.dtype)
            return result

        paths = [one.path for one in found if one.path is not None]
        return Derivatives(
            value.to(log_w.dtype), summed([one.gradient for one in found]), summed(paths) if path else None
        )

    def _used(self, log_w: Tensor) -> Tensor:
        # float64: the difference of two bounds is small beside them, and is multiplied by 1/p.
        return log_w[: self.min_samples].double()

    def _combined(self, values: list[Tensor]) -> Tensor:
        """Σ a_i L_i; −inf wherever a term is, as −inf from the negative one would add up to +inf."""
        dead = torch.stack([value.detach().isneginf() for value in values]).any(0)
        total = torch.stack([a * value for (a, _), value in zip(self.terms(), values, strict=True)]).sum(0)
        return total.masked_fill(dead, -torch.inf)


def _probability(level: int, highest: int | None) -> float:
    """p_ℓ, renormalised over the levels up to ``highest``."""
    mass = 1.0 if highest is None else 1 - _RATIO ** (highest + 1)
    return (1 - _RATIO) * _RATIO**level / mass


def _draw(highest: int | None, generator: torch.Generator | None) -> int:
    """A level, by the inverse of its distribution function."""
    device = "cpu" if generator is None else generator.device
    u = torch.rand((), dtype=torch.float64, generator=generator, device=device).item()
    mass = 1.0 if highest is None else 1 - _RATIO ** (highest + 1)
    # P(ℓ ≥ j) = _RATIO^j. log1p, as u near 0 makes 1 − u round to 1.
    level = math.floor(math.log1p(-u * mass) / math.log(_RATIO))
    return level if highest is None else min(level, highest)  # u * mass may round up to mass
