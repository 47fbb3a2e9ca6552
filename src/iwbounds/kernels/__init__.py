"""Fused Triton kernels, their plain references, and the choice between the two. The README derives each of them."""

from iwbounds.kernels.dispatch import kernels_available, runs_kernel
from iwbounds.kernels.functions import fused_leave_one_out_log_mean_exp, fused_log_mean_exp
from iwbounds.kernels.fused import FusedBound, FusedVIMCO, fused_bound, fused_vimco

__all__ = [
    "FusedBound",
    "FusedVIMCO",
    "fused_bound",
    "fused_leave_one_out_log_mean_exp",
    "fused_log_mean_exp",
    "fused_vimco",
    "kernels_available",
    "runs_kernel",
]
