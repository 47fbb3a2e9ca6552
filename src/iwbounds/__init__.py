"""Variational bounds for PyTorch: multi-sample objectives, low-variance gradients, honest evidence estimates."""

from iwbounds import (densities,)
from iwbounds.bounds import (Bound, CIWAE, CUBO, Derivatives, Direction, ELBO, EUBO, IWAE, IncompleteUStatistic, Jackknife, MIWAE, Renyi, ReverseIWAE, SUMO, TVO, UMLMC, UStatistic, log_spaced_partition,)
from iwbounds.certificates import (lower_confidence_bound, mean_confidence_bound,)
from iwbounds.diagnostics import (effective_sample_size, pareto_k,)
from iwbounds.engine import (Estimate, accumulate, estimate, resampling_variance,)
from iwbounds.evidence import (CertifiedEvidence, Diagnosis, EvidenceReport, HealthMonitor, Sandwich, StreamingWeights, certify, check_health, diagnose, entropy_bounds, evaluate, gradient_snr, mutual_information_bounds, posterior_expectation, sandwich, upper_bound,)
from iwbounds.gradients import (Coefficients, Controlled, DReG, DReGWake, Gradient, OVIS, Reparameterized, RunningMean, STL, ScoreFunction, VIMCO, Wake,)
from iwbounds.kernels import (kernels_available,)
from iwbounds.logspace import (leave_one_out_log_mean_exp, log_mean_exp, normalized_weights,)
from iwbounds.proposals import (AggregatedPosterior, ExtendedProposal, HierarchicalProposal, Proposal, QuasiRandom, StratifiedMixture,)

__version__ = "0.2.0"

__all__ = [
    "AggregatedPosterior",
    "Bound",
    "CIWAE",
    "CUBO",
    "CertifiedEvidence",
    "Coefficients",
    "Controlled",
    "DReG",
    "DReGWake",
    "Derivatives",
    "Diagnosis",
    "Direction",
    "ELBO",
    "EUBO",
    "Estimate",
    "EvidenceReport",
    "ExtendedProposal",
    "Gradient",
    "HealthMonitor",
    "HierarchicalProposal",
    "IWAE",
    "IncompleteUStatistic",
    "Jackknife",
    "MIWAE",
    "OVIS",
    "Proposal",
    "QuasiRandom",
    "Renyi",
    "Reparameterized",
    "ReverseIWAE",
    "RunningMean",
    "STL",
    "SUMO",
    "Sandwich",
    "ScoreFunction",
    "StratifiedMixture",
    "StreamingWeights",
    "TVO",
    "UMLMC",
    "UStatistic",
    "VIMCO",
    "Wake",
    "accumulate",
    "certify",
    "check_health",
    "densities",
    "diagnose",
    "effective_sample_size",
    "entropy_bounds",
    "estimate",
    "evaluate",
    "gradient_snr",
    "kernels_available",
    "leave_one_out_log_mean_exp",
    "log_mean_exp",
    "log_spaced_partition",
    "lower_confidence_bound",
    "mean_confidence_bound",
    "mutual_information_bounds",
    "normalized_weights",
    "pareto_k",
    "posterior_expectation",
    "resampling_variance",
    "sandwich",
    "upper_bound",
]
