"""Variational bounds for PyTorch: multi-sample objectives, low-variance gradients, honest evidence estimates."""

from iwbounds.bounds import (
    CIWAE,
    CUBO,
    ELBO,
    EUBO,
    IWAE,
    MIWAE,
    SUMO,
    TVO,
    Bound,
    Direction,
    IncompleteUStatistic,
    Jackknife,
    Renyi,
    UStatistic,
    log_spaced_partition,
)
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
    "CIWAE",
    "CUBO",
    "ELBO",
    "EUBO",
    "IWAE",
    "MIWAE",
    "OVIS",
    "STL",
    "SUMO",
    "TVO",
    "VIMCO",
    "Bound",
    "Coefficients",
    "DReG",
    "DReGWake",
    "Direction",
    "Estimate",
    "Gradient",
    "IncompleteUStatistic",
    "Jackknife",
    "Proposal",
    "Renyi",
    "Reparameterized",
    "RunningMean",
    "ScoreFunction",
    "UStatistic",
    "Wake",
    "accumulate",
    "effective_sample_size",
    "estimate",
    "leave_one_out_log_mean_exp",
    "log_mean_exp",
    "log_spaced_partition",
    "normalized_weights",
    "pareto_k",
    "resampling_variance",
]
