r"""The two-level model behind a hierarchical proposal: drawing its variables, evaluating its three densities.

Auxiliary variables are stacked in front, ``(num_aux, num_samples, *batch, *event)``, so that a reverse model, which is
a distribution over ψ for each z, draws and evaluates them with one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from iwbounds.proposals.base import Proposal
from iwbounds.proposals.mixing import Density, draw

__all__ = ["Hierarchy", "LogDensities"]


class LogDensities(NamedTuple):
    """The densities of ``num_aux`` auxiliary variables for each z, each ``(num_aux, num_samples, *batch)`` nats."""

    mixing: Tensor | None
    """log q(ψ_k); None where it cancels (no reverse model) and is not asked for."""
    conditional: Tensor
    """log q(z | ψ_k)."""
    reverse: Tensor | None
    """log τ(ψ_k | z); None where τ is the mixing distribution."""

    @property
    def log_weights(self) -> Tensor:
        """v_k = log q(ψ_k) + log q(z | ψ_k) − log τ(ψ_k | z)."""
        if self.mixing is None or self.reverse is None:
            return self.conditional
        return self.mixing + self.conditional - self.reverse


@dataclass(frozen=True)
class Hierarchy:
    """q(ψ), q(z | ψ), τ(ψ | z), and which of z and ψ carry a path to their parameters."""

    mixing: Proposal
    conditional: Callable[[Tensor], Density]
    reverse: Callable[[Tensor], Density] | None
    z_live: bool
    psi_live: bool

    def draw_mixing(self, num_aux: int, num_samples: int) -> Tensor:
        """``(num_aux, num_samples, *batch, *event)`` independent draws of ψ."""
        psi: object = self.mixing.sample((num_aux * num_samples,))
        if not isinstance(psi, Tensor) or psi.ndim == 0 or psi.shape[0] != num_aux * num_samples:
            found = tuple(psi.shape) if isinstance(psi, Tensor) else type(psi).__name__
            raise ValueError(
                f"expected mixing to return one tensor of {num_aux * num_samples} samples along its first axis; got "
                f"{found}. It must honour the sample_shape it is given."
            )
        return (psi if self.psi_live else psi.detach()).reshape(num_aux, num_samples, *psi.shape[1:])

    def draw_from(self, conditional: Density) -> Tensor:
        """One z for each ψ that ``conditional`` was made of."""
        return draw(conditional, (), self.z_live, "conditional")

    def draw_pair(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """z and its own ψ, ``num_samples`` of each."""
        psi = self.draw_mixing(1, num_samples)[0]
        return self.draw_from(self.conditional(psi)), psi

    def draw_auxiliary(self, z: Tensor, num_aux: int) -> Tensor:
        """``num_aux`` draws from τ(ψ | z), or from the mixing distribution without a reverse model."""
        if self.reverse is None:
            return self.draw_mixing(num_aux, z.shape[0])
        return draw(self.reverse(z), (num_aux,), self.psi_live, "reverse")

    def log_densities(self, z: Tensor, psi: Tensor, with_mixing: bool = False) -> LogDensities:
        """The densities of ψ ``(num_aux, num_samples, …)`` with z ``(num_samples, …)``.

        Raises:
            ValueError: they differ in shape, or ψ lacks the batch of z.
        """
        conditional = self.conditional(psi).log_prob(z.expand(psi.shape[0], *z.shape))
        if psi.shape[: conditional.ndim] != conditional.shape:
            raise ValueError(
                f"expected psi of shape (num_aux, num_samples, *batch, *event) with the leading shape of the "
                f"conditional's log_prob, {tuple(conditional.shape)}; got {tuple(psi.shape)}. Draw one psi per datum "
                "(mixing.expand(batch_shape)), and sum log_prob over the event dimensions (Independent)."
            )
        reverse = None if self.reverse is None else self.reverse(z).log_prob(psi)
        mixing = self.mixing.log_prob(psi) if with_mixing or reverse is not None else None
        _check_shape("mixing", mixing, conditional)
        _check_shape("reverse", reverse, conditional)
        return LogDensities(mixing, conditional, reverse)

    def log_weights(self, z: Tensor, psi: Tensor) -> Tensor:
        """v, ``(num_aux, num_samples, *batch)``."""
        return self.log_densities(z, psi).log_weights

    def with_auxiliary(self, z: Tensor, psi: Tensor | None, num_aux: int) -> Tensor:
        """v of z's own ψ (where it is given) and of ``num_aux`` fresh ones."""
        drawn = [] if psi is None else [psi.unsqueeze(0)]
        if num_aux:
            drawn.append(self.draw_auxiliary(z, num_aux))
        return self.log_weights(z, torch.cat(drawn))


def _check_shape(name: str, found: Tensor | None, conditional: Tensor) -> None:
    if found is not None and found.shape != conditional.shape:
        raise ValueError(
            f"expected the {name}'s log_prob to have the conditional's shape {tuple(conditional.shape)} = (num_aux, "
            f"num_samples, *batch); got {tuple(found.shape)}. Give it the batch shape of z, and sum over its event "
            "dimensions (Independent)."
        )
