"""Variational bounds for PyTorch: multi-sample objectives, low-variance gradients, honest evidence estimates."""

from iwbounds import densities
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
from iwbounds.certificates import lower_confidence_bound, mean_confidence_bound
from iwbounds.diagnostics import effective_sample_size, pareto_k
from iwbounds.engine import Estimate, accumulate, estimate, resampling_variance
from iwbounds.evidence import (
    CertifiedEvidence,
    EvidenceReport,
    StreamingWeights,
    certify,
    entropy_bounds,
    evaluate,
    mutual_information_bounds,
    upper_bound,
)
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
from iwbounds.kernels import kernels_available
from iwbounds.logspace import leave_one_out_log_mean_exp, log_mean_exp, normalized_weights
from iwbounds.proposals import AggregatedPosterior, HierarchicalProposal, Proposal

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
    "AggregatedPosterior",
    "Bound",
    "CertifiedEvidence",
    "Coefficients",
    "DReG",
    "DReGWake",
    "Direction",
    "Estimate",
    "EvidenceReport",
    "Gradient",
    "HierarchicalProposal",
    "IncompleteUStatistic",
    "Jackknife",
    "Proposal",
    "Renyi",
    "Reparameterized",
    "RunningMean",
    "ScoreFunction",
    "StreamingWeights",
    "UStatistic",
    "Wake",
    "accumulate",
    "certify",
    "densities",
    "effective_sample_size",
    "entropy_bounds",
    "estimate",
    "evaluate",
    "kernels_available",
    "leave_one_out_log_mean_exp",
    "log_mean_exp",
    "log_spaced_partition",
    "lower_confidence_bound",
    "mean_confidence_bound",
    "mutual_information_bounds",
    "normalized_weights",
    "pareto_k",
    "resampling_variance",
    "upper_bound",
]
