r"""The inner doubly reparameterised rule: a low-variance gradient for the reverse model's parameters η (DIWHVI).

With the outer bound's gradient c and curvature h at the weight of one sample, and :math:`\tilde v =
\operatorname{softmax} (v)` over k = 0..K, the bound depends on v_k with gradient :math:`-c\,\tilde v_k` and curvature
:math:`h\,\tilde v_k^2 - c\,(\tilde v_k - \tilde v_k^2)`. The c − h rule for each ψ_k, k ≥ 1, then gives

.. math:: g_\eta = c\,\tilde v_0\,\partial_\eta\log\tau(\psi_0\mid z)
          - (c + h)\sum_{k\ge1}\tilde v_k^2\,\partial_\psi v_k\,\partial_\eta\psi_k .

The outer estimator of the extended latent leaves :math:`c\sum_{k\ge0}\partial_\eta\log\tau(\psi_k\mid z)` instead:
where τ fits, :math:`(K+1)^3` times the variance of what is left here.

Only η is treated so; whatever reaches z through ψ_k keeps the outer rule. So ψ_k is drawn once and becomes two tensors
of equal value, one with the path to η and one with the path to z. From the outer model and path coefficients a = c and
b = c − h, c + h is 2a − b. A reparameterised part of the latents receives multiples of b from the engine, what enters
the log-joint as a parameter multiples of a: the path to η is handed over as both. With a score coefficient s the terms
are right where s is a multiple of a: they add up to the total derivative where a = b = −s.

Reference: Sobolev and Vetrov (2019), Importance Weighted Hierarchical Variational Inference, arXiv:1905.03290, for the
bound; Tucker et al. (2019), arXiv:1810.04152, for the rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge

from iwbounds.bounds.iwae import IWAE
from iwbounds.logspace.mean import normalized_weights
from iwbounds.proposals.base import LogJoint, Proposal
from iwbounds.proposals.graph import cut, gradient_only
from iwbounds.proposals.hierarchical.importance_weighted import (
    ImportanceWeighted,
    add_gradient_only,
    draw_trained_pair,
)
from iwbounds.proposals.hierarchical.model import TwoLevelModel, as_latent, draw, from_latent, outside_checkpoints

__all__ = ["InnerRule"]


class SplitLatents(NamedTuple):
    """s and what the inner rule needs of it. Sample and batch axes come first, auxiliary variables last."""

    z: Tensor
    psi: Tensor
    """ψ_0..ψ_K, with the path to z."""
    auxiliary: Tensor
    """ψ_1..ψ_K once more, with the path to η: a latent, for the path coefficient."""
    auxiliary_parameter: Tensor
    """The same, carried: for the coefficients of explicit parameters."""
    weights: Tensor
    """ṽ_0..ṽ_K, ``(num_samples, *batch, K + 1)``, detached."""
    slopes: Tensor
    """∂U_K/∂ψ_k = ṽ_k ∂v_k/∂ψ_k for k ≥ 1, detached."""


@dataclass(frozen=True)
class InnerRule:
    """s whose reverse model is trained by the inner rule, where the outer estimator is pathwise."""

    model: TwoLevelModel
    num_aux: int

    def extend(self, log_joint: LogJoint, name: str) -> tuple[LogJoint, Proposal]:
        """log P and the proposal Q, with terms of value zero that make the gradient of η the inner rule's."""
        extended, proposal = ImportanceWeighted(self.model, self.num_aux).extend(log_joint, name)
        # The rule evaluates its networks on every ψ while it draws: blocks of a size that their activations fit in.
        per_call = self.model.samples_per_call(self.num_aux + 1, fraction=16)
        # z, ψ and ψ for η are latents with a path; the second ψ for η, weights and slopes are carried along.
        flags = SplitLatents(True, True, True, None, None, None)  # type: ignore[arg-type]
        own = replace(
            proposal, sample=self.sample, log_prob=self.log_prob, reparameterized=flags, samples_per_call=per_call
        )
        return self.log_joint(log_joint, extended), own

    def sample(self, sample_shape: tuple[int]) -> SplitLatents:
        """z and its auxiliary variables, whose two paths are apart."""
        z, own = draw_trained_pair(self.model, sample_shape[0])
        to_parameters, to_z = self._draw_with_split_paths(z)
        psi = torch.cat([own.unsqueeze(0), to_z])
        weights, slopes = self._weights_and_slopes(z, psi)
        path = as_latent(to_parameters)
        return SplitLatents(z, as_latent(psi), path, path, as_latent(weights), as_latent(slopes[1:]))

    def log_joint(self, log_joint: LogJoint, outer: LogJoint) -> LogJoint:
        """log P; its coefficients are a for what is carried."""

        def extended(latents: SplitLatents) -> Tensor:
            if not latents.z.requires_grad:  # samples held fixed: no path that the rule could split
                return outer((latents.z, latents.psi))
            squared, path = _squared_slopes(latents), gradient_only(latents.auxiliary_parameter)
            # In the log-joint every carried term gets a = c: −2a of (c + h) = 2a − b; the +b comes from log Q, below.
            term = self._own_term(latents) - 2 * _inner_product(squared, path, latents)
            return add_gradient_only(log_joint(latents.z), term)

        return extended

    def log_prob(self, latents: SplitLatents) -> SplitLatents:
        """log Q in three parts, whose sum is U_K: −b is the coefficient of paths, s that of what is carried."""
        psi = from_latent(latents.psi)
        if not latents.z.requires_grad:
            densities = self.model.log_densities(latents.z, psi)
            target = gradient_only(densities.log_target)
            return _parts(IWAE()(densities.log_weights), target[0], target[1:].sum(0))
        squared, path = _squared_slopes(latents), gradient_only(latents.auxiliary_parameter)
        return _parts(
            IWAE()(self.model.log_weights(latents.z, psi)),
            # Carried in log Q, hence with the score coefficient: only where the estimator is the total derivative is s
            # not 0.
            self._own_term(latents) + _inner_product(latents.slopes - squared, path, latents),
            -_inner_product(squared, gradient_only(latents.auxiliary), latents),
        )

    def _draw_with_split_paths(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """ψ_1..ψ_K ~ τ(ψ | z) twice: with the path to η, and with the path to z."""
        assert self.model.reverse is not None
        # From the copy no gradient flows back to z; an edge of the graph stands for it, and keeps no values alive.
        copy = cut(z) if z.requires_grad else z
        # One draw: a second one, for the other path, would be other numbers.
        psi = draw(self.model.reverse(copy), (self.num_aux,), True, "reverse")
        edge = None if copy.grad_fn is None else GradientEdge(copy.grad_fn, copy.output_nr)
        stand_in = _StandIn.apply(psi)  # type: ignore[no-untyped-call]
        return _SplitPaths.apply(z, psi, (stand_in, edge))  # type: ignore[no-untyped-call, no-any-return]

    def _weights_and_slopes(self, z: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """One evaluation of v beyond the engine's, because the terms of all samples are made of its results."""
        # Numbers only: weights and slopes are coefficients, and the estimator is not differentiated.
        leaf = psi.detach().requires_grad_()
        # The graph lives for these lines alone: a checkpoint around the sampler must not put off any part of it.
        with torch.enable_grad(), outside_checkpoints():
            log_v = self.model.log_weights(z.detach(), leaf)
            weights = normalized_weights(log_v.detach())
            (slopes,) = torch.autograd.grad(log_v, leaf, weights.to(log_v.dtype))
        return weights, slopes

    def _own_term(self, latents: SplitLatents) -> Tensor:
        """ṽ_0 log τ(ψ_0 | z) as a function of η alone."""
        assert self.model.reverse is not None
        own = latents.psi.detach()[..., 0]
        return latents.weights[..., 0] * gradient_only(self.model.reverse(latents.z.detach()).log_prob(own))


def _parts(z: Tensor, psi: Tensor, auxiliary: Tensor) -> SplitLatents:
    return SplitLatents(z, psi, auxiliary, None, None, None)  # type: ignore[arg-type]


def _squared_slopes(latents: SplitLatents) -> Tensor:
    """ṽ_k² ∂v_k/∂ψ_k for k ≥ 1, in the shape of the slopes."""
    weights, slopes = latents.weights[..., 1:], latents.slopes
    event = (1,) * (slopes.ndim - weights.ndim)
    return weights.reshape(*weights.shape[:-1], *event, weights.shape[-1]).to(slopes.dtype) * slopes


def _inner_product(slopes: Tensor, path: Tensor, latents: SplitLatents) -> Tensor:
    """Over all axes but the samples' and the batch's."""
    return (slopes * path).flatten(latents.weights.ndim - 1).sum(-1)


class _StandIn(torch.autograd.Function):
    """One number in the shape of ``psi`` and at its place in the graph, so that the graph can be walked from it while
    the values of ``psi`` are forgotten."""

    @staticmethod
    def forward(_ctx: Any, psi: Tensor) -> Tensor:
        return psi.new_zeros(()).expand(psi.shape)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _SplitPaths(torch.autograd.Function):
    """``psi``, a function of a copy of z and of η, twice: with the path to η alone, and with that to ``z`` alone."""

    @staticmethod
    def forward(ctx: Any, _z: Tensor, psi: Tensor, ends: tuple[Tensor, GradientEdge | None]) -> tuple[Tensor, Tensor]:
        ctx.ends = ends  # in a tuple, so that autograd does not take the stand-in for an input
        return psi.view_as(psi), psi.view_as(psi)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_parameters: Tensor, to_z: Tensor) -> tuple[Tensor | None, Tensor, None]:
        stand_in, copy = ctx.ends
        grad_z = None
        if ctx.needs_input_grad[0] and copy is not None and stand_in.requires_grad:
            # retain_graph, as the walk to η goes through the same nodes afterwards.
            (grad_z,) = torch.autograd.grad(stand_in, copy, to_z, retain_graph=True, allow_unused=True)
        return grad_z, to_parameters, None
