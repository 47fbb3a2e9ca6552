"""A log-density's path to the latents apart from its explicit parameters, so that each gets a coefficient of its own.

For any callable, at the price of one more backward: the density is evaluated once, and its slope ∂/∂z is taken in the
backward, of that very evaluation. Where one gate serves both densities (:mod:`iwbounds.engine.autograd`) there is no
need of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.engine.autograd import Channel, Tap, compiling, is_on_path, on_paths
from iwbounds.proposals.graph import cut

__all__ = ["Linearized", "cut_copies", "linearize", "refuse_unreached", "slopes_at", "times"]


class Linearized(NamedTuple):
    """A log-density whose path to the latents and whose explicit parameters have separate channels."""

    value: Tensor
    """The log-density, in the graph of its explicit parameters; and of the latents' too where ``joined``."""
    path: Callable[[Tensor | None, bool], list[Channel]]
    """Channels that send ``multiplier · ∂ log-density/∂z`` to the latents. The boolean says whether the graph of
    ``value`` is still needed afterwards."""
    joined: bool
    tap: Tap | None = None
    """Hears the slopes themselves, of each part on the path; None where there is none."""
    parts: int = 0
    """How many parts are on the path."""


def linearize(
    density: Callable[[Latents], Tensor], latents: Latents, reparameterized: Any, own_samples: bool = False
) -> Linearized:
    """Evaluate ``density`` once, and separate its path from its parameters.

    With one latent tensor, ``own_samples`` hands over that very tensor: its partial derivative is then taken where the
    graph passes through it. With several parts, of which one may be a function of another, it is taken at copies that
    are cut from the graph: at the parts themselves the path z1 → z2 would be counted too.
    """
    if compiling():
        return _linearize_traced(density, latents, reparameterized)
    # With one part the graph passes through z alone: the partial derivative is taken there, at the very tensor.
    joined = own_samples and len(latent_leaves(latents)) == 1
    copies = (
        latents
        if joined
        else map_latents(lambda z, flag: cut(z) if is_on_path(z, flag) else z, latents, reparameterized)
    )
    # Once: what follows takes derivatives of this evaluation, and never calls the user's function again.
    value = density(copies)
    at, live = on_paths(copies, reparameterized), on_paths(latents, reparameterized)
    # An edge of the graph stands for the tensor: it keeps no values alive.
    edges = [GradientEdge(z.grad_fn, z.output_nr) if z.grad_fn is not None else z for z in at]

    # No path, or a density that depends on nothing: a constant, whose slope is zero.
    if not (edges and value.requires_grad):
        return Linearized(value, lambda _multiplier, _keep: [], joined)
    # Made now, beside the density: autograd walks the latest nodes first, so that chunk follows chunk in the backward.
    taken = _Taken(value, edges, joined, Tap())
    through = _Path.apply(value.detach(), taken, *live)  # type: ignore[no-untyped-call]

    def path(multiplier: Tensor | None, keep_graph: bool) -> list[Channel]:
        # Known only with the coefficients: a score channel walks the same graph after the slope is taken.
        taken.keep_graph = keep_graph
        return [(through, multiplier)]

    return Linearized(value, path, joined, taken.tap, len(live))


def cut_copies(latents: Latents) -> Latents:
    """Copies, from which no gradient flows back, and with respect to which slopes can be taken."""
    if not torch.is_grad_enabled():
        return latents
    return map_latents(lambda z: cut(z.detach().requires_grad_()), latents)


def slopes_at(density: Tensor, copies: Latents, keep_graph: bool = False) -> list[Tensor | None]:
    """∂ density/∂z at each of the cut ``copies``, now: sample k of datum i enters row (k, i) alone."""
    at = latent_leaves(copies)
    ones = torch.ones_like(density)
    return list(torch.autograd.grad(density, at, ones, retain_graph=keep_graph, allow_unused=True))


@dataclass
class _Taken:
    """What a slope is taken of, and where; in an object, so that autograd does not take the density for an input."""

    density: Tensor | None
    edges: list[Any]
    at_samples: bool
    """Whether ``edges`` are the samples themselves, rather than copies that only this density has seen."""
    tap: Tap
    keep_graph: bool = False
    """Whether the density's parameters have a channel of their own, which walks the same graph."""


