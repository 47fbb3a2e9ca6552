"""Proposals: how latents are drawn and what their log-density is."""

from iwbounds.proposals.base import LogJoint, Proposal, as_proposal

__all__ = ["LogJoint", "Proposal", "as_proposal"]
