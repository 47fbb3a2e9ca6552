"""Proposals: how latents are drawn, what their log-density is, and what may be assumed of both."""

from iwbounds.proposals.base import ExtendedProposal, LogJoint, LogProb, Proposal
from iwbounds.proposals.distributions import as_proposal
from iwbounds.proposals.hierarchical import AggregatedPosterior, HierarchicalProposal

__all__ = [
    "AggregatedPosterior",
    "ExtendedProposal",
    "HierarchicalProposal",
    "LogJoint",
    "LogProb",
    "Proposal",
    "as_proposal",
]
