"""Reductions of log-weights: the numerical ground floor. Imports nothing of the package but its checks.

What serves single bounds (``leave_out``, ``subset_averages``) is imported from its own module.
"""

from iwbounds.logspace.leave_one_out import leave_one_out_log_mean_exp, leave_one_out_mean, weights_and_rest
from iwbounds.logspace.mean import (
    finite_maximum,
    finite_or_zero,
    log_mean_exp,
    log_mean_exp_with_weights,
    normalized_weights,
    promoted,
    served_by_kernel,
)
from iwbounds.logspace.power import log_power_mean, power_mean_replacing_each, power_weights, sample_mean

__all__ = [
    "finite_maximum",
    "finite_or_zero",
    "leave_one_out_log_mean_exp",
    "leave_one_out_mean",
    "log_mean_exp",
    "log_mean_exp_with_weights",
    "log_power_mean",
    "normalized_weights",
    "power_mean_replacing_each",
    "power_weights",
    "promoted",
    "sample_mean",
    "served_by_kernel",
    "weights_and_rest",
]
