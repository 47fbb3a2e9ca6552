"""Proposals: how latents are drawn, what their log-density is, and what may be assumed of both."""

from iwbounds.proposals.annealed import (
    CMCD,
    DAIS,
    HMC,
    MCD,
    ULA,
    AnnealedProposal,
    AnnealingReport,
    LearnedSchedule,
    LearnedStepSize,
    Transition,
)
from iwbounds.proposals.base import ExtendedProposal, LogJoint, LogProb, Proposal
from iwbounds.proposals.distributions import as_proposal
from iwbounds.proposals.hierarchical import AggregatedPosterior, HierarchicalProposal
from iwbounds.proposals.prior import PriorAndLikelihood
from iwbounds.proposals.quasi_random import QuasiRandom
from iwbounds.proposals.stratified import StratifiedMixture

__all__ = [
    "CMCD",
    "DAIS",
    "HMC",
    "MCD",
    "ULA",
    "AggregatedPosterior",
    "AnnealedProposal",
    "AnnealingReport",
    "ExtendedProposal",
    "HierarchicalProposal",
    "LearnedSchedule",
    "LearnedStepSize",
    "LogJoint",
    "LogProb",
    "PriorAndLikelihood",
    "Proposal",
    "QuasiRandom",
    "StratifiedMixture",
    "Transition",
    "as_proposal",
]
