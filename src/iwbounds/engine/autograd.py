"""How three coefficients per sample reach three kinds of parameters in one backward pass: all of the autograd code.

* **attach**: one tensor whose value is the bound and whose backward sends each coefficient down its channel.
* **gate**: the log-joint is called on latents whose backward multiplies the incoming gradient by b/a. The gradient that
  arrives at log p is a, so its parameters get a and its latents get b, from one forward and one backward.
* **linearise**: for any callable, separate a log-density's path to the latents from its explicit parameters, so that
  each gets a coefficient of its own, at the price of one more backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.gradients.lesson import Listener, Notes

__all__ = [
    "Channel",
    "Linearized",
    "Tap",
    "attach",
    "compiling",
    "cut",
    "first_pass",
    "gate",
    "linearize",
    "on_paths",
    "refuse_transforms",
    "refuse_unreached",
    "slopes_at",
    "split_gate",
    "times",
    "with_ratio",
]

Channel: TypeAlias = tuple[Tensor | None, Tensor | None]
"""A tensor in the graph, and the multiplier that its gradient gets."""


def compiling() -> bool:
    """Whether ``torch.compile`` is tracing: it follows no hooks, and no autograd.grad inside a backward."""
    return torch.compiler.is_compiling()


def refuse_transforms() -> None:
    """Raise where a ``torch.func`` transform (grad, vmap, jacrev, …) is tracing."""
    if not compiling() and torch._C._functorch.peek_interpreter_stack() is not None:  # no public name asks this
        raise RuntimeError(
            "iwbounds.estimate cannot be differentiated by torch.func transforms: its backward is an estimator with "
            "constant coefficients, which they would differentiate further. Use value.backward() or "
            "torch.autograd.grad, or transform the bound itself: torch.func.grad of bound(log_weights)."
        )


@contextmanager
def first_pass(option: str) -> Iterator[None]:
    """``torch.no_grad()`` for the pass that takes log-weights alone; says what to do where a log-joint differentiates
    inside."""
    try:
        with torch.no_grad():
            yield
    except RuntimeError as error:
        # torch has no class for this error; the words are those of autograd.grad.
        if "does not require grad" not in str(error):
            raise
        raise RuntimeError(
            f"{option} first evaluates log_joint and log_prob under torch.no_grad(), where a derivative inside them "
            "cannot be taken. Take it under torch.enable_grad(), of z.detach().requires_grad_() where z does not "
            f"require grad; or drop {option}."
        ) from error


# Attach.


def attach(value: Tensor, channels: Iterable[Channel], notes: Notes | None = None) -> Tensor:
    """``value``, with a backward that sends ``multiplier`` times its gradient to each tensor in ``channels``.

    Pairs with a None, or with a tensor outside every graph, are dropped. What is returned is the sum of tensors times
    multipliers, whose backward is just that and never reads the sum: hence its value can be overwritten by ``value``.
    (Adding a difference of two such sums instead would meet inf − inf where a log-density is −inf. A Function of its
    own would hide from a compiler that the value depends on the tensors: their random numbers were then drawn twice,
    once for each of its two graphs.)

    ``notes`` are told what arrives at the value, before anything else is.
    """
    # A frozen model or proposal has no channel, and costs nothing in the backward.
    live = [(t, m) for t, m in channels if t is not None and m is not None and t.requires_grad]
    if not live:
        return value
    # Product and sum, not einsum or matmul: their backwards would save and multiply what is not needed.
    carrier = _per_datum(live[0][0] * live[0][1], value.ndim)
    for tensor, multiplier in live[1:]:
        carrier = carrier + _per_datum(tensor * multiplier, value.ndim)
    # Through a detached view: autograd does not see it, and the backward of a sum reads no value.
    carrier.detach().copy_(value)
    if not compiling():
        carrier.register_hook(lambda grad: _refuse_second(grad, [t for t, _ in live]))  # type: ignore[no-untyped-call]
    if notes is not None:
        carrier.register_hook(functools.partial(_tell_upstream, notes))  # type: ignore[no-untyped-call]
    return carrier


def _tell_upstream(notes: Notes, grad: Tensor) -> None:
    notes.upstream = grad.detach()


def _per_datum(product: Tensor, batch_ndim: int) -> Tensor:
    """Sum over samples, and over events where there are any: ``(K, *batch, *event)`` to ``(*batch)``."""
    total = product.sum(0)
    return total if total.ndim == batch_ndim else total.flatten(batch_ndim).sum(-1)


def _refuse_second(grad: Tensor, tensors: list[Tensor]) -> Tensor | None:
    """With ``create_graph``, make any further derivative raise: the multipliers are constants, so it would be wrong."""
    # In a backward gradients are on only under create_graph=True, that is, if a second derivative is wanted.
    if not torch.is_grad_enabled():
        return None
    return _DifferentiableOnce.apply(grad, *tensors)  # type: ignore[no-any-return, no-untyped-call]


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, grad: Tensor, *_tensors: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> None:
        raise RuntimeError(
            "the value of iwbounds.estimate can be differentiated once: its backward is an estimator with constant "
            "coefficients, and has no second derivative. Differentiate bound(log_weights) itself instead."
        )


# Gate.


@dataclass
class Tap:
    """Where gradients come by that someone may want to hear of, once it is known who."""

    listener: Listener | None = None


def gate(latents: Latents, reparameterized: Any, tap: Tap | None = None) -> tuple[Latents, list[Tensor]]:
    """The latents that the log-joint is called on, and one tensor of zeros per gated part, whose gradient is its ratio.

    The coefficients are not known yet when the log-joint is called. So each gated tensor leaves its gate with a
    companion of zeros, and :func:`with_ratio` later gives it the ratio for a gradient. Parts without a graph, and those
    that only carry parameters, pass as they are.

    Args:
        reparameterized: as of :class:`iwbounds.Proposal`, for all parts or for each.
        tap: hears what arrives at each gate from behind.
    """
    companions: list[Tensor] = []

    def through(z: Tensor, flag: bool | None) -> Tensor:
        if not _on_path(z, flag):
            return z
        # One companion per part: parts differ in shape, and each ratio must arrive in that of its part.
        gated, companion = _Gate.apply(z, tap, len(companions))  # type: ignore[no-untyped-call]
        companions.append(companion)
        return gated  # type: ignore[no-any-return]

    if isinstance(latents, Tensor):
        return through(latents, reparameterized), companions
    return map_latents(through, latents, reparameterized), companions


def split_gate(latents: Latents, others: Latents) -> tuple[Latents, list[Tensor]]:
    """As :func:`gate`; what a gate keeps back from its latents, 1 − b/a of the gradient, goes to their ``others``.

    Args:
        others: mirrors the latents: the same values by another way, or None.
    """
    companions: list[Tensor] = []

    def through(z: Tensor, other: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled() or not (z.requires_grad or other is not None):
            return z
        gated, companion = _SplitGate.apply(z, other)  # type: ignore[no-untyped-call]
        companions.append(companion)
        return gated  # type: ignore[no-any-return]

    return map_latents(through, latents, others), companions


def with_ratio(density: Tensor, companions: list[Tensor], model: Tensor, path: Tensor) -> Tensor:
    """``density``, evaluated behind a gate, whose backward lets b/a of its gradient pass through that gate.

    Where a is 0 so is b (the caller knows that their ratio is bounded), and the ratio is 0 rather than NaN.
    """
    if not companions:
        return density
    # The coefficients are detached and in float32 or more: a ratio of such underflows nowhere that matters.
    ratio = (path / model).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    shaped = [ratio.reshape(ratio.shape + (1,) * (z.ndim - ratio.ndim)) for z in companions]
    return _Ratio.apply(density, *companions, *shaped)  # type: ignore[no-untyped-call, no-any-return]


class _Gate(torch.autograd.Function):
    """Latents, and zeros of stride 0 (they cost no memory) in a precision that the ratio is not rounded to."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tap: Tap | None, place: int) -> tuple[Tensor, Tensor]:
        ctx.tap, ctx.place = tap, place
        return z.view_as(z), z.new_zeros((), dtype=torch.promote_types(z.dtype, torch.float32)).expand(z.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, ratio: Tensor) -> tuple[Tensor, None, None]:
        if ctx.tap is not None and ctx.tap.listener is not None:
            ctx.tap.listener(ctx.place, grad)
        # Multiplied in float32 where the latents are half: b/a may lie outside float16's range.
        return (grad * ratio).to(grad.dtype), None, None


