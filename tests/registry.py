"""Every bound and every estimator, by name: what the exactness tests run over.

A new bound or estimator is proved exact by adding one line here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

import iwbounds as iw


class Own(iw.Bound):
    """A user's bound in five lines: half ELBO, half Rényi, derivatives by autograd."""

    direction = iw.Direction.LOWER

    def __call__(self, log_w: Tensor) -> Tensor:
        return 0.5 * log_w.mean(0) + 0.5 * iw.Renyi(0.3)(log_w)


BOUNDS: dict[str, Callable[[], iw.Bound]] = {
    "elbo": iw.ELBO,
    "iwae": iw.IWAE,
    "renyi(0.3)": lambda: iw.Renyi(0.3),
    "renyi(1)": lambda: iw.Renyi(1.0),
    "renyi(2)": lambda: iw.Renyi(2.0),
    "renyi(-1)": lambda: iw.Renyi(-1.0),
    "ciwae(0.3)": lambda: iw.CIWAE(0.3),
    "miwae(1)": lambda: iw.MIWAE(1),
    "miwae(2)": lambda: iw.MIWAE(2),
    "miwae(3)": lambda: iw.MIWAE(3),
    "jackknife(0)": lambda: iw.Jackknife(0),
    "jackknife(1)": lambda: iw.Jackknife(1),
    "jackknife(2)": lambda: iw.Jackknife(2),
    "u-statistic(1)": lambda: iw.UStatistic(1),
    "u-statistic(2)": lambda: iw.UStatistic(2),
    "u-statistic(3)": lambda: iw.UStatistic(3),
    "incomplete-u-statistic(2)": lambda: iw.IncompleteUStatistic(2),
    "tvo-left(3)": lambda: iw.TVO(3, side="left"),
    "tvo-right(3)": lambda: iw.TVO(3, side="right"),
    "tvo-trapezoid": lambda: iw.TVO((0.0, 0.1, 0.6, 1.0), side="trapezoid"),
    "eubo": iw.EUBO,
    "cubo(2)": lambda: iw.CUBO(2),
    "user's own": lambda: Own(),
}
"""Smooth bounds, by name; those that need more samples than a test has are left out of it."""

JUMPING: dict[str, Callable[[], iw.Bound]] = {
    "renyi(inf)": lambda: iw.Renyi(math.inf),
    "renyi(-inf)": lambda: iw.Renyi(-math.inf),
}
"""Bounds whose gradient jumps: exact under Reparameterized and score functions, refused by DReG."""

CONTROLLED: dict[str, Callable[[], iw.Gradient]] = {
    "0": lambda: iw.Controlled(strengths=(0.0, 0.0)),
    "1": lambda: iw.Controlled(strengths=(1.0, 0.0)),
    "0.37": lambda: iw.Controlled(basis=1, strengths=(0.37,)),
    "(0.5, -0.8)": lambda: iw.Controlled(strengths=(0.5, -0.8)),
}
"""Control variates of given strengths: Reparameterized, DReG, and what lies between and beyond."""

PATHWISE: dict[str, Callable[[], iw.Gradient]] = {
    "reparameterized": iw.Reparameterized,
    "dreg": iw.DReG,
    "control variate": lambda: iw.Reparameterized(control_variate=True),
    "controlled(0.5, -0.8)": CONTROLLED["(0.5, -0.8)"],
}
"""Unbiased estimators for reparameterised proposals."""

SCORE: dict[str, Callable[[], iw.Gradient]] = {
    "score": iw.ScoreFunction,
    "vimco": iw.VIMCO,
    "vimco-geometric": lambda: iw.VIMCO(geometric=True),
}
"""Unbiased estimators, for every bound, that need no reparameterisation."""
