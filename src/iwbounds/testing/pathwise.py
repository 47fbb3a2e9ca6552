r"""Is the sampler's gradient claim true? The path through the samples against the score of the density.

For every bounded, smooth f and a sampler that is differentiable as it claims,

.. math:: \mathbb E[\nabla f(z)\,\partial_\phi z] = \partial_\phi\,\mathbb E_q[f(z)]
          = \mathbb E[f(z)\,\partial_\phi \log q(z)].

The two sides are computed on the same draws; their difference, an average over many draws, is 0 in expectation. It is
bet against as a difference that is symmetric around 0 (see :func:`iwbounds.testing.betting.symmetric_bets`): exact for
symmetric differences, and an approximation by the central limit theorem, averages being over 256 draws or more, for
others. A sampler with a hard choice in it (a mixture's component, a threshold, a rejection) has paths that miss the
probability of the choice, and fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.proposals import Proposal
from iwbounds.testing.betting import EProcess, symmetric_bets
from iwbounds.testing.coordinates import flattened
from iwbounds.testing.weights import log_proposal

__all__ = ["pathwise_fault"]

_DRAWS, _BURN_IN, _ROUNDS, _TEST_FUNCTIONS, _STATISTICS = 256, 8, 96, 3, 16


def pathwise_fault(proposal: Proposal, batch: torch.Size, alpha: float) -> str | None:
    """What is wrong with the gradient that the samples carry, or None. Draws from torch's generators.

    Proposals without parameters that require grad, and those that claim nothing, pass. For mixed latents only the
    presence of a graph is checked.
    """
    with torch.enable_grad():
        latents = proposal.sample((2,))
        log_q = log_proposal(proposal, map_latents(Tensor.detach, latents))
        if not log_q.requires_grad or not any(latent_leaves(proposal.reparameterized)):
            return None
        if fault := _missing_graph(proposal, latents):
            return fault
        return _biased_path(proposal, batch, list(_leaves(log_q)), alpha) if proposal.pathwise else None


def _missing_graph(proposal: Proposal, latents: Latents) -> str | None:
    claims = proposal.reparameterized
    claims = map_latents(lambda _: claims, latents) if isinstance(claims, bool) else claims
    pairs = list(zip(latent_leaves(latents), latent_leaves(claims), strict=True))
    carried = [z.requires_grad for z, claimed in pairs if claimed]
    if not any(carried) or (proposal.mixed and not all(carried)):
        return "its samples are said to be reparameterised, but carry no graph (drawn by sample, detached, or rounded?)"
    return None


def _biased_path(proposal: Proposal, batch: torch.Size, parameters: list[Tensor], alpha: float) -> str | None:
    process = EProcess(alpha)
    size = max(8, math.ceil(_DRAWS / max(1, batch.numel())))
    differences = _Differences(proposal, batch, parameters)
    scale = torch.stack([differences.draw(size) for _ in range(_BURN_IN)]).square().mean(0).sqrt()
    for _ in range(_ROUNDS):
        process.add(symmetric_bets(differences.draw(size).unsqueeze(0), scale))
        if process.rejected_at:
            return (
                "its samples are said to be reparameterised, but the gradient along their paths is not that of their "
                f"density (certain after {process.rejected_at} batches of {size} draws, at alpha = {alpha:g}). Does "
                "the sampler choose, round or reject? Then say so: reparameterized=False"
            )
    return None


class _Differences:
    """Path minus score, for a few test functions, projected on a few directions of each parameter tensor."""

    def __init__(self, proposal: Proposal, batch: torch.Size, parameters: list[Tensor]) -> None:
        self._proposal, self._parameters, self._leading = proposal, parameters, 1 + len(batch)
        with torch.no_grad():
            points = flattened(proposal.sample((64,)), self._leading).flatten(0, -2)
        self._centre = points.median(0).values
        spread = (points - self._centre).abs().median(0).values.clamp_min(1e-12)
        directions = torch.randn(_TEST_FUNCTIONS, points.shape[-1], dtype=points.dtype, device=points.device)
        self._frequencies = directions / spread / math.sqrt(points.shape[-1])
        self._phases = torch.linspace(0.2, 1.3, _TEST_FUNCTIONS, dtype=points.dtype, device=points.device)
        self._projections = [_projection(parameter) for parameter in parameters]

    def draw(self, size: int) -> Tensor:
        """``(statistics,)`` differences from ``size`` fresh draws of every datum."""
        latents = self._proposal.sample((size,))
        log_q = log_proposal(self._proposal, map_latents(Tensor.detach, latents))
        points = flattened(latents, self._leading) - self._centre
        values = torch.sin((points.unsqueeze(-2) * self._frequencies).sum(-1) + self._phases)
        fixed = values.detach()
        advantage = (fixed - fixed.mean(0)) * (size / (size - 1))  # less the mean of the *other* draws: unbiased
        gaps = (values - advantage * log_q.unsqueeze(-1)).sum(tuple(range(values.ndim - 1)))
        return torch.cat([self._projected(gap) for gap in gaps])

    def _projected(self, gap: Tensor) -> Tensor:
        grads = torch.autograd.grad(gap, self._parameters, retain_graph=True, allow_unused=True)
        pairs = zip(grads, self._projections, strict=True)
        return torch.cat([(torch.zeros_like(p[0]) if g is None else g.flatten()) @ p.T for g, p in pairs])


def _projection(parameter: Tensor) -> Tensor:
    """``(statistics, size)``: the entries themselves where they are few, random signs of all of them otherwise."""
    size = parameter.numel()
    if size <= _STATISTICS:
        return torch.eye(size, dtype=parameter.dtype, device=parameter.device)
    signs = torch.randint(0, 2, (_STATISTICS, size), device=parameter.device)
    return (2 * signs - 1).to(parameter.dtype)


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that require grad at the roots of ``tensor``'s graph."""
    if tensor.grad_fn is None:
        yield tensor
        return
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [child for child, _ in node.next_functions if child is not None]
