"""The user's callables, called: log-densities of known shape, parts matched by key, and errors without tensor dumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds.base import Bound
from iwbounds.checks import Latents, check_latents, check_log_density, check_log_joint, matched_parts
from iwbounds.gradients.base import Gradient
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal
from iwbounds.proposals.distributions import as_proposal

if TYPE_CHECKING:
    from iwbounds.engine.result import Estimate  # for an annotation alone, so that no chain of imports grows

__all__ = [
    "ContractError",
    "densities",
    "first_line",
    "log_parts",
    "log_proposal",
    "name_of",
    "parts_as_claimed",
    "value_of",
    "with_density",
]

PROPOSAL = "the proposal's log_prob"


class ContractError(AssertionError, ValueError):
    """A model or a proposal that breaks the contract; the message says which clause, and what to do."""


def value_of(result: Tensor | Estimate) -> Tensor:
    """The ``(*batch)`` values of what an estimator returned."""
    return result if isinstance(result, Tensor) else result.value


def name_of(function: object) -> str:
    """How messages call a bound, a gradient or a function."""
    if isinstance(function, Bound | Gradient):
        return repr(function)
    return getattr(function, "__name__", repr(function))


def first_line(error: Exception) -> str:
    """An error in at most 200 characters, without the values that torch's validation prints after its first line."""
    text = (str(error).strip() or "no message").splitlines()[0].removesuffix(", but found invalid values:")
    return f"{type(error).__name__}: {text[:200]}"


def with_density(proposal: Distribution | Proposal | ExtendedProposal) -> Proposal:
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
        ContractError: as :func:`log_parts`.
        TypeError, ValueError: not a floating tensor with the samples' number along its first axis.
    """
    parts = log_parts(proposal, latents)
    return sum(parts[1:], parts[0])


def log_parts(proposal: Proposal, latents: Latents) -> list[Tensor]:
    """One log-density per part of mixed latents, in the order of ``reparameterized``; else the one there is.

    Raises:
        ContractError: ``log_prob`` refuses the latents, or its parts are not those of ``reparameterized``.
    """
    count, claims = check_latents(latents, None), proposal.reparameterized
    try:
        log_q = proposal.log_prob(latents)
    except ValueError as error:
        raise ContractError(
            f"{PROPOSAL} refuses latents that its sampler drew ({first_line(error)}). iwbounds.estimate would meet the "
            "same error. If rounding puts draws outside the support, use float64, or validate_args=False."
        ) from None  # the chained error would print every value
    parts = [log_q] if isinstance(claims, bool) else parts_as_claimed(claims, log_q, PROPOSAL)
    return [check_log_density(PROPOSAL, part, count) for part in parts]


def parts_as_claimed(claims: Any, given: Any, name: str) -> list[Any]:
    """:func:`iwbounds.checks.matched_parts`, whose refusal shows the whole of both structures.

    Raises:
        ContractError: another structure.
    """
    try:
        return matched_parts(name, given, claims)
    # Its own words name the one part that is amiss; which log-density is whose shows in all of them together.
    except ValueError:
        raise ContractError(
            f"expected {name} to return one tensor per part, in the structure of reparameterized= and of the latents, "
            f"{_outline(claims)}; got {_outline(given)}. Return the parts' log-densities apart, each under its own "
            "key: a sum hides which of them belongs to the parts that are not reparameterised."
        ) from None


def _outline(structure: Any) -> str:
    """A structure without its values."""
    if isinstance(structure, dict):
        return "{" + ", ".join(f"{key!r}: {_outline(part)}" for key, part in structure.items()) + "}"
    if isinstance(structure, tuple | list):
        return "(" + ", ".join(map(_outline, structure)) + ",)"
    return f"tensor {tuple(structure.shape)}" if isinstance(structure, Tensor) else repr(structure)


def densities(log_joint: LogJoint, proposal: Proposal, latents: Latents) -> tuple[Tensor, Tensor]:
    """log p and log q, each ``(K, *batch)``, under the checks that :func:`iwbounds.estimate` makes.

    Raises:
        TypeError, ValueError: as :func:`iwbounds.estimate`.
    """
    log_q = log_proposal(proposal, latents)
    return check_log_joint(called(log_joint, latents), log_q), log_q


def called(log_joint: Callable[[Latents], Any], latents: Latents) -> Any:
    """``log_joint(latents)``; a refusal by torch's validation is told in one line."""
    try:
        return log_joint(latents)
    except ValueError as error:
        raise ContractError(
            f"log_joint refuses latents that the proposal drew ({first_line(error)}). If draws fall outside the "
            "model's support, use a proposal with that support (LogNormal or Gamma for a positive latent)."
        ) from None  # the chained error would print every value
