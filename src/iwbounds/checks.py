"""Latents and log-densities: how they nest, and contracts on their shapes, dtypes and devices.

Each message says what was expected, what was found, and what to do. Values are never inspected: that would synchronise
a GPU and break graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Latents",
    "check_latents",
    "check_leading_axes",
    "check_log_density",
    "check_log_joint",
    "check_log_q",
    "check_real",
    "check_same_kind",
    "check_structure",
    "check_whole_number",
    "full_precision",
    "latent_leaves",
    "map_latents",
    "matched_parts",
]

Latents: TypeAlias = Any
"""A tensor ``(K, *batch, *event)``, or a (possibly nested) tuple, list or dict of such."""

_HALF = (torch.float16, torch.bfloat16)


def map_latents(function: Callable[..., Any], latents: Latents, *others: Any) -> Latents:
    """Apply ``function`` to every tensor, keeping the structure.

    ``others`` go along: each mirrors the latents, or is one value for all of them.

    >>> map_latents(torch.neg, {"z": torch.ones(2), "s": (torch.zeros(1),)})
    {'z': tensor([-1., -1.]), 's': (tensor([-0.]),)}
    >>> map_latents(lambda z, on: on, (0, [1, 2]), (True, [False, True])), map_latents(lambda z, on: on, (0, 1), True)
    ((True, [False, True]), (True, True))
    """
    if isinstance(latents, dict):
        return {key: map_latents(function, part, *_at(key, others)) for key, part in latents.items()}
    if isinstance(latents, tuple | list):
        parts = [map_latents(function, part, *_at(i, others)) for i, part in enumerate(latents)]
        # A namedtuple takes its parts one by one, a tuple or list takes an iterable.
        return type(latents)(*parts) if hasattr(latents, "_fields") else type(latents)(parts)
    return function(latents, *others)


def _at(key: Any, others: tuple[Any, ...]) -> list[Any]:
    return [other[key] if isinstance(other, dict | tuple | list) else other for other in others]


def latent_leaves(latents: Latents) -> list[Any]:
    """Every tensor in ``latents``, in the order of :func:`map_latents`."""
    if isinstance(latents, dict):
        latents = latents.values()
    elif not isinstance(latents, tuple | list):
        return [latents]
    return [leaf for part in latents for leaf in latent_leaves(part)]


def check_whole_number(name: str, value: Any, least: int, hint: str = "") -> int:
    """``value`` as a Python integer; those of numpy are integers too, booleans and fractions are not.

    Raises:
        ValueError: another type, or a number below ``least``; the message ends with ``hint``.

    >>> import numpy as np
    >>> check_whole_number("order", np.int64(2), 0)
    2
    """
    # bool is an Integral to Python, and True would pass for 1; 2.0 is not, nor is a one-element tensor.
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"expected {name} to be a whole number, {least} or more; got {value!r}. {hint}".rstrip())
    return int(value)


def check_real(name: str, value: Any, hint: str = "") -> float:
    """``value``, known to be a real number; those of numpy become Python's, booleans and tensors are refused.

    Raises:
        ValueError: another type; the message ends with ``hint``.

    >>> import numpy as np
    >>> check_real("alpha", np.float32(0.5)), check_real("alpha", 2)
    (0.5, 2)
    """
    if type(value) is int or type(value) is float:
        return value  # as it is: Renyi(2) prints as it was written
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"expected {name} to be a number; got {value!r}. {hint}".rstrip())
    return float(value)


def check_structure(name: str, found: Any, expected: Any) -> None:
    """Raise ValueError where two nests of dicts and tuples do not have the same parts; dicts are matched by key."""
    if isinstance(expected, dict):
        # Sets of keys, not sequences: a dict that lists its keys in another order is the same latents.
        if not isinstance(found, dict) or found.keys() != expected.keys():
            raise ValueError(
                f"expected {name} to give a dict with the parts {sorted(map(str, expected))}; got {_shape_of(found)}."
            )
        pairs = [(found[key], part) for key, part in expected.items()]
    elif isinstance(expected, tuple | list):
        if not isinstance(found, tuple | list) or len(found) != len(expected):
            raise ValueError(f"expected {name} to give a tuple of {len(expected)} parts; got {_shape_of(found)}.")
        pairs = list(zip(found, expected, strict=True))
    elif isinstance(found, dict | tuple | list):
        raise ValueError(
            f"expected {name} to give one tensor where reparameterized says {expected}; got {_shape_of(found)}."
        )
    else:
        return
    for one, other in pairs:
        check_structure(name, one, other)


def matched_parts(name: str, found: Any, expected: Any) -> list[Any]:
    """The leaves of ``found`` in the order of ``expected``, matched by key; those that it says None of are left out.

    Raises:
        ValueError: as :func:`check_structure`.
    """
    check_structure(name, found, expected)
    parts: list[Any] = []
    # The expected structure leads the walk: a part's place is then that of its flag, in whatever order a dict has them.
    map_latents(lambda flag, part: parts.append(part) if flag is not None else None, expected, found)
    return parts


def _shape_of(found: Any) -> str:
    """A nest of latents, or log-densities, in a few words."""
    if isinstance(found, dict):
        return f"a dict with the parts {sorted(map(str, found))}"
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)} parts"
    return f"one tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def check_log_q(log_q: object, latents: Latents, batch_shape: tuple[int, ...] | None = None) -> Tensor:
    """A log-proposal, known to be a floating tensor ``(num_samples, *batch)`` whose axes lead every latent's.

    Args:
        batch_shape: the proposal's batch, where it is known.
    """
    leaves = latent_leaves(latents)
    checked = check_log_density("the proposal's log_prob", log_q, leaves[0].shape[0])
    check_leading_axes(leaves, checked, batch_shape)
    return checked


def check_leading_axes(leaves: list[Tensor], log_q: Tensor, batch_shape: tuple[int, ...] | None) -> None:
    """Raise ValueError where a latent's leading axes are not those of the log-densities, ``(num_samples, *batch)``."""
    # The data axis of samples=torch.randn(3) would be taken for K; only a proposal that says its batch can tell.
    if batch_shape is not None and log_q.ndim <= len(batch_shape):
        raise ValueError(
            f"expected samples of shape (num_samples, *batch, *event) with the proposal's batch {tuple(batch_shape)}; "
            f"their log-density has shape {tuple(log_q.shape)}, which leaves no axis for the samples. Add it in front: "
            "samples.unsqueeze(0) is one sample."
        )
    for leaf in leaves:
        # A latent with fewer axes, or with a 1 where the batch has 3, would broadcast in the user's code, and DReG's
        # derivative of a broadcast is that of a sum: silently wrong.
        if leaf.shape[: log_q.ndim] != log_q.shape:
            raise ValueError(
                f"expected every latent to have the leading axes of the log-densities, {tuple(log_q.shape)} = "
                f"(num_samples, *batch); got a latent of shape {tuple(leaf.shape)}. Nothing is broadcast: expand the "
                "proposal's parameters over the batch, or keep global latents in an estimate of their own (batch ())."
            )


