"""Both log-densities of given latents, of shapes that are known to agree."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, check_latents, check_log_density, check_log_joint
from iwbounds.proposals import ExtendedProposal, LogJoint, Proposal, as_proposal

__all__ = ["densities", "log_proposal", "with_density"]


def with_density(proposal: Distribution | Proposal, log_joint: LogJoint) -> Proposal:
    """The engine's view of a proposal that has a density.

    Raises:
        TypeError: a hierarchical proposal, whose density is an integral.
    """
    drawn = as_proposal(proposal)
    if isinstance(drawn, ExtendedProposal):
        raise TypeError(
            f"expected a proposal with a density; got {type(proposal).__name__}, whose density is an integral. Check "
            "its mixing, conditional and reverse distributions each on its own, and its estimates by assert_not_above, "
            "or by assert_sandwich with lower= and upper= of your own."
        )
    return drawn


def log_proposal(proposal: Proposal, latents: Latents) -> Tensor:
    """The proposal's log-density of all parts, ``(K, *batch)``.

    Raises:
        TypeError, ValueError: not a floating tensor with the samples' number along its first axis.
    """
    parts = proposal.log_prob_parts(latents)
    return check_log_density("the proposal's log_prob", sum(parts[1:], parts[0]), check_latents(latents, None))


def densities(log_joint: LogJoint, proposal: Proposal, latents: Latents) -> tuple[Tensor, Tensor]:
    """log p and log q, each ``(K, *batch)``, under the checks that :func:`iwbounds.estimate` makes.

    Raises:
        TypeError, ValueError: as :func:`iwbounds.estimate`.
    """
    log_q = log_proposal(proposal, latents)
    return check_log_joint(log_joint(latents), log_q), log_q
