"""Bounds: functions of K log-weights with a gradient, a curvature and a direction. One file per family."""

from typing import TYPE_CHECKING

from iwbounds._lazy import lazy_attributes
from iwbounds.bounds.base import Bound, Direction
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.renyi import Renyi

if TYPE_CHECKING:
    from iwbounds.bounds.ciwae import CIWAE
    from iwbounds.bounds.cubo import CUBO
    from iwbounds.bounds.incomplete_u_statistic import IncompleteUStatistic
    from iwbounds.bounds.jackknife import Jackknife
    from iwbounds.bounds.miwae import MIWAE
    from iwbounds.bounds.sumo import SUMO
    from iwbounds.bounds.tvo import EUBO, TVO, log_spaced_partition
    from iwbounds.bounds.u_statistic import UStatistic
    from iwbounds.bounds.umlmc import UMLMC

__all__ = [
    "CIWAE",
    "CUBO",
    "ELBO",
    "EUBO",
    "IWAE",
    "MIWAE",
    "SUMO",
    "TVO",
    "UMLMC",
    "Bound",
    "Direction",
    "IncompleteUStatistic",
    "Jackknife",
    "Renyi",
    "UStatistic",
    "log_spaced_partition",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "CIWAE": "ciwae",
        "CUBO": "cubo",
        "EUBO": "tvo",
        "IncompleteUStatistic": "incomplete_u_statistic",
        "Jackknife": "jackknife",
        "MIWAE": "miwae",
        "SUMO": "sumo",
        "TVO": "tvo",
        "UMLMC": "umlmc",
        "UStatistic": "u_statistic",
        "log_spaced_partition": "tvo",
    },
)
