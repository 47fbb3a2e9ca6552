"""Reductions of log-weights: the numerical ground floor. Imports nothing of the package."""

from iwbounds.logspace.leave_one_out import leave_one_out_log_mean_exp, leave_one_out_mean
from iwbounds.logspace.leave_out import LeaveOutSums
from iwbounds.logspace.leave_out_single import LeaveOneOutSums
from iwbounds.logspace.mean import (
    finite_maximum,
    log_mean_exp,
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
from iwbounds.logspace.symmetric import SubsetAverages
from iwbounds.logspace.tempered import tempered_derivatives, tempered_mean, tempered_mean_replacing_each

__all__ = [
    "LeaveOneOutSums",
    "LeaveOutSums",
    "SubsetAverages",
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
    "tempered_derivatives",
    "tempered_mean",
    "tempered_mean_replacing_each",
    "uniform_weights",
]