def check_latents(latents: Latents, num_samples: int | None) -> int:
    """The number of samples K that all latents share as their leading axis.

    Raises:
        TypeError: a latent is not a tensor.
        ValueError: a latent lacks the sample axis, or its size is not ``num_samples`` (where that is known).
    """
    for leaf in latent_leaves(latents):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"expected latents made of tensors (or tuples, dicts of them); got {type(leaf).__name__}.")
        if leaf.ndim == 0:
            raise ValueError("expected latents of shape (num_samples, *batch, *event); got a scalar tensor.")
        if num_samples is None:
            num_samples = leaf.shape[0]
        if leaf.shape[0] != num_samples:
            raise ValueError(
                f"expected latents with {num_samples} samples along their first axis; got shape {tuple(leaf.shape)}. "
                "sample must honour the sample_shape it is given: (num_samples, *batch, *event)."
            )
    if num_samples is None:
        raise ValueError("expected at least one latent tensor; got an empty tuple or dict.")
    return num_samples


def check_log_density(name: str, value: object, num_samples: int) -> Tensor:
    """``value``, known to be a floating tensor with ``num_samples`` along its first axis."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor of shape (num_samples, *batch); got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"{name} must return floating-point nats; got {value.dtype}. Convert it with .float().")
    # The axis alone: the batch is known from log_q later, and its message then can name both shapes.
    if value.ndim == 0 or value.shape[0] != num_samples:
        raise ValueError(
            f"{name} must return shape (num_samples, *batch) with num_samples = {num_samples}; got "
            f"{tuple(value.shape)}. Keep the sample axis first, and sum over event dimensions only."
        )
    return value


def check_log_joint(log_p: object, log_q: Tensor) -> Tensor:
    """``log_p``, known to match ``log_q`` in shape (nothing is broadcast), dtype and device.

    Raises:
        TypeError: not a floating tensor, or float32 against float64.
        ValueError: another shape or device than the log-proposal's.
    """
    log_p = check_log_density("log_joint", log_p, log_q.shape[0])
    if log_p.shape != log_q.shape:
        raise ValueError(_shape_message(tuple(log_p.shape), tuple(log_q.shape)))
    check_same_kind(log_p, log_q)
    return log_p


def check_same_kind(log_p: Tensor, log_q: Tensor) -> None:
    """Raise where the two log-densities live on different devices or have different precision."""
    if log_p.device != log_q.device:
        raise ValueError(
            f"log_joint must return a tensor on {log_q.device}, where the proposal's log_prob is; got "
            f"{log_p.device}. Move the model or the proposal."
        )
    # Under autocast one of the two is often half: both are promoted to float32, which loses nothing.
    if full_precision(log_p.dtype) != full_precision(log_q.dtype):
        raise TypeError(
            f"log_joint must return the dtype of the proposal's log_prob, {log_q.dtype}; got {log_p.dtype}. "
            "Convert one of them: half types are promoted, float32 and float64 are not mixed silently."
        )


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype that log-weights of ``dtype`` are computed in: at least float32."""
    return torch.float32 if dtype in _HALF else dtype


def _shape_message(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    message = f"log_joint must return shape {expected} = (num_samples, *batch), as log_prob does; got {found}."
    if len(found) > len(expected):
        return message + " Did you forget to sum log_joint over the event dimensions (Independent)?"
    if len(found) < len(expected):
        return message + " If log_joint is right, sum the proposal's log_prob over its event dimensions (Independent)."
    return message + " Sizes must be equal: nothing is broadcast. Check the order of the axes and the batch."
