"""What the engine asks of a proposal: draw latents, evaluate their log-density, and say what may be assumed of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from iwbounds.checks import Latents, latent_leaves, matched_parts

__all__ = ["ExtendedProposal", "LogJoint", "LogProb", "Proposal", "cannot", "first_part"]

LogJoint: TypeAlias = Callable[[Latents], Tensor]
"""The user's log p(x, z): latents to ``(K, *batch)`` nats."""

LogProb: TypeAlias = Callable[[Latents], Any]
"""A proposal's log q(z): latents to ``(K, *batch)`` nats, or to one such tensor per part of mixed latents."""


@dataclass(frozen=True)
class Proposal:
    """A proposal made of callables, for whatever is not a torch ``Distribution``.

    Gradient estimators assume something of a proposal, and are right only where it holds. What is said here decides
    which of them :func:`iwbounds.estimate` takes by default, and which it refuses; :class:`iwbounds.Reparameterized`
    needs the least. :func:`iwbounds.testing.check_contract` tests what is said.

    Args:
        sample: called positionally with ``(num_samples,)``, once unless ``samples_per_call`` is set; returns latents,
            each ``(K, *batch, *event)``. Differentiable (as ``rsample``) in its reparameterised parts.
        log_prob: gets exactly what ``sample`` returned; gives ``(K, *batch)`` nats. With mixed latents, one such
            tensor per part, in the structure of the latents (matched by key).
        reparameterized: whether the samples carry the gradient of the proposal's parameters, their path being a true
            derivative (no straight-through estimator); for mixed latents, a tuple or dict that mirrors them. A part
            that says None is no latent of its own: it carries parameters or constants beside the others, is handed on
            as it is, and has no log-density.
        name: how messages call it.
        samples_per_call: for samples that are drawn independently, how many to draw in one call where ``chunk_size``
            keeps few in memory; they are then drawn once more for the backward, from the same state of PyTorch's
            generators. None: all are drawn in one call, and kept.
        fixed_log_prob: the same log-density with its parameters detached, where that can be had: it makes DReG and STL
            cheaper, and changes no number. A torch ``Distribution`` comes with its own.
        independent: whether the samples are independent along their first axis. False for antithetic, stratified and
            quasi-random draws, and for draws that share random components.
        fixed_support: whether the set of values with positive density does not depend on the proposal's parameters.
            False for a uniform distribution with learned bounds.
        needs_own_samples: whether ``log_prob`` must be given the very tensor that ``sample`` returned: it recognises
            it, reads an attribute of it, or has its inverse from a cache. Slices and copies are then never handed over.
        total_derivative_only: whether ``log_prob`` knows a sample by how it was made, and not by its value, so that its
            derivative at fixed parameters cannot be had. Said of torch transforms with a cache, or without an inverse,
            and of chains that are deterministic given their noise.
        joint_has_parameters: whether the proposal's parameters also sit in the log-joint (an extended one, with reverse
            models), so that no estimator may treat model and proposal apart.
        batch_shape: the shape of the batch, where it is known before anything is drawn.
        visible: from the latents to what the user's log-joint receives of them.
        mean_score: why E[∂ log q(z)] is not zero although the support is fixed, for the message that refuses the
            gradients which need it to be; None where it is zero.
        sample_rows: for samples that are rows of one table: draws these of its rows. Ranks that share the samples each
            take theirs, with torch's generators in one state.

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
    mean_score: str | None = None
    sample_rows: Callable[[range], Latents] | None = None

    @property
    def pathwise(self) -> bool:
        """Whether every part is reparameterised."""
        # is True first: it is the common case, and needs no walk through the structure.
        return self.reparameterized is True or self._flags == {True}

    @property
    def mixed(self) -> bool:
        """Whether some parts are reparameterised and some are not."""
        return len(self._flags) > 1

    @property
    def carries(self) -> bool:
        """Whether some parts carry parameters, whose graph is needed even where no latent has one."""
        return any(flag is None for flag in latent_leaves(self.reparameterized))

    @property
    def _flags(self) -> set[bool]:
        # Parts that only carry parameters have no path of their own, and decide nothing.
        return {bool(flag) for flag in latent_leaves(self.reparameterized) if flag is not None}

    def latent_parts(self, latents: Latents) -> list[Tensor]:
        """The tensors that are latents of their own: all but those that only carry parameters.

        Raises:
            ValueError: the parts are not those of ``reparameterized``.
        """
        if isinstance(self.reparameterized, bool):
            return latent_leaves(latents)
        # By structure, not by zip: flags of two would drop a part of a tuple of three from the density.
        return matched_parts(f"samples of {self.name}", latents, self.reparameterized)

    def log_prob_parts(self, latents: Latents, log_prob: LogProb | None = None) -> list[Any]:
        """One log-density per part where ``reparameterized`` speaks of parts, else the one there is.

        Raises:
            ValueError: the parts are not those of ``reparameterized``.
        """
        # One call for all parts: they may share a network.
        log_q = (log_prob or self.log_prob)(latents)
        if isinstance(self.reparameterized, bool):
            return [log_q]
        parts = matched_parts(f"log_prob of {self.name}", log_q, self.reparameterized)
        # A None here would be dropped from the weight silently.
        other = [type(part).__name__ for part in parts if not isinstance(part, Tensor)]
        if other:
            raise TypeError(
                f"expected log_prob of {self.name} to give one tensor (num_samples, *batch) for each part that is "
                f"drawn; got {other[0]} for one. Only parts with reparameterized=None have no log-density."
            )
        return parts


def first_part(latents: Latents) -> Tensor:
    """z of an extended latent that starts with it: what the user's log-joint receives."""
    return latents[0]  # type: ignore[no-any-return]


def cannot(proposal: Proposal, what: str, error: NotImplementedError) -> str:
    """For a class that leaves a method out."""
    return (
        f"expected a proposal that can be sampled and has a log_prob; {proposal.name} cannot {what}"
        f"{f' ({error})' if str(error) else ''}. Wrap callables of your own: iwbounds.Proposal(sample=…, log_prob=…)."
    )


class ExtendedProposal(ABC):
    """A proposal over more than z: auxiliary variables, a chain, a stratum. It says what the engine is to work on.

    Subclass it and write :meth:`extend`; every bound, estimator and option of :func:`iwbounds.estimate` then works.
    """

    name: str = "the proposal"
    has_rsample: bool = True

    @abstractmethod
    def extend(self, log_joint: LogJoint) -> tuple[LogJoint, Proposal]:
        """The log-joint of the extended latent, made of the user's (which receives z alone), and its proposal."""

    def posterior_log_weights(self, log_joint: LogJoint, z: Latents) -> Tensor:  # noqa: ARG002
        """Log-weights ``(K, *batch)`` of draws z of p(z | x), which :func:`iwbounds.upper_bound` needs.

        Each z is completed to a draw of the extended latent: what else it has is drawn from its density given z under
        the extended log-joint. Override it where that can be done.

        Raises:
            TypeError: it cannot.
        """
        raise TypeError(
            f"{self.name} ({type(self).__name__}) cannot complete a draw of the posterior to one of its extended "
            "latent, which an upper bound of log p(x) takes. Write its posterior_log_weights, or pass a Distribution."
        )
