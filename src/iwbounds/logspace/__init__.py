"""Reductions of log-weights: the numerical ground floor. Imports nothing of the package.

What serves single bounds (``leave_out``, ``leave_out_single``, ``symmetric``, ``tempered``) is imported from its own
module.
"""

from iwbounds.logspace.front import leave_one_out_log_mean_exp, log_mean_exp
from iwbounds.logspace.leave_one_out import leave_one_out_mean, shares
from iwbounds.logspace.mean import (
    finite_maximum,
    log_mean_exp_with_weights,
    normalized_weights,
    promoted,
)
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
    "log_mean_exp_with_weights",
    "log_power_mean",
    "normalized_weights",
    "power_mean_replacing_each",
    "power_weights",
    "promoted",
    "sample_mean",
    "shares",
    "uniform_weights",
]