class _Path(torch.autograd.Function):
    """A log-density in the graph of the latents alone. Its backward is taken when it is asked for, and not before, so
    that chunks which are evaluated anew in the backward hold no slopes in between."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, taken: _Taken, *_latents: Tensor) -> Tensor:
        ctx.taken = taken
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        taken = ctx.taken
        if taken.density is None:
            raise RuntimeError(
                "the value of iwbounds.estimate supports one backward, unless each but the last is called with "
                "retain_graph=True: the graph of log q is freed once its slope is taken. Call backward once, on a sum "
                "of the values, or keep the graph."
            )
        keep_graph = taken.keep_graph or _graph_is_retained()
        slopes = _slopes(taken, grad, keep_graph)
        if taken.at_samples and all(slope is None for slope in slopes):
            raise RuntimeError(_UNREACHED)
        if not keep_graph:
            # A checkpoint has made all that its graph saves anew, and keeps what this walk did not ask for (what leads
            # to parameters) as long as the graph lives.
            taken.density = None
        return None, None, *slopes


_UNREACHED = (
    "expected the proposal's log_prob to depend on the samples that it is given; got one that reaches its parameters "
    "past them, as a transform with a cached inverse does, or a support that moves. Its derivative at fixed parameters "
    "cannot be had: say total_derivative_only=True (or fixed_support=False), and use Reparameterized()."
)


def refuse_unreached(density: Tensor, latents: Latents) -> None:
    """Raise ValueError where a density with parameters does not depend on its samples: one more backward tells."""
    live = [z for z in latent_leaves(latents) if z.requires_grad]
    if not (live and density.requires_grad):
        return
    slopes = torch.autograd.grad(density.sum(), live, retain_graph=True, allow_unused=True)
    if all(slope is None for slope in slopes):
        raise ValueError(_UNREACHED)


def _graph_is_retained() -> bool:
    """Whether the backward that is running was asked to keep its graph: another one may follow."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())  # no public name asks this


def _slopes(taken: _Taken, grad: Tensor, keep_graph: bool) -> tuple[Tensor | None, ...]:
    """``grad`` times the slopes. Sample k of datum i enters row (k, i) alone: one call gives every row."""
    assert taken.density is not None, "the caller has looked"
    listener = taken.tap.listener
    # Who wants to hear the slopes gets them before they are multiplied: dividing by what underflows would lose them.
    seed = grad if listener is None else torch.ones_like(grad)
    found = torch.autograd.grad(taken.density, taken.edges, seed, retain_graph=keep_graph, allow_unused=True)
    if listener is None:
        return found
    for place, slope in enumerate(found):
        listener(place, slope)
    return tuple(None if slope is None else times(grad, slope) for slope in found)


def times(grad: Tensor, slope: Tensor) -> Tensor:
    """Row by row; where nothing arrives nothing is passed on, be the slope infinite."""
    rows = grad.reshape(grad.shape + (1,) * (slope.ndim - grad.ndim))
    return torch.where(rows == 0, 0, rows * slope).to(slope.dtype)


def _linearize_traced(density: Callable[[Latents], Tensor], latents: Latents, reparameterized: Any) -> Linearized:
    """The functional form, which ``torch.compile`` can trace into one graph: latents held fixed, slopes at once."""
    live = on_paths(latents, reparameterized)
    if not live:
        return Linearized(density(latents), lambda _multiplier, _keep: [], False)

    def of_live(*leaves: Tensor) -> Tensor:
        left = iter(leaves)
        return density(map_latents(lambda z, flag: next(left) if is_on_path(z, flag) else z, latents, reparameterized))

    # Detached leaves inside the trace: compiled code has no identity of tensors to preserve.
    value, pull = torch.func.vjp(of_live, *[z.detach() for z in live])  # type: ignore[misc]

    def path(multiplier: Tensor | None, _keep_graph: bool) -> list[Channel]:
        if multiplier is None:
            return []
        return [(z, slope.detach()) for z, slope in zip(live, pull(multiplier.to(value.dtype)), strict=True)]

    return Linearized(value, path, False)
