"""What a transition is: it runs a chain from the initial proposal to the posterior, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from iwbounds.bounds.base import refuse_final
from iwbounds.proposals.annealed.bridge import Bridge

__all__ = ["Path", "Transition"]


class Path(NamedTuple):
    """A whole path as the latent of an ordinary proposal, of which four tensors are all that is needed."""

    z: Tensor | None
    """The last state: what the user's log-joint and expectations see."""
    log_w: Any
    """log P − log Q of the path, ``(K, *batch)``. Its graph is that of the path alone: explicit parameters of P and Q
    are taken out of it."""
    log_p: Tensor | None
    """Zero, with the gradient of log P at a fixed path."""
    log_q: Tensor | None
    """Zero, with the gradient of log Q at a fixed path."""


class Transition(ABC):
    """How a chain moves from one intermediate density to the next.

    The transitions of the package are final. For one of your own, subclass this and write both directions; the
    log-weights of the two must belong to one pair of densities of the whole path, P(forward path) = p(x, z_T) · (the
    density of the way back) and Q = q(z_0) · (the density of the way there).
    """

    total_derivative_only: bool = False
    """Whether the density of a path does not exist beside the way it was made, so that
    :class:`iwbounds.Reparameterized` alone is right."""
    reparameterized: bool = True
    """Whether a path is a differentiable function of its noise. False for Metropolis steps."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a subclass of a final transition, whose two directions would no longer belong together."""
        super().__init_subclass__(**options)
        refuse_final(cls, "iwbounds.Transition, and hold the transition in yours")

    def check_betas(self, betas: Tensor) -> None:  # noqa: B027
        """Raise ValueError where the transition is wrong for a schedule ``(T + 1, …)``."""

    @abstractmethod
    def forward(self, bridge: Bridge, num_samples: int) -> Path:
        """``num_samples`` paths, started at draws of the initial proposal."""

    @abstractmethod
    def backward(self, bridge: Bridge, z: Tensor) -> Tensor:
        """log P − log Q, ``(K, *batch)``, of paths drawn backwards from draws z of the posterior."""
