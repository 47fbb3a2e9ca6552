"""Variational bounds for PyTorch: multi-sample objectives, low-variance gradients, honest evidence estimates."""

from typing import TYPE_CHECKING

from iwbounds._lazy import lazy_attributes
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

if TYPE_CHECKING:
    from iwbounds import densities
    from iwbounds.bounds import (
        CIWAE,
        CUBO,
        EUBO,
        MIWAE,
        SUMO,
        TVO,
        IncompleteUStatistic,
        Jackknife,
        ReverseIWAE,
        UStatistic,
        log_spaced_partition,
    )
    from iwbounds.certificates import lower_confidence_bound, mean_confidence_bound
    from iwbounds.evidence import (
        CertifiedEvidence,
        EvidenceReport,
        StreamingWeights,
        certify,
        check_health,
        diagnose,
        entropy_bounds,
        evaluate,
        gradient_snr,
        mutual_information_bounds,
        posterior_expectation,
        sandwich,
        upper_bound,
    )
    from iwbounds.logspace.kernels import kernels_available
    from iwbounds.proposals import AggregatedPosterior, DirectedLogDensity, HierarchicalProposal

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
    "DirectedLogDensity",
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
    "ReverseIWAE",
    "RunningMean",
    "ScoreFunction",
    "StreamingWeights",
    "UStatistic",
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

__getattr__ = lazy_attributes(
    __name__,
    {
        "AggregatedPosterior": "proposals",
        "CIWAE": "bounds",
        "CUBO": "bounds",
        "CertifiedEvidence": "evidence",
        "DirectedLogDensity": "proposals",
        "EUBO": "bounds",
        "EvidenceReport": "evidence",
        "HierarchicalProposal": "proposals",
        "IncompleteUStatistic": "bounds",
        "Jackknife": "bounds",
        "MIWAE": "bounds",
        "ReverseIWAE": "bounds",
        "SUMO": "bounds",
        "sandwich": "evidence",
        "StreamingWeights": "evidence",
        "TVO": "bounds",
        "UStatistic": "bounds",
        "certify": "evidence",
        "check_health": "evidence",
        "densities": "",
        "diagnose": "evidence",
        "entropy_bounds": "evidence",
        "evaluate": "evidence",
        "gradient_snr": "evidence",
        "kernels_available": "logspace.kernels",
        "log_spaced_partition": "bounds",
        "lower_confidence_bound": "certificates",
        "mean_confidence_bound": "certificates",
        "mutual_information_bounds": "evidence",
        "posterior_expectation": "evidence",
        "upper_bound": "evidence",
    },
)
