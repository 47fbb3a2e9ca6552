"""Proposals: how latents are drawn and what their log-density is."""

from iwbounds.proposals.aggregated import AggregatedPosterior
from iwbounds.proposals.base import ExtendedProposal, LogJoint, LogProb, Proposal
from iwbounds.proposals.distributions import as_proposal
from iwbounds.proposals.hierarchical import HierarchicalProposal

__all__ = [
    "AggregatedPosterior",
    "ExtendedProposal",
    "HierarchicalProposal",
    "LogJoint",
    "LogProb",
    "Proposal",
    "as_proposal",
]
