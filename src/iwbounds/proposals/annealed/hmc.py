"""Annealed importance sampling with Hamiltonian Monte Carlo: Metropolis-corrected moves, for values."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor

from iwbounds.checks import check_whole_number
from iwbounds.proposals.annealed.annealing import Moved, annealed, annealed_back
from iwbounds.proposals.annealed.bridge import (
    Bridge,
    State,
    Values,
    has_parameters,
    over_event,
    standard_normal_like,
    sum_event,
    uniform_like,
)
from iwbounds.proposals.annealed.schedule import StepSize, check_positive
from iwbounds.proposals.annealed.transition import Path, Transition
from iwbounds.proposals.graph import gradient_only

__all__ = ["HMC", "Chain"]


class Chain(NamedTuple):
    """A state of K chains with the two densities there, all of it outside every graph."""

    z: Tensor
    values: Values
    acceptance: Tensor
    """Probability with which the move that led here was accepted, ``(K, *batch)``."""


@final
class HMC(Transition):
    r"""Hamiltonian Monte Carlo moves that leave each :math:`\pi_{\beta_t}` invariant: annealed importance sampling.

    .. math:: \log w = \sum_{t=1}^T (\beta_t-\beta_{t-1})\,[\log p(x,z_{t-1}) - \log q(z_{t-1})], \qquad E[w] = p(x)

    T − 1 moves of ``num_leapfrogs`` leapfrog steps each, with a fresh momentum and a Metropolis decision; every chain
    takes a random part, from half to all, of the step size at each move. Nothing is
    learned: give it many steps, and let :meth:`AnnealedProposal.adapted` set step sizes and schedule in a pilot run. In
    one call the memory is that of one step, whatever T. z_T here is z_{T−1}, the last state of the chain.

    **For values.** Through accept steps there is no derivative of the weights, so with gradients enabled everything
    that requires grad is refused, in the log-joint as in the proposal: evaluate under ``torch.no_grad()``, or train one
    of the other transitions.

    Args:
        step_size: ε of the leapfrog steps: a positive number, a tensor that broadcasts over the latents (one number per
            dimension is a diagonal mass matrix), or a callable from the move 0..T−2 to one of these.
        num_leapfrogs: leapfrog steps of a move.
        model_gradient: with True, the log-joint may require grad, and its parameters get
            :math:`\sum_k c_k\,\partial_\theta\log p(x,z_k)` at the last states. For IWAE this is the self-normalised
            estimate of the posterior's expectation: by Fisher's identity, the gradient of log p(x) up to a bias of
            O(1/K). It is **not** the gradient of the expected bound. One more call of the log-joint.

    Raises:
        ValueError, TypeError: a step size that is not positive, or of another kind; no leapfrog steps.

    References: Neal (2001), Annealed Importance Sampling, arXiv:physics/9803008; Neal (2011), MCMC Using Hamiltonian
    Dynamics, arXiv:1206.1901; Wu, Burda, Salakhutdinov and Grosse (2017), On the Quantitative Analysis of Decoder-Based
    Generative Models, arXiv:1611.04273, for latent variable models.

    >>> import iwbounds as iw
    >>> _ = torch.manual_seed(0)
    >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> chain = iw.AnnealedProposal(q, HMC(0.5), num_steps=50)
    >>> iw.estimate(lambda z: -2 * (z - 1) ** 2, chain, num_samples=100).value.round(decimals=1)
    tensor([0.2000, 0.2000, 0.2000])
    """

    reparameterized = False

    def __init__(self, step_size: StepSize, num_leapfrogs: int = 3, model_gradient: bool = False) -> None:
        check_positive("step_size", step_size)
        self.step_size = step_size
        self.num_leapfrogs = check_whole_number("num_leapfrogs", num_leapfrogs, 1, "Make at least 1 leapfrog step.")
        self.model_gradient = model_gradient

    def check_betas(self, betas: Tensor) -> None:
        """Raise ValueError unless β goes up from 0 to 1: else the weights are those of other ends."""
        ends = bool((betas[0] == 0).all()) and bool((betas[-1] == 1).all())
        if not ends or not bool((betas.diff(dim=0) > 0).all()):
            raise ValueError(
                "expected a schedule that increases from exactly 0 to exactly 1, as the weights of annealed importance "
                f"sampling are those of its ends; got {betas.flatten()[:3].tolist()}, …, {betas.flatten()[-1].item()}."
            )

    def forward(self, bridge: Bridge, num_samples: int) -> Path:
        # Walked, not listed: a state is dropped when the next one is there, which is what keeps the memory at one step.
        end = _last(self.walk(bridge, num_samples))
        z, log_w = end.state.z, end.log_w
        # Values carry no graph; what may is the model's density at the last states, held fixed.
        zero = torch.zeros_like(log_w)
        if not (self.model_gradient and torch.is_grad_enabled()):
            return Path(z, log_w, zero, zero)
        # Once more in the graph of the model: the walk itself kept none.
        log_p, _ = bridge.log_densities(z)
        return Path(z, log_w, gradient_only(log_p), zero)

    def walk(
        self, bridge: Bridge, num_samples: int, move: Callable[[Chain, int], Chain] | None = None
    ) -> Iterator[Moved]:
        """The states of ``num_samples`` chains with their log-weights, one after the other."""
        start = bridge.start(num_samples)
        if torch.is_grad_enabled():
            self._refuse_gradients(bridge, start)
        return annealed(*self._parts(bridge, start.detach(), move))

    def backward(self, bridge: Bridge, z: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._refuse_gradients(bridge, z)
        # With fresh momenta a move is reversible: it is its own reversal.
        return _last(annealed_back(*self._parts(bridge, z.detach(), None))).log_w

    def _parts(
        self, bridge: Bridge, z: Tensor, move: Callable[[Chain, int], Chain] | None
    ) -> tuple[Chain, list[Tensor], Callable[[Chain], Tensor], Callable[[Chain, int], Chain]]:
        start = self.chain_at(bridge, z)
        # Differences in the schedule's own precision: those of rounded β would not add up to 1.
        increments = list(bridge.betas.diff(dim=0).to(start.values.log_p))
        return start, increments, _log_ratio, move or (lambda chain, step: self.move(bridge, chain, step))

    @torch.no_grad()
    def chain_at(self, bridge: Bridge, z: Tensor) -> Chain:
        """Chains at z."""
        values = bridge.at(z).fixed
        return Chain(z, values, torch.ones_like(values.log_p))

    @torch.no_grad()
    def move(self, bridge: Bridge, chain: Chain, step: int, factor: Tensor | None = None) -> Chain:
        """Move ``step`` of 0..T−2, invariant under β_{step + 1}; its step size times ``factor``, ``(*batch)``."""
        beta = bridge.betas[step + 1].to(chain.z)
        log_density = chain.values.log_p
        wide = over_event(beta, chain.z, log_density) if beta.ndim else beta
        size = bridge.size(self.step_size, step, chain.z)
        # Trajectories of one length come back to where they started wherever the density is nearly Gaussian; lengths
        # that are drawn apart from the state leave π invariant, and none of them is bad for every dimension.
        factor = (0.5 + 0.5 * uniform_like(log_density)) * (1.0 if factor is None else factor)
        size = size * over_event(factor, chain.z, log_density)
        # A fresh momentum leaves N(0, I) invariant, and with it the move is reversible without a sign.
        before = standard_normal_like(chain.z)
        end, after = self._leapfrog(bridge, chain, before, size, wide)
        gained = _log_density(end.fixed, beta) - _log_density(chain.values, beta)
        log_rate = gained - 0.5 * sum_event(after.square() - before.square(), log_density)
        # A trajectory that leaves the support, or all numbers, ends in −inf or NaN: neither is below log u.
        accepted = uniform_like(log_rate).log() < log_rate
        rate = log_rate.clamp_max(0.0).exp().nan_to_num(0.0)
        return Chain(*_chosen(accepted, end, chain), rate)

    def _leapfrog(self, bridge: Bridge, chain: Chain, v: Tensor, size: Tensor, beta: Tensor) -> tuple[State, Tensor]:
        end = State(chain.z, chain.values, chain.values)
        v = v + size / 2 * chain.values.slope(beta)
        for leap in range(self.num_leapfrogs):
            end = bridge.at(end.z + size * v)
            # Two half steps of the momentum in one, but for the last.
            v = v + (size if leap + 1 < self.num_leapfrogs else size / 2) * end.fixed.slope(beta)
        return end, v

    def _refuse_gradients(self, bridge: Bridge, z: Tensor) -> None:
        # Whether a log-joint has parameters shows in its graph alone, as it closes over them.
        copy = z.detach().requires_grad_()
        log_p, log_q = bridge.log_densities(copy)
        size = bridge.size(self.step_size, 0, copy)
        of_proposal = z.requires_grad or size.requires_grad or bridge.betas.requires_grad
        where = [
            name
            for name, there in (
                ("the proposal", of_proposal or has_parameters(log_q, copy)),
                ("log_joint", not self.model_gradient and has_parameters(log_p, copy)),
            )
            if there
        ]
        if where:
            raise ValueError(
                f"HMC's accept steps have no derivative, but {' and '.join(where)} requires grad. Evaluate under "
                "torch.no_grad(); train with iwbounds.ULA, MCD, CMCD or DAIS; or, for the model alone and a gradient "
                "at the last state that is not the bound's, say HMC(…, model_gradient=True)."
            )

    def __repr__(self) -> str:
        return f"HMC(num_leapfrogs={self.num_leapfrogs})"


def _log_ratio(chain: Chain) -> Tensor:
    return chain.values.log_p - chain.values.log_q


def _log_density(values: Values, beta: Tensor) -> Tensor:
    """log π_β."""
    return beta * values.log_p + (1 - beta) * values.log_q


def _chosen(accepted: Tensor, new: State, old: Chain) -> tuple[Tensor, Values]:
    """The new state where it is accepted, the old one elsewhere; with what is known of them."""
    # One decision per chain and datum, for all dimensions of the event together.
    wide = over_event(accepted, old.z, accepted)

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(wide if a.ndim == old.z.ndim else accepted, a, b)

    a, b = new.fixed, old.values
    values = Values(
        pick(a.log_p, b.log_p), pick(a.log_q, b.log_q), pick(a.slope_p, b.slope_p), pick(a.slope_q, b.slope_q)
    )
    return pick(new.z, old.z), values


def _last(walk: Iterator[Moved]) -> Moved:
    """Its end, none of the states before being kept."""
    # Unpacking (*_, end) would keep all of them.
    (end,) = deque(walk, maxlen=1)
    return end
