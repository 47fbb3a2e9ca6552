"""Gradient estimators: three coefficients per sample, computed from a bound's derivatives."""

from iwbounds.gradients.base import Coefficients, Gradient
from iwbounds.gradients.controlled import Controlled
from iwbounds.gradients.gdreg import GDReG
from iwbounds.gradients.lesson import Lesson
from iwbounds.gradients.reparameterized import STL, DReG, Reparameterized
from iwbounds.gradients.score import OVIS, VIMCO, RunningMean, ScoreFunction
from iwbounds.gradients.wake import DReGWake, Wake

__all__ = [
    "OVIS",
    "STL",
    "VIMCO",
    "Coefficients",
    "Controlled",
    "DReG",
    "DReGWake",
    "GDReG",
    "Gradient",
    "Lesson",
    "Reparameterized",
    "RunningMean",
    "ScoreFunction",
    "Wake",
]
