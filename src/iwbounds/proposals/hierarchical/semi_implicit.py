r"""Semi-implicit proposals (SIVI): given its mixing samples, an ordinary mixture over z alone.

Given the *set* :math:`\psi_{0..K}` of draws of q(ψ), one of which (which one is forgotten) made z,

.. math:: z \sim \frac1{K+1}\sum_{k=0}^K q(z\mid\psi_k).

So the mixing samples are random parameters of a proper proposal over z, like the output of an encoder: their own
density is never needed (an implicit noise network will do), and every gradient estimator reaches the network that made
them through the mixture's explicit parameters. They travel with z, as a part of the latents that carries parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import Latents
from iwbounds.proposals.base import LogJoint, Proposal, first_part
from iwbounds.proposals.hierarchical.model import TwoLevelModel, as_latent, from_latent

__all__ = ["Mixtures", "SharedMixtures"]


@dataclass(frozen=True)
class Mixtures:
    """Mixtures over z whose K + 1 components are drawn anew for every sample: latents (z, ψ_0..ψ_K)."""

    model: TwoLevelModel
    num_aux: int

    def extend(self, log_joint: LogJoint, name: str) -> tuple[LogJoint, Proposal]:
        """The user's log-joint of z, and the mixtures as a proposal."""
        mixing = self.model.mixing
        proposal = Proposal(
            self.sample,
            self.log_prob,
            (self.model.z_has_path, None),
            name,
            self.model.samples_per_call(self.num_aux + 1),
            independent=mixing.independent,
            batch_shape=mixing.batch_shape,
            visible=first_part,
        )
        return lambda latents: log_joint(first_part(latents)), proposal

    def sample(self, sample_shape: tuple[int]) -> tuple[Tensor, Tensor]:
        """z of the first component, and all components."""
        # All K + 1 at once, of which the first makes z: given the set, z is a draw of the mixture (any position would
        # do).
        psi = self.model.draw_mixing(self.num_aux + 1, sample_shape[0])
        return self.model.draw_z(psi[0]), as_latent(psi)

    def log_prob(self, latents: Latents) -> tuple[Tensor, None]:
        """U_K: log mean over the mixture's components of q(z | ψ_k)."""
        z, psi = latents
        # None for ψ, which carries parameters and has no density of its own here.
        return IWAE()(self.model.log_weights(z, from_latent(psi))), None


@dataclass(frozen=True)
class SharedMixtures:
    r"""Mixtures of z's own component and of K that all samples share: latents (z, ψ_0, ψ_1..ψ_K).

    Each weight is still unbiased, so a lower bound stays one. But a shared component enters every weight: the samples
    depend on each other, and no score term may be dropped or replaced. What is left is the total derivative.
    """

    model: TwoLevelModel
    num_aux: int

    def extend(self, log_joint: LogJoint, name: str) -> tuple[LogJoint, Proposal]:
        """The user's log-joint of z, and the mixtures as a proposal of dependent samples, drawn in one call."""
        proposal = Proposal(
            self.sample,
            self.log_prob,
            (True, None, None),
            name,
            independent=False,
            batch_shape=self.model.mixing.batch_shape,
            visible=first_part,
        )
        return lambda latents: log_joint(first_part(latents)), proposal

    def sample(self, sample_shape: tuple[int]) -> tuple[Tensor, Tensor, Tensor]:
        """z, its own component, and the shared ones: one copy of them, which is repeated along the sample axis."""
        (count,) = sample_shape
        psi = self.model.draw_mixing(1, count + self.num_aux)[0]
        own, shared = psi[:count], as_latent(psi[count:])
        return self.model.draw_z(own), own, shared.expand(count, *shared.shape)

    def log_prob(self, latents: Latents) -> tuple[Tensor, None, None]:
        """U_K; the shared components are evaluated once for all samples."""
        z, own, shared = latents
        # Each z has its own component, evaluated pairwise; the K shared ones meet all z at once, as an axis more.
        log_own = self.model.log_weights(z, own.unsqueeze(0))
        log_shared = self.model.conditional(from_latent(shared[0])).log_prob(z.unsqueeze(1)).movedim(1, 0)
        return IWAE()(torch.cat([log_own, log_shared])), None, None
