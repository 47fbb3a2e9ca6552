"""Variational bounds for PyTorch: multi-sample objectives, low-variance gradients, honest evidence estimates."""

from iwbounds.bounds import ELBO, IWAE, Bound, Direction, Renyi
from iwbounds.diagnostics import effective_sample_size, pareto_k
from iwbounds.engine import Estimate, accumulate, estimate, resampling_variance
from iwbounds.gradients import (
    OVIS,
    STL,
    VIMCO,
    Coefficients,
    DReG,
    DReGWake,
    Gradient,
    Reparameterized,
    RunningMean,
    ScoreFunction,
    Wake,
)
from iwbounds.logspace import leave_one_out_log_mean_exp, log_mean_exp, normalized_weights
from iwbounds.proposals import Proposal

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "IWAE",
    "OVIS",
    "STL",
    "VIMCO",
    "Bound",
    "Coefficients",
    "DReG",
    "DReGWake",
    "Direction",
    "Estimate",
    "Gradient",
    "Proposal",
    "Renyi",
    "Reparameterized",
    "RunningMean",
    "ScoreFunction",
    "Wake",
    "accumulate",
    "effective_sample_size",
    "estimate",
    "leave_one_out_log_mean_exp",
    "log_mean_exp",
    "normalized_weights",
    "pareto_k",
    "resampling_variance",
]
