"""Every bound and every estimator, by name: what the exactness tests run over.

A new bound or estimator is proved exact by adding one line here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import iwbounds as iw

BOUNDS: dict[str, Callable[[], iw.Bound]] = {
    "elbo": iw.ELBO,
    "iwae": iw.IWAE,
    "renyi(0.3)": lambda: iw.Renyi(0.3),
    "renyi(1)": lambda: iw.Renyi(1.0),
    "renyi(2)": lambda: iw.Renyi(2.0),
    "renyi(-1)": lambda: iw.Renyi(-1.0),
}
"""Smooth bounds that are defined for every K >= 2."""

JUMPING: dict[str, Callable[[], iw.Bound]] = {
    "renyi(inf)": lambda: iw.Renyi(math.inf),
    "renyi(-inf)": lambda: iw.Renyi(-math.inf),
}
"""Bounds whose gradient jumps: exact under Reparameterized and score functions, refused by DReG."""

PATHWISE: dict[str, Callable[[], iw.Gradient]] = {
    "reparameterized": iw.Reparameterized,
    "dreg": iw.DReG,
}
"""Unbiased estimators for reparameterised proposals."""

SCORE: dict[str, Callable[[], iw.Gradient]] = {
    "score": iw.ScoreFunction,
    "vimco": iw.VIMCO,
    "vimco-geometric": lambda: iw.VIMCO(geometric=True),
}
"""Unbiased estimators, for every bound, that need no reparameterisation."""
