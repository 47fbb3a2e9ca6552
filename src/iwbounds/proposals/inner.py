r"""The inner doubly reparameterised rule: a low-variance gradient for the reverse model's parameters η (DIWHVI).

With the outer bound's gradient c and curvature h at the weight of one sample, and :math:`\tilde v =
\operatorname{softmax} (v)` over k = 0..K, the bound depends on v_k with gradient :math:`-c\,\tilde v_k` and curvature
:math:`h\,\tilde v_k^2 - c\,(\tilde v_k - \tilde v_k^2)`. The c − h rule for each ψ_k, k ≥ 1, then gives

.. math:: g_\eta = c\,\tilde v_0\,\partial_\eta\log\tau(\psi_0\mid z)
          - (c + h)\sum_{k\ge1}\tilde v_k^2\,\partial_\psi v_k\,\partial_\eta\psi_k .

The outer estimator of the extended latent leaves :math:`c\sum_{k\ge0}\partial_\eta\log\tau(\psi_k\mid z)` instead:
where τ fits, :math:`(K+1)^3` times the variance of what is left here.

Only η is treated so; whatever reaches z through ψ_k keeps the outer rule. So ψ_k is drawn once and split in two tensors
of equal value, one that carries the path to η and one that carries the path to z. From the outer model and path
coefficients a = c and b = c − h, c + h is 2a − b. A latent receives multiples of b from the engine, an explicit
parameter of the log-joint multiples of a: the path to η is handed over both ways. With a score coefficient s the terms
add up to the total derivative again where a = b = −s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iwbounds.bounds import IWAE
from iwbounds.checks import Latents
from iwbounds.logspace import normalized_weights
from iwbounds.proposals.base import LogJoint
from iwbounds.proposals.hierarchy import Hierarchy
from iwbounds.proposals.joint import Joint, add_neutral, neutral
from iwbounds.proposals.mixing import draw
from iwbounds.proposals.mixtures import IndexedSamples

__all__ = ["InnerJoint"]


class SplitLatents(NamedTuple):
    """The extended latent with what the inner rule needs; sample and batch axes first."""

    z: Tensor
    psi: Tensor
    """ψ_0..ψ_K, with the path to z."""
    auxiliary: Tensor
    """ψ_1..ψ_K once more, with the path to η."""
    which: Tensor
    """Which draw it is, to find the path to η that the engine does not see."""
    own_weight: Tensor
    """ṽ_0, detached."""
    slope: Tensor
    """ṽ_k ∂v_k/∂ψ_k for k ≥ 1, detached."""
    damping: Tensor
    """ṽ_k for k ≥ 1, in the shape of ``slope``, detached."""


class _SplitPaths(torch.autograd.Function):
    """``psi``, a function of ``z_copy`` and of η, twice: with the path to η alone, and with the path to ``z`` alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, psi: Tensor, z_copy: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        ctx.save_for_backward(psi, z_copy)
        return psi.view_as(psi), psi.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_parameters: Tensor, to_z: Tensor) -> tuple[Tensor | None, Tensor, None]:
        psi, z_copy = ctx.saved_tensors
        grad_z = None
        if ctx.needs_input_grad[0]:
            (grad_z,) = torch.autograd.grad(psi, z_copy, to_z, retain_graph=True, allow_unused=True)
        return grad_z, to_parameters, None


class InnerJoint(Joint):
    """The extended view whose reverse model is trained by the inner rule, where the outer one is pathwise."""

    def __init__(self, hierarchy: Hierarchy, num_aux: int) -> None:
        super().__init__(hierarchy, num_aux)
        self._to_parameters: IndexedSamples | None = None

    def sample(self, sample_shape: tuple[int]) -> Latents:
        # Without a graph (score-function estimators, evaluation) there is nothing to split; a tracer cannot follow it.
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().sample(sample_shape)
        z, own, batch_shape = self._draw_pair(sample_shape[0])
        to_parameters, to_z = self._split(z)
        psi = torch.cat([own.unsqueeze(0), to_z])
        self._to_parameters = IndexedSamples(to_parameters, batch_shape)
        return SplitLatents(
            z,
            self._aux_last(psi),
            self._aux_last(to_parameters),
            self._to_parameters.index,
            *self._weights_and_slopes(z, psi),
        )

    def log_joint(self, log_joint: LogJoint) -> LogJoint:
        plain = super().log_joint(log_joint)

        def extended(latents: Latents) -> Tensor:
            if not isinstance(latents, SplitLatents):
                return plain(latents)
            log_p = log_joint(latents.z)
            squared = _inner(latents.damping * latents.slope, self._path_to_parameters(latents), like=latents.which)
            return add_neutral(log_p, self._own_term(latents) - 2 * squared)

        return extended

    def log_prob(self, latents: Latents) -> Tensor | tuple[Tensor, Tensor]:
        if not isinstance(latents, SplitLatents):
            return super().log_prob(latents)
        log_q = IWAE()(self._hierarchy.log_weights(latents.z, self._aux_first(latents.psi)))
        squared = latents.damping * latents.slope
        path = _inner(latents.slope - squared, self._path_to_parameters(latents), like=latents.which)
        again = _inner(squared, neutral(latents.auxiliary), like=latents.which)
        return log_q + self._own_term(latents) + path - again

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        assert self._hierarchy.reverse is not None
        z_copy = z.detach().requires_grad_(z.is_floating_point())
        psi = draw(self._hierarchy.reverse(z_copy), (self._num_aux,), True, "reverse")
        to_parameters, to_z = _SplitPaths.apply(z, psi, z_copy)  # type: ignore[no-untyped-call]
        return to_parameters, to_z

    def _weights_and_slopes(self, z: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation beyond the engine's, because the terms of all samples are made of its results."""
        leaf = psi.detach().requires_grad_()
        log_v = self._hierarchy.log_weights(z.detach(), leaf)
        weights = normalized_weights(log_v.detach())
        (slope,) = torch.autograd.grad(log_v, leaf, weights.to(log_v.dtype))
        damping = weights.reshape(*weights.shape, *[1] * self._event_ndim).expand_as(slope).to(slope.dtype)
        return weights[0], self._aux_last(slope[1:]), self._aux_last(damping[1:])

    def _path_to_parameters(self, latents: SplitLatents) -> Tensor:
        assert self._to_parameters is not None
        return neutral(self._aux_last(self._to_parameters[latents.which]))

    def _own_term(self, latents: SplitLatents) -> Tensor:
        """ṽ_0 log τ(ψ_0 | z) as a function of η alone."""
        assert self._hierarchy.reverse is not None
        own = self._aux_first(latents.psi.detach())[0]
        return latents.own_weight * neutral(self._hierarchy.reverse(latents.z.detach()).log_prob(own))


def _inner(slope: Tensor, path: Tensor, like: Tensor) -> Tensor:
    """Inner products over all axes but the samples' and the batch's."""
    return (slope * path).flatten(like.ndim).sum(-1)
