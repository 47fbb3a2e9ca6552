"""Bounds: functions of K log-weights with a gradient, a curvature and a direction. One file per family."""

from iwbounds.bounds.base import Bound, Derivatives, Direction
from iwbounds.bounds.ciwae import CIWAE
from iwbounds.bounds.cubo import CUBO
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.jackknife import Jackknife
from iwbounds.bounds.miwae import MIWAE
from iwbounds.bounds.renyi import Renyi
from iwbounds.bounds.reverse import ReverseIWAE
from iwbounds.bounds.sumo import SUMO
from iwbounds.bounds.tvo import EUBO, TVO, log_spaced_partition
from iwbounds.bounds.u_statistic import IncompleteUStatistic, UStatistic
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
    "Derivatives",
    "Direction",
    "IncompleteUStatistic",
    "Jackknife",
    "Renyi",
    "ReverseIWAE",
    "UStatistic",
    "log_spaced_partition",
]
