"""Proposals: how latents are drawn and what their log-density is."""

from typing import TYPE_CHECKING

from iwbounds._lazy import lazy_attributes
from iwbounds.proposals.base import ExtendedProposal, LogJoint, LogProb, Proposal
from iwbounds.proposals.distributions import as_proposal

if TYPE_CHECKING:
    from iwbounds.proposals.directed import DirectedLogDensity
    from iwbounds.proposals.hierarchical import AggregatedPosterior, HierarchicalProposal

__all__ = [
    "AggregatedPosterior",
    "DirectedLogDensity",
    "ExtendedProposal",
    "HierarchicalProposal",
    "LogJoint",
    "LogProb",
    "Proposal",
    "as_proposal",
]

__getattr__ = lazy_attributes(
    __name__,
    {"AggregatedPosterior": "hierarchical", "DirectedLogDensity": "directed", "HierarchicalProposal": "hierarchical"},
)
