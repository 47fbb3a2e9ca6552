r"""SIVI's extended view: given its mixing samples, an ordinary mixture over z alone.

Given the *set* :math:`\psi_{0..K}` of draws of q(ψ), one of which (which one is forgotten) made z,

.. math:: z \sim \frac1{K+1}\sum_{k=0}^K q(z\mid\psi_k).

So the mixing samples are random parameters of a proper proposal over z, like the output of an encoder: their own
density is never needed (an implicit noise network will do), and every gradient estimator reaches the network that made
them through the mixture's explicit parameters. They are kept here, and the latents carry an index that says whose they
are, so that the engine may re-evaluate any selection of samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iwbounds.bounds import IWAE
from iwbounds.proposals.base import LogJoint
from iwbounds.proposals.hierarchy import Hierarchy
from iwbounds.proposals.mixing import Density

__all__ = ["IndexedSamples", "Mixtures", "SharedMixtures", "batch_shape_of"]


class IndexedSamples:
    """Tensors ``(num_aux, num_samples, …)`` kept beside the latents, found again by an index ``(num, *batch)``."""

    def __init__(self, values: Tensor, batch_shape: tuple[int, ...]) -> None:
        count = values.shape[1]
        steps = torch.arange(count, device=values.device).reshape(count, *[1] * len(batch_shape))
        self._values = values
        self.index = steps.expand(count, *batch_shape)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Those of the samples in ``index``; all of them, without a copy, for the index made here."""
        if index is self.index:
            return self._values
        missing = self._values.ndim - 1 - index.ndim
        return torch.take_along_dim(self._values, index.reshape(1, *index.shape, *[1] * missing), dim=1)


def batch_shape_of(conditional: Density, z: Tensor) -> tuple[int, ...]:
    """Without its sample axis, the batch shape of a conditional from which ``z`` was drawn."""
    shape = getattr(conditional, "batch_shape", None)
    if shape is None:
        with torch.no_grad():
            shape = conditional.log_prob(z).shape
    return tuple(shape[1:])


class Mixtures:
    """Mixtures over z whose K + 1 components are drawn anew for every sample."""

    reparameterized: bool | tuple[bool, bool] | tuple[bool, None]

    def __init__(self, hierarchy: Hierarchy, num_aux: int) -> None:
        self._hierarchy, self._num_aux = hierarchy, num_aux
        # The engine may draw z without a graph (score-function estimators); the mixture's parameters need theirs.
        self._grad_enabled = torch.is_grad_enabled()
        self._psi: IndexedSamples | None = None
        self.reparameterized = hierarchy.z_live

    def log_joint(self, log_joint: LogJoint) -> LogJoint:
        """The user's log-joint, of z alone."""
        return lambda latents: log_joint(latents[0])

    def sample(self, sample_shape: tuple[int]) -> tuple[Tensor, Tensor]:
        """z and the index of its mixture."""
        with torch.set_grad_enabled(self._grad_enabled):
            own, components = self._draw_components(sample_shape[0])
        conditional = self._hierarchy.conditional(own)
        z = self._hierarchy.draw_from(conditional)
        self._psi = IndexedSamples(components, batch_shape_of(conditional, z))
        return z, self._psi.index

    def log_prob(self, latents: tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, None]:
        """log mean over the mixture's components of q(z | ψ_k)."""
        z, index = latents
        return IWAE()(self._hierarchy.log_weights(z, self._components(index)))

    def _draw_components(self, num_samples: int) -> tuple[Tensor, Tensor]:
        psi = self._hierarchy.draw_mixing(self._num_aux + 1, num_samples)
        return psi[0], psi

    def _components(self, index: Tensor) -> Tensor:
        if self._psi is None:
            raise ValueError(
                "a semi-implicit proposal evaluates only the samples that it drew, whose mixing samples it knows; got "
                "samples=. Pass num_samples instead."
            )
        return self._psi[index]


class SharedMixtures(Mixtures):
    r"""Mixtures of z's own component and of K that all samples share.

    Each weight is still unbiased, so a lower bound stays one. But a shared component enters every weight: the samples
    are no longer draws of the mixture given the other weights, so that no score term may be dropped or replaced. The
    gradient is the total derivative, always. Declaring the index a part that is not reparameterised, of constant
    density, asks the engine for exactly that: its default gradient is then the total derivative through z.
    """

    def __init__(self, hierarchy: Hierarchy, num_aux: int) -> None:
        super().__init__(hierarchy, num_aux)
        self.reparameterized = (True, None)

    def _draw_components(self, num_samples: int) -> tuple[Tensor, Tensor]:
        psi = self._hierarchy.draw_mixing(1, num_samples + self._num_aux)[0]
        self._shared = psi[num_samples:]
        return psi[:num_samples], psi[:num_samples].unsqueeze(0)

    def log_prob(self, latents: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        z, index = latents
        own = self._hierarchy.log_weights(z, self._components(index))
        shared = self._hierarchy.conditional(self._shared).log_prob(z.unsqueeze(1)).movedim(1, 0)
        log_q = IWAE()(torch.cat([own, shared]))
        return log_q, None
