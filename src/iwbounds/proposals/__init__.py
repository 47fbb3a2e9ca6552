"""Proposals: how latents are drawn and what their log-density is."""

from iwbounds.proposals.aggregated import AggregatedPosterior
from iwbounds.proposals.base import LogJoint, Proposal, as_proposal
from iwbounds.proposals.directed import DirectedLogDensity
from iwbounds.proposals.hierarchical import HierarchicalProposal

__all__ = ["AggregatedPosterior", "DirectedLogDensity", "HierarchicalProposal", "LogJoint", "Proposal", "as_proposal"]
