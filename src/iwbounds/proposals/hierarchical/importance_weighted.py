r"""Proposals with a reverse model (HVM, IWHVI), or a score for ψ: an ordinary proposal over s = (z, ψ_0, …, ψ_K).

.. math::
    P(s) = p(x, z)\prod_{k=0}^K \tau(\psi_k\mid z), \qquad
    Q(s) = \underbrace{\frac1{K+1}\sum_{k=0}^K e^{v_k}}_{\exp U_K} \prod_{k=0}^K\tau(\psi_k\mid z), \qquad
    v_k = \log\frac{q(\psi_k)\,q(z\mid\psi_k)}{\tau(\psi_k\mid z)}

Q is the density of s with the position of z's own ψ forgotten, and W = P/Q = p(x, z)/exp U_K. The product of the τ is
in both: it is added as a number that is zero and whose gradient is the product's, because two sums over hundreds of
auxiliary log-densities would leave nothing of a float32 difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import Latents
from iwbounds.proposals.base import LogJoint, Proposal, first_part
from iwbounds.proposals.graph import gradient_only
from iwbounds.proposals.hierarchical.model import LogDensities, TwoLevelModel, as_latent, from_latent

__all__ = ["ImportanceWeighted", "add_gradient_only", "draw_trained_pair"]


def add_gradient_only(log_p: object, term: Tensor) -> Tensor:
    """``log_p`` plus a term of value zero; what is of another shape goes on as it is, for the engine to refuse."""
    if not isinstance(log_p, Tensor) or log_p.shape != term.shape or not log_p.is_floating_point():
        return log_p  # type: ignore[return-value]
    return log_p + term.to(log_p.dtype)


def draw_trained_pair(model: TwoLevelModel, num_samples: int) -> tuple[Tensor, Tensor]:
    """z and its own ψ.

    Where mixing and conditional have no parameters, only the reverse model is trained. z is then made to require grad,
    since the engine would take samples without a graph for a path that is missing.
    """
    z, own = model.draw_pair(num_samples)
    # A leaf that nothing asks the gradient of: its own is computed and dropped, the reverse model's is what is wanted.
    if torch.is_grad_enabled() and model.z_has_path and z.is_leaf:
        z = z.requires_grad_()
    return z, own


@dataclass(frozen=True)
class ImportanceWeighted:
    """Samples and densities of s, as latents (z, ψ_0..ψ_K), z's own ψ at position 0."""

    model: TwoLevelModel
    num_aux: int

    @property
    def reparameterized(self) -> bool | tuple[bool, bool]:
        """Of z and ψ."""
        z, psi = self.model.z_has_path, self.model.psi_has_path
        # One boolean where both agree: the engine then asks for one log-density, not for two.
        return z if z == psi else (z, psi)

    def extend(self, log_joint: LogJoint, name: str) -> tuple[LogJoint, Proposal]:
        """log P and the proposal Q."""
        mixing = self.model.mixing
        proposal = Proposal(
            self.sample,
            self.log_prob,
            self.reparameterized,
            name,
            self.model.samples_per_call(self.num_aux + 1),
            independent=mixing.independent,
            fixed_support=mixing.fixed_support,
            joint_has_parameters=True,  # those of τ, be it the mixing distribution itself
            batch_shape=mixing.batch_shape,
            visible=first_part,
        )
        return self.log_joint(log_joint), proposal

    def log_joint(self, log_joint: LogJoint) -> LogJoint:
        """log P: the user's log-joint of z, and Σ log τ(ψ_k | z)."""

        def extended(latents: Latents) -> Tensor:
            z, psi = latents
            return add_gradient_only(log_joint(z), gradient_only(self.model.log_target(z, from_latent(psi)).sum(0)))

        return extended

    def sample(self, sample_shape: tuple[int]) -> tuple[Tensor, Tensor]:
        """z and its K + 1 auxiliary variables."""
        z, own = draw_trained_pair(self.model, sample_shape[0])
        psi = [own.unsqueeze(0)]
        if self.num_aux:
            # From τ(ψ | z), with z in the graph: the path φ → z → ψ_k belongs to the gradient of the extended latent.
            psi.append(self.model.draw_auxiliary(z, self.num_aux))
        return z, as_latent(torch.cat(psi))

    def log_prob(self, latents: Latents) -> Tensor | tuple[Tensor, Tensor]:
        """log Q; in mixed cases, apart: the rest, and the density of the draws that carry no path."""
        z, psi = latents
        densities = self.model.log_densities(z, from_latent(psi), with_mixing=True)
        # exp U_K times the product of the τ, without the position of z's own ψ: symmetric in ψ_0..ψ_K.
        log_q = IWAE()(densities.log_weights) + gradient_only(densities.log_target.sum(0))
        if isinstance(self.reparameterized, bool):
            return log_q
        # The two add up to log Q. `drawn` is 0, with the score of what has no path; the rest follows the path.
        drawn = gradient_only(self._log_prob_without_path(densities))
        return (log_q - drawn, drawn) if self.model.z_has_path else (drawn, log_q - drawn)

    def _log_prob_without_path(self, densities: LogDensities) -> Tensor:
        """Of the part without a path, as it was drawn: ψ_0 ~ q and ψ_k ~ τ, or z ~ q(· | ψ_0)."""
        if not self.model.z_has_path:
            return densities.conditional[0]
        assert densities.mixing is not None
        return densities.mixing[0] + densities.log_target[1:].sum(0)