class _SplitGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.split = other is not None
        return z.view_as(z), z.new_zeros((), dtype=torch.promote_types(z.dtype, torch.float32)).expand(z.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor | None]:
        through = (grad * ratio).to(grad.dtype)
        return through, grad - through if ctx.split else None


class _Ratio(torch.autograd.Function):
    """Passes a density on, and its gradient back; the gradients of the companions are the ratios that follow them."""

    @staticmethod
    def forward(ctx: Any, density: Tensor, *companions_and_ratios: Tensor) -> Tensor:
        half = len(companions_and_ratios) // 2
        ctx.save_for_backward(*companions_and_ratios[half:])
        ctx.shapes = [companion.shape for companion in companions_and_ratios[:half]]
        return density.view_as(density)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ratios = [ratio.expand(shape) for ratio, shape in zip(ctx.saved_tensors, ctx.shapes, strict=True)]
        # The ratio is no gradient of anything: autograd only carries it to the gate, which runs after this node.
        return grad, *ratios, *(None for _ in ratios)


# Linearise.


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
    copies = latents if joined else map_latents(_cut, latents, reparameterized)
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


def _on_path(z: Tensor, reparameterized: bool | None) -> bool:
    """Whether a backward will walk through this part; not in a first pass, which gets the latents as they are."""
    # None, for a part that is carried, counts as no path.
    return bool(reparameterized) and z.requires_grad and torch.is_grad_enabled()


