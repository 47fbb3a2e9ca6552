"""Variational bounds for PyTorch: multi-sample objectives, low-variance gradients, honest evidence estimates."""

from iwbounds import densities
from iwbounds.bounds.base import Bound, Derivatives, Direction
from iwbounds.bounds.ciwae import CIWAE
from iwbounds.bounds.cubo import CUBO
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.jackknife import Jackknife
from iwbounds.bounds.miwae import MIWAE
from iwbounds.bounds.renyi import Renyi
from iwbounds.bounds.reverse import ReverseIWAE
from iwbounds.bounds.sumo import SUMO
from iwbounds.bounds.tvo import EUBO, TVO, log_spaced_partition
from iwbounds.bounds.u_statistic import IncompleteUStatistic, UStatistic
from iwbounds.bounds.umlmc import UMLMC
from iwbounds.certificates import lower_confidence_bound, mean_confidence_bound
from iwbounds.diagnostics import effective_sample_size, pareto_k
from iwbounds.engine import accumulate, estimate
from iwbounds.engine.resampling import resampling_variance
from iwbounds.engine.result import Estimate
from iwbounds.evidence import certify, diagnose, evaluate, sandwich
from iwbounds.evidence.certify import CertifiedEvidence
from iwbounds.evidence.diagnose import Diagnosis, gradient_snr
from iwbounds.evidence.expectation import posterior_expectation
from iwbounds.evidence.health import HealthMonitor, check_health
from iwbounds.evidence.information import entropy_bounds, mutual_information_bounds
from iwbounds.evidence.report import EvidenceReport
from iwbounds.evidence.sandwich import Sandwich
from iwbounds.evidence.streaming import StreamingWeights
from iwbounds.evidence.upper import upper_bound
from iwbounds.gradients.base import Coefficients, Gradient
from iwbounds.gradients.controlled import Controlled
from iwbounds.gradients.gdreg import GDReG
from iwbounds.gradients.reparameterized import STL, DReG, Reparameterized
from iwbounds.gradients.score import OVIS, VIMCO, RunningMean, ScoreFunction
from iwbounds.gradients.wake import DReGWake, Wake
from iwbounds.kernels.dispatch import kernels_available
from iwbounds.logspace.leave_one_out import leave_one_out_log_mean_exp
from iwbounds.logspace.mean import log_mean_exp, normalized_weights
from iwbounds.proposals.annealed.cmcd import CMCD
from iwbounds.proposals.annealed.dais import DAIS
from iwbounds.proposals.annealed.hmc import HMC
from iwbounds.proposals.annealed.mcd import MCD
from iwbounds.proposals.annealed.proposal import AnnealedProposal
from iwbounds.proposals.annealed.transition import Transition
from iwbounds.proposals.annealed.ula import ULA
from iwbounds.proposals.base import ExtendedProposal, Proposal
from iwbounds.proposals.hierarchical.aggregated import AggregatedPosterior
from iwbounds.proposals.hierarchical.proposal import HierarchicalProposal
from iwbounds.proposals.prior import PriorAndLikelihood
from iwbounds.proposals.quasi_random import QuasiRandom
from iwbounds.proposals.stratified import StratifiedMixture

__version__ = "0.2.0"

__all__ = [
    "CIWAE",
    "CMCD",
    "CUBO",
    "DAIS",
    "ELBO",
    "EUBO",
    "HMC",
    "IWAE",
    "MCD",
    "MIWAE",
    "OVIS",
    "STL",
    "SUMO",
    "TVO",
    "ULA",
    "UMLMC",
    "VIMCO",
    "AggregatedPosterior",
    "AnnealedProposal",
    "Bound",
    "CertifiedEvidence",
    "Coefficients",
    "Controlled",
    "DReG",
    "DReGWake",
    "Derivatives",
    "Diagnosis",
    "Direction",
    "Estimate",
    "EvidenceReport",
    "ExtendedProposal",
    "GDReG",
    "Gradient",
    "HealthMonitor",
    "HierarchicalProposal",
    "IncompleteUStatistic",
    "Jackknife",
    "PriorAndLikelihood",
    "Proposal",
    "QuasiRandom",
    "Renyi",
    "Reparameterized",
    "ReverseIWAE",
    "RunningMean",
    "Sandwich",
    "ScoreFunction",
    "StratifiedMixture",
    "StreamingWeights",
    "Transition",
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
