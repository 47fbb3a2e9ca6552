"""A budget of false alarms, split over the statistical tests of a suite; and seeds that make verdicts repeat."""

from __future__ import annotations

import math
from typing import TypedDict

from iwbounds.seeding import derived_seed
from iwbounds.testing.betting import check_alpha

__all__ = ["ErrorBudget", "Share"]


class Share(TypedDict):
    """What one statistical assertion may spend; pass it on as ``**share``."""

    alpha: float
    seed: int


class ErrorBudget:
    r"""Splits a probability of false alarm over assertions whose number need not be known.

    .. math:: \alpha_n = \frac{6}{\pi^2 n^2}\,\alpha, \qquad \sum_{n=1}^\infty \alpha_n = \alpha

    The n-th call of :meth:`spend` gets the n-th share, with a seed derived from the budget's seed and name and from n
    alone; both are printed, so that a failing test shows them. By the union bound, all assertions together raise a
    false alarm with probability at most ``alpha``, dependent or not.

    With the pytest plugin the fixture ``error_budget`` gives every test that asks for it an equal part of
    ``--iw-alpha`` (default 1e-6).

    Args:
        alpha: the probability of any false alarm at all.
        seed: of the seeds handed out.
        name: of the test, or whatever tells its seeds from others'.

    Raises:
        ValueError: ``alpha`` outside (0, 1).

    >>> budget = ErrorBudget(1e-6, name="docs")
    >>> share = budget.spend("sandwich")
    docs: sandwich, alpha=6.079...e-07, seed=...
    >>> sum(part.alpha for part in ErrorBudget(1e-6).split(4)) <= 1e-6
    True
    """

    def __init__(self, alpha: float = 1e-6, seed: int = 0, name: str = "error budget") -> None:
        self.alpha = check_alpha(alpha)
        self.seed = seed
        self.name = name
        self.spent = 0.0
        """How much of ``alpha`` has been handed out."""
        self._count = 0

    def __repr__(self) -> str:
        return f"ErrorBudget(alpha={self.alpha!r}, seed={self.seed}, name={self.name!r})"

    def spend(self, label: str = "") -> Share:
        """The next share, printed, as keyword arguments of an assertion: ``assert_sandwich(…, **budget.spend())``."""
        self._count += 1
        label = label or f"assertion {self._count}"
        # Σ 1/n² = π²/6: the shares add up to alpha, however many tests will ask.
        alpha = 6 * self.alpha / (math.pi * self._count) ** 2
        share = Share(alpha=alpha, seed=derived_seed(self.seed, self.name, self._count, label))
        self.spent += share["alpha"]
        print(f"{self.name}: {label}, alpha={share['alpha']!r}, seed={share['seed']}")
        return share

    def split(self, count: int) -> list[ErrorBudget]:
        """``count`` budgets of equal size, for as many tests or examples; this one should then not be spent."""
        if count < 1:
            raise ValueError(f"expected to split a budget into at least 1 part; got {count}.")
        names = [f"{self.name}[{index}]" for index in range(count)]
        return [ErrorBudget(self.alpha / count, derived_seed(self.seed, name), name) for name in names]
