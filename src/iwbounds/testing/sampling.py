r"""What a sampler claims of its draws: independence, a fixed support, and a path that is a derivative.

All three are differences that are symmetric around 0 under the claim, and are bet against by
:func:`iwbounds.testing.betting.symmetric_bets`.

**Independence** along dim 0 of one call. With A and B from two calls, :math:`d_i = f(A_i) - f(B_i)` are symmetric and
independent of each other, so the product of the sums of d over two halves of a call is symmetric, exactly: antithetic
and stratified draws make it negative, shared ones positive. And :math:`f(A_i) - f(B_j)` is symmetric for any i and j:
strata in a fixed order are not.

**Fixed support.** :math:`\mathbb E[\partial_\phi \log q(z)] = 0` at fixed z, unless the support moves with φ (or a part
of log q is detached from it). All gradients but the reparameterised one rest on it.

**The path.** For every bounded, smooth f and a sampler that is differentiable as it claims,

.. math:: \mathbb E[\nabla f(z)\,\partial_\phi z] = \partial_\phi\,\mathbb E_q[f(z)]
          = \mathbb E[f(z)\,\partial_\phi \log q(z)].

A sampler with a hard choice in it (a mixture's component, a threshold, a straight-through value) has paths that miss
the probability of the choice. For mixed latents the score of the parts without a path joins the left side.

The last two are averages over 256 draws or more, symmetric by the central limit theorem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.proposals.base import Proposal
from iwbounds.testing.betting import EProcess, symmetric_bets
from iwbounds.testing.charts import Coordinates, RoundedAwayError, UnjudgedError, flattened, is_discrete
from iwbounds.testing.densities import log_parts
from iwbounds.testing.draws import draw

__all__ = ["gradient_fault", "independence_fault"]

_DRAWS, _BURN_IN, _ROUNDS, _TEST_FUNCTIONS, _STATISTICS = 256, 8, 96, 3, 16
_BLOCK = 8
"""Rounds between two looks at the wealth."""
_CALL = 16
"""Draws per call in the test of independence: their indices differ in one of four bits."""
_RESOLVED = 0.99
"""How many draws must be away from boundaries that rounding blurs, for gradients to be judged."""


class _TestFunctions:
    """Bounded, smooth functions of latents, about as wide as their distribution: to ``(n, *batch, functions)``."""

    def __init__(self, latents: Latents, leading: int) -> None:
        self._leading = leading
        # Medians, as one heavy-tailed draw would set the width of everything.
        points = self._points(latents).flatten(0, -2)
        self._centre = points.median(0).values
        spread = (points - self._centre).abs().median(0).values
        # Most draws of a discrete latent may be one value: no median deviation then.
        spread = torch.where(spread > 0, spread, points.std(0))
        spread = torch.where(spread > 0, spread, 1.0)
        directions = torch.randn(_TEST_FUNCTIONS, points.shape[-1], dtype=points.dtype, device=points.device)
        # By √d, so that the argument of the sine has a spread of about 1 in any dimension.
        self._frequencies = directions / spread / math.sqrt(points.shape[-1])
        # Between 0 and π/2: a sine alone is odd, and blind to a wider sampler; a cosine is even, and blind to a shift.
        self._phases = torch.linspace(0.2, 1.3, _TEST_FUNCTIONS, dtype=points.dtype, device=points.device)

    def __call__(self, latents: Latents) -> Tensor:
        points = self._points(latents) - self._centre
        return torch.sin((points.unsqueeze(-2) * self._frequencies).sum(-1) + self._phases)

    def _points(self, latents: Latents) -> Tensor:
        points = flattened(list(latent_leaves(latents)), self._leading)
        return points if points.is_floating_point() else points.double()


def independence_fault(proposal: Proposal, batch: torch.Size, alpha: float) -> str | None:
    """How the draws of one call depend on each other, or None. Draws from torch's generators, without a graph."""
    functions = _TestFunctions(proposal.sample((64,)), 1 + len(batch))

    def statistics() -> Tensor:
        first, second = proposal.sample((_CALL,)), proposal.sample((_CALL,))
        a, b = (functions(z).reshape(_CALL, -1, _TEST_FUNCTIONS).double() for z in (first, second))
        index = torch.arange(_CALL, device=a.device)
        # Neighbours, pairs of pairs, …: between them these four cuts separate any two of the 16 draws.
        halves = [(index & bit == 0) for bit in (1, 2, 4, 8)]
        products = [((a - b)[half].sum(0) * (a - b)[~half].sum(0)).sum(0) for half in halves]
        # The second kind compares different places in their calls: strata in a fixed order show there.
        return torch.cat([*products, (a - b.roll(1, 0)).sum(1).flatten()])

    first, second = (list(latent_leaves(proposal.sample((_CALL,)))) for _ in range(2))
    # Two calls of a discrete sampler may well agree; of a continuous one they cannot.
    if not all(map(is_discrete, first)) and all(map(torch.equal, first, second)):
        return "two calls of sample gave the same draws: it does not use torch's generators, or is constant"
    process = EProcess(alpha)
    # From calls of their own: a scale that saw the draws it divides would break the symmetry.
    scale = torch.stack([statistics() for _ in range(_BURN_IN)]).square().mean(0).sqrt()
    for _ in range(_ROUNDS // _BLOCK):
        process.add(symmetric_bets(torch.stack([statistics() for _ in range(_BLOCK)]), scale))
        if process.rejected_at:
            return (
                f"the draws of one call are not independent of each other, or not of one distribution (certain after "
                f"{2 * process.rejected_at} calls of {_CALL} draws, at alpha = {alpha:g}). Antithetic, stratified, "
                "quasi-random, shared, without replacement? Then say so: independent=False; the gradient that fits "
                "is iwbounds.Reparameterized()"
            )
    return None


def gradient_fault(given: Distribution | Proposal, proposal: Proposal, batch: torch.Size, alpha: float) -> str | None:
    """What is wrong with the gradients of samples or of log_prob, or None. Draws from torch's generators.

    Proposals without parameters that require grad pass, and so do those whose log-density is not differentiated at
    fixed samples (``fixed_support=False``, ``total_derivative_only=True``), or cannot be (several parts that are known
    by themselves).

    Raises:
        UnjudgedError: too many draws are rounded onto the boundary of the support.
    """
    with torch.enable_grad():
        latents = proposal.sample((8,))
        if fault := _missing_graph(proposal, latents):
            return fault
        if proposal.total_derivative_only or not proposal.fixed_support:
            return None
        if proposal.needs_own_samples and not (proposal.independent and isinstance(latents, Tensor)):
            return None  # dependent draws are put together from several calls: those are no samples of any call
        log_q = _at_fixed_samples(proposal, latents)
        if not log_q.requires_grad:
            return None
        with torch.no_grad():
            _check_resolved(given, proposal, batch)
        return _biased(proposal, batch, list(_leaves(log_q)), alpha)


def _claims(proposal: Proposal, latents: Latents) -> Latents:
    """Per latent tensor: whether it has a path; None for one that is handed on as it is."""
    claims = proposal.reparameterized
    return map_latents(lambda _: claims, latents) if isinstance(claims, bool) else claims


def _detached(proposal: Proposal, latents: Latents, keep_paths: bool = False) -> Latents:
    def cut(z: Tensor, claim: bool | None) -> Tensor:
        return z if claim is None or (claim and keep_paths) else z.detach()

    return map_latents(cut, latents, _claims(proposal, latents))


def _at_fixed_samples(proposal: Proposal, latents: Latents) -> Tensor:
    """log q in the graph of its parameters alone.

    Of samples that must be handed over as they are, what the path through them adds is taken off again: the way in
    which DReG and STL take the two apart.
    """
    if not proposal.needs_own_samples:
        parts = log_parts(proposal, _detached(proposal, latents))
        return sum(parts[1:], parts[0])
    log_q: Tensor = log_parts(proposal, latents)[0]
    if not (latents.requires_grad and log_q.requires_grad):
        return log_q
    (slope,) = torch.autograd.grad(log_q.sum(), latents, retain_graph=True, materialize_grads=True)
    path: Tensor = (latents * slope).reshape(*log_q.shape, -1).sum(-1)
    return log_q - path


def _missing_graph(proposal: Proposal, latents: Latents) -> str | None:
    pairs = list(zip(latent_leaves(latents), latent_leaves(_claims(proposal, latents)), strict=True))
    claimed = [z for z, claim in pairs if claim]
    if any(z.requires_grad and is_discrete(z) and z.numel() > 1 for z in claimed):
        return (
            "its samples are said to be reparameterised, but are discrete values with a straight-through gradient, "
            "which is not a derivative of them. Say so: reparameterized=False"
        )
    carried = [z.requires_grad for z in claimed]
    mixed = len({claim for _, claim in pairs if claim is not None}) > 1
    trainable = any(part.requires_grad for part in log_parts(proposal, latents))
    if trainable and claimed and (not any(carried) or (mixed and not all(carried))):
        return "its samples are said to be reparameterised, but carry no graph (drawn by sample, detached, or rounded?)"
    return None


def _check_resolved(given: Distribution | Proposal, proposal: Proposal, batch: torch.Size) -> None:
    reference = draw(proposal, _DRAWS)
    continuous = [not is_discrete(z) for z in latent_leaves(reference)]
    try:
        inside = Coordinates(given, proposal, reference, continuous, batch).fraction_inside if any(continuous) else 1.0
    except RoundedAwayError:
        inside = 0.0
    except UnjudgedError:
        return  # of its density at moved points: gradients are judged at the draws
    if inside < _RESOLVED:
        raise UnjudgedError(
            f"the gradient: rounding puts {1 - inside:.2g} of the draws on the boundary of the support, or nearly so, "
            "where neither paths nor scores are those of the density. Use float64, or keep the draws inside"
        )


def _biased(proposal: Proposal, batch: torch.Size, parameters: list[Tensor], alpha: float) -> str | None:
    # Half of alpha each: by the union bound both together raise a false alarm with at most alpha.
    support, path = EProcess(alpha / 2), EProcess(alpha / 2)
    # The differences are summed over the batch too, which counts towards the 256 of the central limit theorem.
    size = max(8, math.ceil(_DRAWS / max(1, batch.numel())))
    differences = _Differences(proposal, batch, parameters)
    burn_in = [differences.draw(size) for _ in range(_BURN_IN)]
    scales = [torch.stack(statistic).square().mean(0).sqrt() for statistic in zip(*burn_in, strict=True)]
    for _ in range(_ROUNDS // _BLOCK):
        new = [torch.stack(rows) for rows in zip(*[differences.draw(size) for _ in range(_BLOCK)], strict=True)]
        if not all(statistic.isfinite().all() for statistic in new):
            return (
                "the gradient of its samples or of its log_prob is NaN or infinite at its own draws. If rounding puts "
                "them on the boundary of the support, use float64, or keep them inside"
            )
        for process, statistic, scale in zip((support, path), new, scales, strict=True):
            process.add(symmetric_bets(statistic, scale))
        if support.rejected_at:
            break  # a path that fails is played on: a moving support fails both, and is the better explanation
    certain = f"certain after {support.rejected_at or path.rejected_at} batches of {size} draws, at alpha = {alpha:g}"
    if support.rejected_at:
        return f"{_MOVING} ({certain}). {_advice_for_moving(proposal)}"
    if path.rejected_at and proposal.needs_own_samples:
        return f"{_KNOWN_BY_MAKING} ({certain})"
    if path.rejected_at:
        return f"{_NO_DERIVATIVE} ({certain}). {_advice_for_path(proposal)}"
    return None


_MOVING = (
    "the mean gradient of its log_prob at its own draws is not 0: its support moves with its parameters (Uniform, "
    "Pareto, a truncated or shifted distribution with learned bounds), or a part of log_prob is detached from them"
)
_KNOWN_BY_MAKING = (
    "the derivative of its log_prob at its own samples is not that of their density: does it know a sample by how it "
    "was made (a cached inverse)? Then say so: total_derivative_only=True, with the gradient "
    "iwbounds.Reparameterized(). Or does the sampler choose, round or reject? Then reparameterized=False"
)
_NO_DERIVATIVE = (
    "its samples are said to be reparameterised, but the gradient along their paths is not that of their density"
)


def _advice_for_moving(proposal: Proposal) -> str:
    say = "If the support moves, say so: fixed_support=False, with the gradient iwbounds.Reparameterized()"
    if proposal.needs_own_samples:
        say += "; if log_prob knows a sample by how it was made (a cached inverse), total_derivative_only=True"
    if any(latent_leaves(proposal.reparameterized)):
        return say
    return f"{say}, which takes samples drawn by rsample; no score-function gradient is right for it"


def _advice_for_path(proposal: Proposal) -> str:
    say = "Does the sampler choose, round or reject? Then say so: reparameterized=False"
    if isinstance(proposal.reparameterized, bool):
        return say
    return f"Does log_prob return the parts' log-densities in the places of the parts? {say} for the part"


class _Differences:
    """Path minus score for a few test functions, and the score, in a few directions of each parameter tensor."""

    def __init__(self, proposal: Proposal, batch: torch.Size, parameters: list[Tensor]) -> None:
        self._proposal, self._parameters = proposal, parameters
        with torch.no_grad():
            latents = draw(proposal, 64)
            self._functions = _TestFunctions(latents, 1 + len(batch))
            self._means = self._functions(latents).mean(0)  # of other draws: taken off without bias
        self._projections = [_projection(parameter) for parameter in parameters]

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """The summed score and the summed differences, ``(statistics,)`` each, of fresh draws of every datum."""
        latents = draw(self._proposal, size)
        log_q = _at_fixed_samples(self._proposal, latents)
        score = self._projected(log_q.sum())
        if not any(latent_leaves(self._proposal.reparameterized)):
            return score, torch.zeros_like(score)  # no path is claimed
        attached = _detached(self._proposal, latents, keep_paths=True)
        values = self._functions(attached)
        advantage = values.detach() - self._means
        # f(z) along the path, plus the score of the parts without one, minus the score of all: its gradient has mean
        # zero.
        terms = values + advantage * (self._scored(attached) - log_q).unsqueeze(-1)
        gaps = terms.sum(tuple(range(values.ndim - 1)))
        return score, _beyond_rounding(torch.cat([self._projected(gap) for gap in gaps]))

    def _scored(self, latents: Latents) -> Tensor | float:
        """log q of the parts without a path."""
        claims = self._proposal.reparameterized
        if isinstance(claims, bool):
            return 0.0
        kept = [claim for claim in latent_leaves(claims) if claim is not None]
        parts = log_parts(self._proposal, latents)
        return sum(part for part, claim in zip(parts, kept, strict=True) if not claim)

    def _projected(self, gap: Tensor) -> Tensor:
        grads = torch.autograd.grad(gap, self._parameters, retain_graph=True, allow_unused=True)
        pairs = zip(grads, self._projections, strict=True)
        return torch.cat([(torch.zeros_like(p[0]) if g is None else g.flatten()) @ p.T for g, p in pairs])


def _beyond_rounding(gaps: Tensor) -> Tensor:
    """0 where a gap is as small as rounding makes it: rounding has a sign of its own."""
    return gaps.masked_fill(gaps.abs() <= 10 * torch.finfo(gaps.dtype).eps * gaps.abs().max(), 0.0)


def _projection(parameter: Tensor) -> Tensor:
    """``(statistics, size)``: the entries themselves where they are few, random signs of all of them otherwise."""
    size = parameter.numel()
    if size <= _STATISTICS:
        return torch.eye(size, dtype=parameter.dtype, device=parameter.device)
    # Random signs see a fault in any entry with probability 1 − 2^−16, at 16 numbers per tensor.
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
        # AccumulateGrad, the node of a leaf.
        if hasattr(node, "variable"):
            yield node.variable
        stack += [child for child, _ in node.next_functions if child is not None]
