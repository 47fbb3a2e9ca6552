"""Proposals: how latents are drawn, what their log-density is, and what may be assumed of both."""

from iwbounds.proposals.base import ExtendedProposal, LogJoint, LogProb, Proposal
from iwbounds.proposals.distributions import as_proposal
from iwbounds.proposals.hierarchical import AggregatedPosterior, HierarchicalProposal
from iwbounds.proposals.prior import PriorAndLikelihood
from iwbounds.proposals.quasi_random import QuasiRandom
from iwbounds.proposals.stratified import StratifiedMixture

__all__ = [
    "AggregatedPosterior",
    "ExtendedProposal",
    "HierarchicalProposal",
    "LogJoint",
    "LogProb",
    "PriorAndLikelihood",
    "Proposal",
    "QuasiRandom",
    "StratifiedMixture",
    "as_proposal",
]
