"""Contracts on shapes, dtypes and devices. Each message says what was expected, what was found, and what to do.

Values are never inspected: that would synchronise a GPU and break graphs.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from iwbounds.latents import Latents, latent_leaves

__all__ = [
    "check_latents",
    "check_log_density",
    "check_log_joint",
    "check_same_kind",
    "check_whole_number",
    "full_precision",
]

_HALF = (torch.float16, torch.bfloat16)


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
    if full_precision(log_p.dtype) != full_precision(log_q.dtype):
        raise TypeError(
            f"log_joint must return the dtype of the proposal's log_prob, {log_q.dtype}; got {log_p.dtype}. "
            "Convert one of them: half types are promoted, float32 and float64 are not mixed silently."
        )


def check_whole_number(name: str, value: Any, least: int, hint: str = "") -> int:
    """``value`` as a Python integer; those of numpy are integers too, booleans and fractions are not.

    Raises:
        ValueError: another type, or a number below ``least``; the message ends with ``hint``.

    >>> import numpy as np
    >>> check_whole_number("order", np.int64(2), 0)
    2
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"expected {name} to be a whole number, {least} or more; got {value!r}. {hint}".rstrip())
    return int(value)


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
