r"""A pilot run that sets step sizes and schedule of annealed importance sampling, which are then frozen.

Weights are unbiased only where nothing that they depend on was chosen by looking at them: the pilot's chains are thrown
away.

* **Step sizes**, one for each move and datum: after each move, log ε rises where more of the pilot's proposals were
  accepted than wanted, and falls where fewer were.
* **Schedule**: an increment Δ leaves a conditional effective sample size of :math:`1 - \Delta^2\,
  \mathrm{Var}_\beta[\log p - \log q]` to second order. It is the same for all steps where
  :math:`\int\sqrt{\mathrm{Var}_\beta}\,d\beta` grows by the same amount in each: the pilot's spreads are summed up, and
  the sum is cut into T equal parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from iwbounds.diagnostics import effective_sample_size
from iwbounds.proposals.annealed.annealing import conditional_ess
from iwbounds.proposals.annealed.bridge import Bridge, over_event
from iwbounds.proposals.annealed.hmc import HMC, Chain

__all__ = ["AnnealingReport", "FrozenStepSizes", "even_schedule", "pilot", "report"]

_WARM_UP = 30
"""Moves at the first β before the chain sets out, so that its first step sizes fit."""
_WARM_UP_GAIN, _GAIN = 3.0, 1.0
"""Change of log ε for a rate of acceptance that is off by one, before the chain sets out and on its way."""


@dataclass(frozen=True, eq=False)
class FrozenStepSizes:
    """Step sizes of a pilot run: called with a move, what it was adapted to there."""

    table: Tensor
    """``(T − 1, …)``: one for each move; the rest broadcasts over the latents."""

    def __call__(self, step: int) -> Tensor:
        return self.table[min(step, len(self.table) - 1)]


class AnnealingReport(NamedTuple):
    """How a run of annealed importance sampling went."""

    log_weights: Tensor
    """``(K, *batch)``."""
    samples: Tensor
    """The last states, ``(K, *batch, *event)``."""
    betas: Tensor
    """``(T + 1,)`` or ``(T + 1, *batch)``."""
    acceptance: Tensor
    """Mean probability of acceptance of each move, ``(T − 1, *batch)``."""
    conditional_ess: Tensor
    """Of each increment, as a fraction of the chains, ``(T, *batch)``."""
    ess: Tensor
    """Of the final weights, ``(*batch)``, 1..K."""

    def __str__(self) -> str:
        rate, even = self.acceptance, self.conditional_ess
        return (
            f"{len(self.betas) - 1} steps, {self.log_weights.shape[0]} chains: acceptance {rate.mean():.2f} (least "
            f"{rate.min() if rate.numel() else 1.0:.2f}), conditional ESS {even.mean():.3f} (least {even.min():.3f}), "
            f"ESS {self.ess.mean():.1f} (least {self.ess.min():.1f})"
        )


@torch.no_grad()
def report(transition: HMC, bridge: Bridge, num_samples: int) -> AnnealingReport:
    """One run, with the acceptance and the conditional effective sample size of each of its steps."""
    acceptance, even, before = [], [], None
    for moved in transition.walk(bridge, num_samples):
        even.append(conditional_ess(torch.zeros_like(moved.log_w) if before is None else before, moved.log_increment))
        before = moved.log_w
        # No move leads to z_0.
        if moved.step:
            acceptance.append(moved.state.acceptance.mean(0))
    rates = torch.stack(acceptance) if acceptance else even[0].new_zeros((0, *even[0].shape))
    ess = effective_sample_size(moved.log_w)
    return AnnealingReport(moved.log_w, moved.state.z, bridge.betas, rates, torch.stack(even), ess)


@torch.no_grad()
def pilot(transition: HMC, bridge: Bridge, num_samples: int, target: float) -> tuple[FrozenStepSizes, Tensor]:
    """Step sizes for each move and datum, and √Var[log p − log q] at β_0..β_{T−1}, ``(T, *batch)``."""
    run = _Pilot(transition, bridge, target)
    spreads = [
        (moved.state.values.log_p - moved.state.values.log_q).std(0)
        for moved in transition.walk(bridge, num_samples, run.move)
    ]
    return FrozenStepSizes(torch.stack(run.sizes or [run.size_at_rest(bridge, num_samples)])), torch.stack(spreads)


def even_schedule(betas: Tensor, spreads: Tensor) -> Tensor:
    """T + 1 values of β between which ∫ √Var dβ is the same; one schedule for all data, from their mean spread."""
    # A chain that has left all numbers says nothing of the spread.
    flat = spreads.reshape(len(spreads), -1).double().nan_to_num(0.0, 0.0, 0.0).mean(1)
    # √Var is measured from a few chains: neighbours are averaged, and none may be close to zero.
    flat = torch.cat([flat, flat[-1:]])
    width = min(5, len(flat))
    padded = torch.cat([flat[:1].expand(width // 2), flat, flat[-1:].expand(width // 2)])
    smooth = padded.unfold(0, width, 1).mean(1)[: len(flat)]
    smooth = smooth.clamp_min(1e-3 * smooth.max().clamp_min(1e-12))
    knots = betas.double()
    # ∫ √Var dβ up to each knot, by trapezoids.
    lengths = torch.cat([knots.new_zeros(1), ((smooth[1:] + smooth[:-1]) / 2 * knots.diff()).cumsum(0)])
    wanted = torch.linspace(0.0, 1.0, len(knots), dtype=torch.float64) * lengths[-1]
    found = _interpolated(wanted, lengths, knots)
    # The ends exactly, which interpolation misses by rounding: the weights are those of these ends.
    found[0], found[-1] = 0.0, 1.0
    return found


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The piecewise linear function through (x, y), increasing, at ``at``."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])


class _Pilot:
    """Moves whose step sizes follow their acceptance."""

    def __init__(self, transition: HMC, bridge: Bridge, target: float) -> None:
        self._transition, self._bridge, self._target = transition, bridge, target
        self._log_factor: Tensor | None = None
        self.sizes: list[Tensor] = []

    def move(self, chain: Chain, step: int) -> Chain:
        if self._log_factor is None:
            self._log_factor = torch.zeros_like(chain.values.log_p[0])
            for _ in range(_WARM_UP):
                chain = self._adapted_move(chain, step, _WARM_UP_GAIN)
        factor = over_event(self._log_factor.exp(), chain.z, chain.values.log_p)
        # What this move was made with, before it says whether that was too much.
        self.sizes.append(self._bridge.size(self._transition.step_size, step, chain.z) * factor)
        return self._adapted_move(chain, step, _GAIN)

    def size_at_rest(self, bridge: Bridge, num_samples: int) -> Tensor:
        """What there is where no move is made."""
        return bridge.size(self._transition.step_size, 0, bridge.start(num_samples))

    def _adapted_move(self, chain: Chain, step: int, gain: float) -> Chain:
        assert self._log_factor is not None
        moved = self._transition.move(self._bridge, chain, step, self._log_factor.exp())
        self._log_factor = self._log_factor + gain * (moved.acceptance.mean(0) - self._target)
        return moved
