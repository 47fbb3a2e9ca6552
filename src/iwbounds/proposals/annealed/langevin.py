r"""Langevin chains: what ULA, MCD and CMCD share.

With :math:`\pi_k = p^{\beta_k} q^{1-\beta_k}` and the terms u and v that a transition adds to the drifts,

.. math::
    F_k(z_{k+1}\mid z_k) &= N(z_k + \delta(\nabla\log\pi_k(z_k) + u_k(z_k)),\, 2\delta) \\
    B_k(z_k\mid z_{k+1}) &= N(z_{k+1} + \delta(\nabla\log\pi_k(z_{k+1}) + v_k(z_{k+1})),\, 2\delta).

The target of the path is :math:`P = p(x,z_T)\prod B_k` and its proposal :math:`Q = q(z_0)\prod F_k`. Both variances are
the same, so in the noise ε of a step, and with A the sum of its two drifts, the quotient needs no density:

.. math:: \log\frac{B_k}{F_k} = -\sum_i \sqrt{\delta/2}\,\epsilon_i A_i + \tfrac\delta4 A_i^2,

and the same with the other sign for a step that was drawn backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from iwbounds.proposals.annealed.bridge import Bridge, State, Values, standard_normal_like, sum_event
from iwbounds.proposals.annealed.schedule import StepSize, check_positive
from iwbounds.proposals.annealed.transition import Path, Transition
from iwbounds.proposals.graph import gradient_only

__all__ = ["Langevin", "Networked"]


class _Kernel(NamedTuple):
    """One transition: β and δ, in the graph of whatever they are learned from."""

    beta: Tensor
    delta: Tensor

    def there(self, values: Values) -> Tensor:
        """The drift of F; its term comes first."""
        return _plus(values.slope(self.beta), values.terms[0])

    def back(self, values: Values) -> Tensor:
        """The drift of B; its term comes second."""
        return _plus(values.slope(self.beta), values.terms[1])

    def move(self, z: Tensor, drift: Tensor, noise: Tensor) -> Tensor:
        return z + self.delta * drift + (2 * self.delta).sqrt() * noise

    def log_ratio(self, drifts: Tensor, noise: Tensor) -> Tensor:
        """log F − log B of a step there, log B − log F of a step back, before the sum over the event."""
        return (self.delta / 2).sqrt() * noise * drifts + self.delta / 4 * drifts.square()

    def log_density(self, to: Tensor, origin: Tensor, drift: Tensor) -> Tensor:
        """log N(to; origin + δ drift, 2δ) as a function of δ and the drift, but for a constant."""
        # The states are what is held fixed; their path is in log_w.
        residual = (to - origin).detach() - self.delta * drift
        # Both kernels have one variance, so its constant cancels from P/Q; its derivative does not cancel from either.
        return -(residual.square() / (4 * self.delta) + 0.5 * self.delta.log())


class Langevin(Transition):
    """Unadjusted Langevin steps, with whatever a subclass adds to the two drifts."""

    def __init__(self, step_size: StepSize) -> None:
        check_positive("step_size", step_size)
        self.step_size = step_size

    def forward_term(self, z: Tensor, step: int) -> Tensor | None:  # noqa: ARG002
        """u: what is added to the drift of F at ``step``; None for nothing."""
        return None

    def backward_term(self, z: Tensor, step: int) -> Tensor | None:  # noqa: ARG002
        """v: what is added to the drift of B at ``step``; None for nothing."""
        return None

    def forward(self, bridge: Bridge, num_samples: int) -> Path:
        here = self._state(bridge, bridge.start(num_samples), 0)
        # log_w has the total derivative of log P − log Q; log_p and log_q beside it the explicit ones.
        log_w, log_p, log_q = -here.live.log_q, torch.zeros_like(here.fixed.log_p), here.fixed.log_q
        for step in range(bridge.num_steps):
            kernel, noise = self._kernel(bridge, here, step), standard_normal_like(here.z)
            drift = kernel.there(here.live)
            there = self._state(bridge, kernel.move(here.z, drift, noise), step + 1)
            log_w = log_w - sum_event(kernel.log_ratio(drift + kernel.back(there.live), noise), log_w)
            # For values the two would be computed in vain: they end as zeros.
            if torch.is_grad_enabled():
                log_p = log_p + sum_event(kernel.log_density(here.z, there.z, kernel.back(there.fixed)), log_w)
                log_q = log_q + sum_event(kernel.log_density(there.z, here.z, kernel.there(here.fixed)), log_w)
            here = there
        return _path(here, log_w + here.live.log_p, log_p + here.fixed.log_p, log_q)

    def backward(self, bridge: Bridge, z: Tensor) -> Tensor:
        here = self._state(bridge, z, bridge.num_steps)
        log_w = here.live.log_p
        for step in reversed(range(bridge.num_steps)):
            kernel, noise = self._kernel(bridge, here, step), standard_normal_like(here.z)
            drift = kernel.back(here.live)
            there = self._state(bridge, kernel.move(here.z, drift, noise), step)
            log_w = log_w + sum_event(kernel.log_ratio(drift + kernel.there(there.live), noise), log_w)
            here = there
        return log_w - here.live.log_q

    def _kernel(self, bridge: Bridge, here: State, step: int) -> _Kernel:
        z = here.z
        return _Kernel(bridge.beta(step, z, here.live.log_p), bridge.size(self.step_size, step, z))

    def _state(self, bridge: Bridge, z: Tensor, number: int) -> State:
        """z_number, with the terms of the kernels on either side of it."""

        # A state has a kernel before it and one after it, but for the first and the last.
        def there(z: Tensor) -> Tensor | None:
            return self.forward_term(z, number) if number < bridge.num_steps else None

        def back(z: Tensor) -> Tensor | None:
            return self.backward_term(z, number - 1) if number else None

        return bridge.at(z, there, back)


class Networked(Langevin):
    """Langevin steps with a network in one of the drifts, or in both.

    Raises:
        TypeError: a network that cannot be called, or returns no tensor.
        ValueError: what it returns has another shape than z.
    """

    def __init__(self, network: Callable[[Tensor, int], Tensor], step_size: StepSize) -> None:
        super().__init__(step_size)
        if not callable(network):
            raise TypeError(f"expected network to be callable as network(z, step); got {type(network).__name__}.")
        self.network = network

    def term(self, z: Tensor, step: int) -> Tensor:
        """What the network adds, in the shape of z."""
        return _checked_term(self.network(z, step), z)


def _checked_term(found: object, z: Tensor) -> Tensor:
    """What a network returned, known to be a tensor in the shape of the latents.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"expected network(z, step) to return a tensor; got {type(found).__name__}.")
    if found.shape != z.shape:
        raise ValueError(
            f"expected network(z, step) to return the shape of z, {tuple(z.shape)} = (num_samples, *batch, *event); "
            f"got {tuple(found.shape)}. Nothing is broadcast."
        )
    return found


def _plus(slope: Tensor, term: Tensor | None) -> Tensor:
    return slope if term is None else slope + term


def _path(end: State, log_w: Tensor, log_p: Tensor, log_q: Tensor) -> Path:
    """The path, its explicit parameters apart: what is left in the graph of log P − log Q is the path."""
    explicit_p, explicit_q = gradient_only(log_p), gradient_only(log_q)
    return Path(end.z.detach(), log_w - explicit_p + explicit_q, explicit_p, explicit_q)
