"""Proposals whose density is an integral, bounded from both sides: HVM, SIVI, IWHVI, aggregated posteriors.

One story per file: the two-level model and its densities (model), the public proposal (proposal), and the three ways in
which it becomes an ordinary proposal over more than z (semi_implicit, importance_weighted, inner_gradient).
"""

from iwbounds.proposals.hierarchical.aggregated import AggregatedPosterior
from iwbounds.proposals.hierarchical.proposal import HierarchicalProposal

__all__ = ["AggregatedPosterior", "HierarchicalProposal"]
