"""What the engine asks of a proposal: draw latents, and evaluate their log-density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds import Bound
from iwbounds.gradients import Gradient
from iwbounds.latents import Latents, latent_leaves
from iwbounds.proposals.fixed import fixed_log_prob

__all__ = ["ExtendedProposal", "LogJoint", "LogProb", "Proposal", "as_proposal"]

LogJoint: TypeAlias = Callable[[Latents], Tensor]
"""The user's log p(x, z): latents to ``(K, *batch)`` nats."""

LogProb: TypeAlias = Callable[[Latents], Any]
"""A proposal's log q(z): latents to ``(K, *batch)`` nats, or to one such tensor per part of mixed latents."""


@dataclass(frozen=True)
class Proposal:
    """A proposal made of callables, for whatever is not a torch ``Distribution``.

    Args:
        sample: called positionally with ``(num_samples,)``, once unless ``samples_per_call`` is set; returns latents,
            each ``(K, *batch, *event)``. Differentiable (as ``rsample``) in its reparameterised parts.
        log_prob: gets exactly what ``sample`` returned; gives ``(K, *batch)`` nats. With mixed latents, one such
            tensor per part, in the structure of the latents.
        reparameterized: whether the samples carry the gradient of the proposal's parameters; for mixed latents, a
            tuple or dict of booleans that mirrors them.
        name: how messages call it.
        fixed_log_prob: the same log-density with its parameters detached, where that can be had: it makes DReG and STL
            cheaper, and changes no number. A torch ``Distribution`` comes with its own.
        samples_per_call: for samples that are drawn independently, how many to draw in one call where ``chunk_size``
            keeps few in memory; they are then drawn once more for the backward, from the same state of PyTorch's
            generators. None: all are drawn in one call, and held.

    >>> import torch
    >>> shift = torch.zeros(3, requires_grad=True)
    >>> q = Proposal(sample=lambda shape: shift + torch.randn(*shape, 3),
    ...              log_prob=lambda z: torch.distributions.Normal(shift, 1.0).log_prob(z))
    >>> q.sample((5,)).shape
    torch.Size([5, 3])
    """

    sample: Callable[[tuple[int]], Latents]
    log_prob: LogProb
    reparameterized: Any = True
    name: str = "the proposal"
    samples_per_call: int | None = None
    fixed_log_prob: LogProb | None = None
    independent: bool = True
    fixed_support: bool = True
    needs_own_samples: bool = False
    total_derivative_only: bool = False
    joint_has_parameters: bool = False
    batch_shape: tuple[int, ...] | None = None
    visible: Callable[[Latents], Latents] | None = None

    @property
    def pathwise(self) -> bool:
        """Whether every part is reparameterised."""
        return self._flags == {True}

    @property
    def mixed(self) -> bool:
        """Whether some parts are reparameterised and some are not."""
        return len(self._flags) > 1

    @property
    def _flags(self) -> set[bool]:
        return {bool(flag) for flag in latent_leaves(self.reparameterized) if flag is not None}

    def log_prob_parts(self, latents: Latents, log_prob: LogProb | None = None) -> list[Any]:
        """One log-density per part where ``reparameterized`` speaks of parts, else the one there is."""
        log_q = (log_prob or self.log_prob)(latents)
        return (
            [log_q]
            if isinstance(self.reparameterized, bool)
            else [part for part in latent_leaves(log_q) if part is not None]
        )

    def check(self, gradient: Gradient, proposal_bound: Bound | None) -> None:
        """Raise ValueError where a gradient, or another bound for the proposal, is wrong for this proposal."""

    def extended(self, log_joint: LogJoint) -> tuple[LogJoint, Proposal]:
        """The log-joint and the proposal that the engine works on; they differ from the user's for extended latents."""
        return log_joint, self


class ExtendedProposal(ABC):
    """A proposal over more than z: auxiliary variables, a chain, a stratum. It says what the engine is to work on."""

    name: str = "the proposal"
    has_rsample: bool = True

    @abstractmethod
    def extend(self, log_joint: LogJoint) -> tuple[LogJoint, Proposal]:
        """The log-joint of the extended latent, made of the user's (which receives z alone), and its proposal."""


def as_proposal(proposal: Distribution | Proposal) -> Proposal:
    """The engine's view of whatever a user may pass as a proposal.

    Raises:
        TypeError: neither a torch ``Distribution`` nor an :class:`Proposal`.
    """
    if isinstance(proposal, Proposal):
        return proposal
    if isinstance(proposal, Distribution):
        sample = proposal.rsample if proposal.has_rsample else proposal.sample
        return Proposal(
            sample,
            proposal.log_prob,
            proposal.has_rsample,
            type(proposal).__name__,
            _samples_per_call(proposal),
            fixed_log_prob(proposal),
            batch_shape=proposal.batch_shape,
        )
    raise TypeError(
        f"expected the proposal to be a torch Distribution, an iwbounds.Proposal or an iwbounds.HierarchicalProposal; "
        f"got {type(proposal).__name__}. Wrap its two callables: iwbounds.Proposal(sample=…, log_prob=…)."
    )


def _samples_per_call(distribution: Distribution) -> int:
    """As many samples as have about a million elements (4 MB of float32), in multiples of 16."""
    elements = distribution.batch_shape.numel() * distribution.event_shape.numel()
    return max(16, 2**20 // max(1, elements) // 16 * 16)
