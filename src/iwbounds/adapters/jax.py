"""A JAX log-density as a torch callable with its gradient, so that models of JAX libraries get bounds and a sandwich.

Tensors go to JAX through DLPack, without a copy where their memory allows it. The density is compiled once for each
shape (``jax.jit``); its reverse-mode derivative (``jax.vjp``) is the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from iwbounds.adapters.optional import optional
from iwbounds.checks import Latents, latent_leaves, map_latents

__all__ = ["log_density"]


def log_density(function: Callable[..., Any], event_dims: Any = None) -> Callable[..., Tensor]:
    """A log-density written in JAX, as :func:`iwbounds.estimate` and :func:`iwbounds.sandwich` take it.

    Args:
        function: from latents (and further arrays) to log p(x, z), in nats: ``numpyro.infer.util.log_density``, a
            blackjax ``logdensity_fn``, PyMC's ``get_jaxified_logp(model)``. It must be traceable by JAX.
        event_dims: how many trailing axes a latent has in ``function``, which is written for **one** sample: an
            integer, or one for each part of the latents, in their structure. All axes in front, samples and batch, are
            mapped over. None: ``function`` takes all axes itself, and returns ``(num_samples, *batch)``.

    Returns:
        A callable from latents, a tensor ``(num_samples, *batch, *event)`` or a tuple or dict of such, and further
        tensors that are not mapped over, to ``(num_samples, *batch)`` nats. Autograd differentiates it, once, with
        respect to all floating ones: ``lambda z: density(z, theta)`` also trains ``theta``.

    Raises:
        ImportError: JAX is not installed.
        ValueError: latents whose axes in front of their events differ.

    Latents of float64 are evaluated in float64, whether or not JAX's own switch is on; arrays that ``function`` closes
    over keep the precision they were made with. Under ``torch.compile`` and ``torch.func`` it is not available.

    >>> import jax, iwbounds as iw
    >>> normal = jax.scipy.stats.norm.logpdf
    >>> log_joint = log_density(lambda z: normal(z) + normal(1.0, z), event_dims=0)
    >>> iw.estimate(log_joint, torch.distributions.Normal(0.5, 0.5**0.5), num_samples=4).value
    tensor(-1.5155)
    """
    call = _Call(optional("jax", "jax"), function, event_dims)

    def evaluate(latents: Latents, *parameters: Tensor) -> Tensor:
        if event_dims is not None:
            _check_axes(latents, event_dims)
        leaves, tree = call.jax.tree.flatten((latents, parameters))
        value: Tensor = _Density.apply(call, tree, *leaves)  # type: ignore[no-untyped-call]
        return value

    return evaluate


def _check_axes(latents: Latents, event_dims: Any) -> None:
    front: list[tuple[int, ...]] = []
    map_latents(lambda z, dims: front.append(tuple(z.shape[: z.ndim - dims])), latents, event_dims)
    if len(set(front)) > 1 or len(front[0]) == 0:
        raise ValueError(
            "expected every latent to have the same axes (num_samples, *batch) in front of its event_dims; got "
            f"{front}. One integer is for all parts: give one for each, in a dict or tuple like the latents."
        )


class _Call:
    """A JAX function of latents and parameters, compiled, with and without its derivative."""

    def __init__(self, jax: Any, function: Callable[..., Any], event_dims: Any) -> None:
        self.jax, self.function, self.event_dims = jax, function, event_dims
        # The structure and which leaves are floating are known before tracing: each gets a compilation of its own.
        self.value = jax.jit(self._value, static_argnums=(0, 1))
        self.value_and_vjp = jax.jit(self._value_and_vjp, static_argnums=(0, 1))
        # What jax.vjp returns is a pytree of residuals, so it may cross into a compiled function.
        self.pull_back = jax.jit(lambda vjp, cotangent: vjp(cotangent)[0])

    def precision(self, leaves: tuple[Tensor, ...]) -> AbstractContextManager[Any]:
        """JAX rounds float64 to float32 in silence, unless told otherwise; told here for this call alone."""
        # The switch is process-wide in JAX, hence a context: nothing global is left changed.
        double = any(leaf.dtype is torch.float64 for leaf in leaves)
        found: AbstractContextManager[Any] = self.jax.enable_x64(True) if double else nullcontext()
        return found

    def array(self, tensor: Tensor) -> Any:
        """The same memory in JAX, or a copy of memory that it cannot address: expanded axes, gaps."""
        return self.jax.numpy.from_dlpack(tensor.detach().contiguous())

    def arrays(self, leaves: tuple[Tensor, ...]) -> tuple[tuple[bool, ...], list[Any], list[Any]]:
        """Which leaves are floating; these; and the others, which have no derivative."""
        floating = tuple(leaf.is_floating_point() for leaf in leaves)
        arrays = [self.array(leaf) for leaf in leaves]
        live = [a for a, f in zip(arrays, floating, strict=True) if f]
        return floating, live, [a for a, f in zip(arrays, floating, strict=True) if not f]

    def _value(self, tree: Any, floating: tuple[bool, ...], live: list[Any], fixed: list[Any]) -> Any:
        one, other = iter(live), iter(fixed)
        latents, parameters = tree.unflatten([next(one if f else other) for f in floating])
        return self._mapped(latents, len(parameters))(latents, *parameters)

    def _value_and_vjp(self, tree: Any, floating: tuple[bool, ...], live: list[Any], fixed: list[Any]) -> Any:
        return self.jax.vjp(lambda live: self._value(tree, floating, live, fixed), live)

    def _mapped(self, latents: Any, num_parameters: int) -> Callable[..., Any]:
        mapped = self.function
        if self.event_dims is not None:
            front = latent_leaves(map_latents(lambda z, dims: z.ndim - dims, latents, self.event_dims))[0]
            for _ in range(front):
                # One vmap for each axis in front of the event: samples first, then the batch.
                mapped = self.jax.vmap(mapped, in_axes=(0,) + (None,) * num_parameters)
        return mapped


class _Density(torch.autograd.Function):
    """The value, whose backward is JAX's vector-Jacobian product."""

    @staticmethod
    def forward(ctx: Any, call: _Call, tree: Any, *leaves: Tensor) -> Tensor:
        with call.precision(leaves):
            floating, live, fixed = call.arrays(leaves)
            # Without a graph the plain value: its compilation keeps no residuals.
            if any(ctx.needs_input_grad):
                value, ctx.vjp = call.value_and_vjp(tree, floating, live, fixed)
            else:
                value = call.value(tree, floating, live, fixed)
        ctx.call, ctx.floating = call, floating
        # The residuals may share memory with the leaves: autograd then notices a change in place before the backward.
        ctx.save_for_backward(*leaves)
        return _to_torch(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # on under create_graph=True: what is returned would pass for a constant, and a term be missing in silence
        if torch.is_grad_enabled():
            raise RuntimeError(
                "expected one derivative of a JAX log-density; its second was asked for (create_graph=True), which "
                "does not reach through DLPack. Write the density in torch for what needs it (a learned Langevin path)."
            )
        with ctx.call.precision(ctx.saved_tensors):
            found = iter(ctx.call.pull_back(ctx.vjp, ctx.call.array(gradient)))
        return None, None, *(_to_torch(next(found)) if floating else None for floating in ctx.floating)


def _to_torch(array: Any) -> Tensor:
    """A copy: JAX's arrays never change, while autograd adds to gradients in place."""
    return torch.utils.dlpack.from_dlpack(array).clone()
