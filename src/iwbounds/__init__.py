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
    Controlled,
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
        UMLMC,
        IncompleteUStatistic,
        Jackknife,
        UStatistic,
        log_spaced_partition,
    )
    from iwbounds.evidence import StreamingWeights, entropy_bounds, mutual_information_bounds, upper_bound
    from iwbounds.logspace.kernels import kernels_available
    from iwbounds.proposals import (
        AggregatedPosterior,
        DirectedLogDensity,
        HierarchicalProposal,
        QuasiRandom,
        StratifiedMixture,
    )

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
    "UMLMC",
    "VIMCO",
    "AggregatedPosterior",
    "Bound",
    "Coefficients",
    "Controlled",
    "DReG",
    "DReGWake",
    "DirectedLogDensity",
    "Direction",
    "Estimate",
    "Gradient",
    "HierarchicalProposal",
    "IncompleteUStatistic",
    "Jackknife",
    "Proposal",
    "QuasiRandom",
    "Renyi",
    "Reparameterized",
    "RunningMean",
    "ScoreFunction",
    "StratifiedMixture",
    "StreamingWeights",
    "UStatistic",
    "Wake",
    "accumulate",
    "densities",
    "effective_sample_size",
    "entropy_bounds",
    "estimate",
    "kernels_available",
    "leave_one_out_log_mean_exp",
    "log_mean_exp",
    "log_spaced_partition",
    "mutual_information_bounds",
    "normalized_weights",
    "pareto_k",
    "resampling_variance",
    "upper_bound",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "AggregatedPosterior": "proposals",
        "CIWAE": "bounds",
        "CUBO": "bounds",
        "DirectedLogDensity": "proposals",
        "EUBO": "bounds",
        "HierarchicalProposal": "proposals",
        "IncompleteUStatistic": "bounds",
        "Jackknife": "bounds",
        "MIWAE": "bounds",
        "SUMO": "bounds",
        "QuasiRandom": "proposals",
        "StratifiedMixture": "proposals",
        "StreamingWeights": "evidence",
        "TVO": "bounds",
        "UMLMC": "bounds",
        "UStatistic": "bounds",
        "densities": "",
        "entropy_bounds": "evidence",
        "kernels_available": "logspace.kernels",
        "log_spaced_partition": "bounds",
        "mutual_information_bounds": "evidence",
        "upper_bound": "evidence",
    },
)
