"""Reductions of log-weights: the numerical ground floor. Imports nothing of the package."""

from iwbounds.logspace.leave_one_out import leave_one_out_log_mean_exp, leave_one_out_mean
from iwbounds.logspace.mean import finite_maximum, log_mean_exp, normalized_weights, promoted
from iwbounds.logspace.power import (
    log_power_mean,
    power_mean_replacing_each,
    power_weights,
    sample_mean,
    uniform_weights,
)

__all__ = [
    "finite_maximum",
    "leave_one_out_log_mean_exp",
    "leave_one_out_mean",
    "log_mean_exp",
    "log_power_mean",
    "normalized_weights",
    "power_mean_replacing_each",
    "power_weights",
    "promoted",
    "sample_mean",
    "uniform_weights",
]
