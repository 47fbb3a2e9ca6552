"""Fused log-space kernels, their reference, and the choice between the two. The README derives each of them."""

from iwbounds.logspace.kernels.dispatch import fused_bound, fused_nested, fused_vimco, kernels_available, runs_kernel
from iwbounds.logspace.kernels.operators import fused_leave_one_out_log_mean_exp, fused_log_mean_exp
from iwbounds.logspace.kernels.reference import FusedBound, FusedNested, FusedVIMCO

__all__ = [
    "FusedBound",
    "FusedNested",
    "FusedVIMCO",
    "fused_bound",
    "fused_leave_one_out_log_mean_exp",
    "fused_log_mean_exp",
    "fused_nested",
    "fused_vimco",
    "kernels_available",
    "runs_kernel",
]
