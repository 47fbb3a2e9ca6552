"""How three coefficients per sample reach three kinds of parameters in one backward pass.

* **attach**: one tensor whose value is the bound and whose backward sends each coefficient down its channel.
* **gate**: the log-joint is called on latents whose backward multiplies the incoming gradient by b/a. The gradient that
  arrives at log p is a, so its parameters get a and its latents get b, from one forward and one backward.
* where no gate serves, :mod:`iwbounds.engine.linearize` separates the path of any density from its parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from iwbounds.checks import Latents, map_latents
from iwbounds.gradients.lesson import Listener, Notes

__all__ = [
    "Channel",
    "Tap",
    "attach",
    "compiling",
    "first_pass",
    "gate",
    "is_on_path",
    "on_paths",
    "refuse_transforms",
    "split_gate",
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


def is_on_path(z: Tensor, reparameterized: bool | None) -> bool:
    """Whether a backward will walk through this part; not in a first pass, which gets the latents as they are."""
    # None, for a part that is carried, counts as no path.
    return bool(reparameterized) and z.requires_grad and torch.is_grad_enabled()


def on_paths(latents: Latents, reparameterized: Any) -> list[Tensor]:
    """The tensors that carry a path."""
    found: list[Tensor] = []
    map_latents(lambda z, flag: found.append(z) if is_on_path(z, flag) else None, latents, reparameterized)
    return found


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
        if not is_on_path(z, flag):
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
