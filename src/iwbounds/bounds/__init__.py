"""Bounds: functions of K log-weights with a gradient, a curvature and a direction. One file per family."""

from iwbounds.bounds.base import Bound, Direction
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.renyi import Renyi

__all__ = ["ELBO", "IWAE", "Bound", "Direction", "Renyi"]