def on_paths(latents: Latents, reparameterized: Any) -> list[Tensor]:
    """The tensors that carry a path."""
    found: list[Tensor] = []
    map_latents(lambda z, flag: found.append(z) if _on_path(z, flag) else None, latents, reparameterized)
    return found


def _cut(z: Tensor, reparameterized: bool | None) -> Tensor:
    return _Cut.apply(z) if _on_path(z, reparameterized) else z  # type: ignore[no-untyped-call]


def cut(latents: Latents) -> Latents:
    """Copies, from which no gradient flows back, and with respect to which slopes can be taken."""
    if not torch.is_grad_enabled():
        return latents
    return map_latents(lambda z: _Cut.apply(z.detach().requires_grad_()), latents)  # type: ignore[no-untyped-call]


def slopes_at(density: Tensor, copies: Latents, keep_graph: bool = False) -> list[Tensor | None]:
    """∂ density/∂z at each of the cut ``copies``, now: sample k of datum i enters row (k, i) alone."""
    at = latent_leaves(copies)
    ones = torch.ones_like(density)
    return list(torch.autograd.grad(density, at, ones, retain_graph=keep_graph, allow_unused=True))


class _Cut(torch.autograd.Function):
    """The same latents, from which no gradient flows back."""

    @staticmethod
    def forward(_ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> None:
        return None


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
        return density(map_latents(lambda z, flag: next(left) if _on_path(z, flag) else z, latents, reparameterized))

    # Detached leaves inside the trace: compiled code has no identity of tensors to preserve.
    value, pull = torch.func.vjp(of_live, *[z.detach() for z in live])  # type: ignore[misc]

    def path(multiplier: Tensor | None, _keep_graph: bool) -> list[Channel]:
        if multiplier is None:
            return []
        return [(z, slope.detach()) for z, slope in zip(live, pull(multiplier.to(value.dtype)), strict=True)]

    return Linearized(value, path, False)
