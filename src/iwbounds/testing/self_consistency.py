"""Whether a proposal's log_prob is the log-density of what it samples, by sequential tests on both alone."""

from __future__ import annotations

import math

import torch
from torch.distributions import Distribution

from iwbounds.checks import latent_leaves
from iwbounds.proposals import Proposal
from iwbounds.testing.betting import EProcess
from iwbounds.testing.continuous import DrawTest, continuous_tests
from iwbounds.testing.coordinates import Coordinates, is_discrete, support_bijection
from iwbounds.testing.discrete import coordinates_are_free, discrete_tests, excess_mass

__all__ = ["self_consistency_fault"]

_REFERENCE, _DRAWS, _ROUNDS = 256, 4096, 8


def self_consistency_fault(
    given: Distribution | Proposal, proposal: Proposal, batch: torch.Size, alpha: float
) -> str | None:
    """What is wrong with the proposal's log_prob, or None. Draws from torch's generators; call it without a graph.

    Args:
        given: the user's proposal, which is asked for its support.
        proposal: the engine's view of it.
        batch: the batch shape.
        alpha: the probability of a false alarm, over all tests.
    """
    reference, leading = proposal.sample((_REFERENCE,)), 1 + len(batch)
    discrete = [is_discrete(z) for z in latent_leaves(reference)]
    if all(discrete):
        mass = excess_mass(proposal, reference, leading)
        if mass > 1.001:
            return f"the probabilities of distinct draws add up to {mass:.4g} > 1"
        tests = discrete_tests(proposal, reference, leading, coordinates_are_free(given))
    elif not any(discrete):
        space = Coordinates(proposal, support_bijection(given), reference, batch)
        tests = continuous_tests(space, proposal, reference)
    else:
        return None
    size = max(32, math.ceil(_DRAWS / _ROUNDS / max(1, batch.numel())))
    for fault, test in tests.items():
        if at := _rejected_at(test, proposal, size, alpha / len(tests)):
            return f"{fault} (certain after {at} draws, at alpha = {alpha:g})"
    return None


def _rejected_at(test: DrawTest, proposal: Proposal, size: int, alpha: float) -> int | None:
    """Play on all data together, and on each datum alone: either may see a fault that the other drowns."""
    together, apart = EProcess(alpha / 2), EProcess(alpha / 2)
    for _ in range(_ROUNDS):
        factors = test(proposal.sample((size,)))
        together.add(factors.flatten(1))
        apart.add(factors.transpose(1, 2).flatten(0, 1))
        if together.rejected_at or apart.rejected_at:
            break
    return together.rejected_at or apart.rejected_at
