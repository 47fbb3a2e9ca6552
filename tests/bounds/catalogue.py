"""The bounds that the property tests run over, with what each of them promises."""

from __future__ import annotations

from dataclasses import dataclass

import iwbounds as iw

K = 6


@dataclass(frozen=True)
class Case:
    bound: iw.Bound
    fatal: int
    """The fewest dead samples, the last ones, that make the bound −inf."""
    symmetric: bool = True
    """Whether the order of the samples is irrelevant."""

    def __repr__(self) -> str:
        return "StoppedSUMO" if type(self.bound).__name__ == "StoppedSUMO" else repr(self.bound)


CASES = [
    Case(iw.CIWAE(0.0), K),
    Case(iw.CIWAE(0.3), 1),
    Case(iw.CIWAE(1.0), 1),
    Case(iw.MIWAE(1), K),
    Case(iw.MIWAE(2), 3, symmetric=False),
    Case(iw.MIWAE(3), 2, symmetric=False),
    Case(iw.MIWAE(6), 1),
    Case(iw.Jackknife(0), K),
    Case(iw.Jackknife(1), K - 1),
    Case(iw.Jackknife(2), K - 2),
    Case(iw.Jackknife(3), K - 3),
    Case(iw.UStatistic(1), 1),
    Case(iw.UStatistic(2), 2),
    Case(iw.UStatistic(4), 4),
    Case(iw.UStatistic(6), K),
    Case(iw.IncompleteUStatistic(K, permutations=2), K),
    Case(iw.IncompleteUStatistic(1, permutations=2), 1),
    Case(iw.TVO(4), 1),
    Case(iw.TVO([0.0, 0.1, 0.4, 1.0], side="right"), K),
    Case(iw.TVO(3, side="trapezoid"), 1),
    Case(iw.EUBO(), K),
    Case(iw.CUBO(2), K),
    Case(iw.CUBO(1.5), K),
]
