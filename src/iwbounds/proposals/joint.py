r"""The extended view of a hierarchical proposal: s = (z, ψ_0, …, ψ_K), with a density that can be evaluated.

.. math::
    P(s) = p(x, z)\prod_{k=0}^K \tau(\psi_k\mid z), \qquad
    Q(s) = \underbrace{\frac1{K+1}\sum_{k=0}^K e^{v_k}}_{\exp U_K} \prod_{k=0}^K\tau(\psi_k\mid z), \qquad
    v_k = \log\frac{q(\psi_k)\,q(z\mid\psi_k)}{\tau(\psi_k\mid z)}

Q is the density of s with the position of z's own ψ forgotten, and W = P/Q = p(x, z)/exp U_K. The product of the τ is
in both: it is added as a number that is zero and whose gradient is the product's, because two sums over hundreds of
auxiliary log-densities would leave nothing of a float32 difference.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from iwbounds.bounds import IWAE
from iwbounds.checks import Latents
from iwbounds.proposals.base import LogJoint
from iwbounds.proposals.hierarchy import Hierarchy, LogDensities
from iwbounds.proposals.mixtures import batch_shape_of

__all__ = ["Joint", "add_neutral", "neutral"]


def neutral(x: Tensor) -> Tensor:
    """Zero, with the gradient of ``x``; without one where ``x`` is infinite."""
    return (x - x.detach()).nan_to_num(0.0)


def add_neutral(log_p: object, term: Tensor) -> Tensor:
    """``log_p`` plus a term of value zero; what is of another shape goes on as it is, for the engine to refuse."""
    if not isinstance(log_p, Tensor) or log_p.shape != term.shape or not log_p.is_floating_point():
        return log_p  # type: ignore[return-value]
    return log_p + term.to(log_p.dtype)


class Joint:
    """Samples and densities of s.

    The latents are z and ψ. As all latents, ψ has its sample and batch axes first: ``(num_samples, *batch, K + 1,
    *event)``, z's own at position 0.
    """

    def __init__(self, hierarchy: Hierarchy, num_aux: int) -> None:
        self._hierarchy, self._num_aux = hierarchy, num_aux
        z_live, psi_live = hierarchy.z_live, hierarchy.psi_live
        self.reparameterized = z_live if z_live == psi_live else (z_live, psi_live)

    def log_joint(self, log_joint: LogJoint) -> LogJoint:
        """log P: the user's log-joint of z, and Σ log τ(ψ_k | z)."""

        def extended(latents: Latents) -> Tensor:
            z, psi = latents
            return add_neutral(log_joint(z), neutral(self._log_target(z, self._aux_first(psi))))

        return extended

    def sample(self, sample_shape: tuple[int]) -> Latents:
        """z and its K + 1 auxiliary variables."""
        z, own, _ = self._draw_pair(sample_shape[0])
        psi = [own.unsqueeze(0)]
        if self._num_aux:
            psi.append(self._hierarchy.draw_auxiliary(z, self._num_aux))
        return z, self._aux_last(torch.cat(psi))

    def log_prob(self, latents: Latents) -> Tensor | tuple[Tensor, Tensor]:
        """log Q; in mixed cases, apart: the rest, and the density of the draws that carry no path."""
        z, psi = latents
        densities = self._hierarchy.log_densities(z, self._aux_first(psi), with_mixing=True)
        log_q = IWAE()(densities.log_weights) + neutral(_target_of(densities).sum(0))
        if isinstance(self.reparameterized, bool):
            return log_q
        drawn = neutral(self._density_of_draws(densities))
        return (log_q - drawn, drawn) if self._hierarchy.z_live else (drawn, log_q - drawn)

    def _draw_pair(self, num_samples: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """z, its own ψ, and the batch shape."""
        own = self._hierarchy.draw_mixing(1, num_samples)[0]
        conditional = self._hierarchy.conditional(own)
        z = self._hierarchy.draw_from(conditional)
        if torch.is_grad_enabled() and self._hierarchy.z_live and z.is_leaf:
            # Of a proposal without parameters of its own only the reverse model is trained: the engine then finds no
            # path to the log-proposal's parameters and has to be told that none is missing.
            z = z.requires_grad_()
        batch_shape = batch_shape_of(conditional, z)
        self._event_ndim = own.ndim - 1 - len(batch_shape)
        return z, own, batch_shape

    @cached_property
    def _event_ndim(self) -> int:
        """Event axes of ψ, where they are asked for before anything was drawn (``samples=``)."""
        with torch.no_grad():
            psi = self._hierarchy.mixing.sample((1,))
            return int(psi.ndim - self._hierarchy.mixing.log_prob(psi).ndim)

    def _aux_last(self, psi: Tensor) -> Tensor:
        """``(num_aux, num_samples, *batch, *event)`` as a latent."""
        return psi.movedim(0, psi.ndim - 1 - self._event_ndim)

    def _aux_first(self, psi: Tensor) -> Tensor:
        """The inverse of :meth:`_aux_last`."""
        return psi.movedim(psi.ndim - 1 - self._event_ndim, 0)

    def _log_target(self, z: Tensor, psi: Tensor) -> Tensor:
        """Σ log τ(ψ_k | z)."""
        reverse = self._hierarchy.reverse
        density = self._hierarchy.mixing if reverse is None else reverse(z)
        return density.log_prob(psi).sum(0)  # type: ignore[no-any-return]

    def _density_of_draws(self, densities: LogDensities) -> Tensor:
        """As they were drawn, ψ_0 ~ q, z ~ q(· | ψ_0), ψ_k ~ τ: of ψ where z is live, of z where ψ is."""
        if not self._hierarchy.z_live:
            return densities.conditional[0]
        assert densities.mixing is not None
        return densities.mixing[0] + _target_of(densities)[1:].sum(0)


def _target_of(densities: LogDensities) -> Tensor:
    target = densities.mixing if densities.reverse is None else densities.reverse
    assert target is not None
    return target
