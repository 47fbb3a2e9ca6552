"""Proposals: how latents are drawn and what their log-density is."""

from typing import TYPE_CHECKING

from iwbounds._lazy import lazy_attributes
from iwbounds.proposals.base import ExtendedProposal, LogJoint, LogProb, Proposal, as_proposal

if TYPE_CHECKING:
    from iwbounds.proposals.aggregated import AggregatedPosterior
    from iwbounds.proposals.directed import DirectedLogDensity
    from iwbounds.proposals.hierarchical import HierarchicalProposal
    from iwbounds.proposals.quasi_random import QuasiRandom
    from iwbounds.proposals.stratified import StratifiedMixture

__all__ = [
    "AggregatedPosterior",
    "DirectedLogDensity",
    "ExtendedProposal",
    "HierarchicalProposal",
    "LogJoint",
    "LogProb",
    "Proposal",
    "QuasiRandom",
    "StratifiedMixture",
    "as_proposal",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "AggregatedPosterior": "aggregated",
        "DirectedLogDensity": "directed",
        "HierarchicalProposal": "hierarchical",
        "QuasiRandom": "quasi_random",
        "StratifiedMixture": "stratified",
    },
)
