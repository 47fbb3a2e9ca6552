"""Gradients of a large batch in the memory of a small one.

Bounds never couple data, so a batch can be split and its backward run part by part, with no second pass over anything.
Samples of one datum are coupled by its normaliser: they are split (see :mod:`iwbounds.engine.chunks`) only where a
single datum does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import check_latents
from iwbounds.engine.draws import DEFAULT_NUM_SAMPLES, prepare
from iwbounds.engine.estimate import estimate
from iwbounds.engine.result import Estimate
from iwbounds.engine.two_passes import Share, run_in_two_passes
from iwbounds.latents import Latents, latent_leaves, map_latents
from iwbounds.proposals import LogJoint, Proposal

__all__ = ["DEFAULT_LIVE_SAMPLES", "Model", "accumulate", "batch_slices"]

Model: TypeAlias = Callable[[Any], tuple[LogJoint, Distribution | Proposal]]
"""From data to the log-joint and the proposal of that data."""

DEFAULT_LIVE_SAMPLES = 5000
"""Samples × data held at once. With this many rows, a step of a 784-200-200-50 VAE at K = 5000 costs what the whole
batch costs in one graph; far fewer make many small matrix products, which take longer."""


def accumulate(model: Model, x: Any, max_live_samples: int | None = None, **options: Any) -> Estimate:
    r"""Add the gradient of −mean(value) over a batch to ``.grad``, holding few samples in memory at once.

    The same gradient as ``(-iw.estimate(*model(x), **options).value.mean()).backward()``, part by part. Call the
    optimizer's ``zero_grad`` before and ``step`` after.

    Args:
        model: data to ``(log_joint, proposal)``, whose batch shape starts with the data's first axis.
        x: a tensor ``(batch, …)``, or a tuple or dict of such; every tensor is sliced along its first axis.
        max_live_samples: how many samples × data may be in memory at once; 5000 by default. Where one datum has more
            samples than this, its samples are chunked.
        options: those of :func:`iwbounds.estimate`; ``samples`` are sliced along their batch axis. With ``chunk_size``
            the parts are of so many samples of more data, and every sample is evaluated twice.

    Returns:
        The :class:`iwbounds.Estimate` of the whole batch, without a backward: it has been run.

    Raises:
        ValueError: tensors in ``x`` differ in their first axis, ``max_live_samples`` is not positive, or the proposal's
            batch is not the data's; and whatever :func:`iwbounds.estimate` raises.

    >>> import iwbounds as iw
    >>> loc = torch.nn.Parameter(torch.zeros(()))
    >>> def model(x):
    ...     q = torch.distributions.Normal(loc.expand(len(x)), 1.0)
    ...     return lambda z: torch.distributions.Normal(z, 1.0).log_prob(x), q
    >>> iw.accumulate(model, torch.ones(100), max_live_samples=300, num_samples=20).value.shape
    torch.Size([100])
    >>> bool(loc.grad < 0)
    True
    """
    budget = DEFAULT_LIVE_SAMPLES if max_live_samples is None else max_live_samples
    if budget < 1:
        raise ValueError(f"expected max_live_samples of at least 1; got {budget}.")
    samples = options.pop("samples", None)
    live = _samples_at_once(_num_samples(samples, options), budget, options)
    size = batch_size(x)
    whole: Estimate | None = None
    for part in batch_slices(size, max(1, budget // live)):
        drawn = None if samples is None else map_latents(lambda z, part=part: z[:, part], samples)
        inputs = map_latents(lambda leaf, part=part: leaf[part], x)
        found = _run_part(*model(inputs), options | {"samples": drawn}, partial(_share, size, batch_size(inputs)))
        whole = whole or _room_for(found, size)
        whole.value[part], whole.log_weights[:, part] = found.value, found.log_weights
    assert whole is not None, "there is at least one part, be it empty"
    return whole


def _run_part(
    log_joint: LogJoint, proposal: Distribution | Proposal, options: dict[str, Any], share: Share
) -> Estimate:
    """Estimate some of the data and run their backward; what is left holds no graph."""
    if options.get("chunk_size") is not None and options.get("backward_samples") is None:
        chosen = {key: value for key, value in options.items() if key not in ("chunk_size", "backward_samples")}
        return run_in_two_passes(prepare(log_joint, proposal, **chosen), options["chunk_size"], share)
    part = estimate(log_joint, proposal, **options)
    upstream = torch.full_like(part.value, share(part.value))
    if part.value.requires_grad:
        part.value.backward(upstream)  # type: ignore[no-untyped-call]
    return Estimate(part.value.detach(), part.log_weights, part.direction)


def _share(size: int, part_size: int, value: Tensor) -> float:
    """What −mean(value) over a batch of this size weighs one datum by; ``value`` is that of a part of the batch."""
    if value.shape[:1] != (part_size,):
        raise ValueError(
            f"expected model to return a proposal whose batch shape starts with the {part_size} data it was given; got "
            f"{tuple(value.shape)}. Expand its parameters over the data."
        )
    return -1 / max(1, size * value[:1].numel())


def batch_size(x: Any) -> int:
    """The first axis' size that all tensors in ``x`` share."""
    sizes = {leaf.shape[0] for leaf in latent_leaves(x)}
    if len(sizes) != 1:
        raise ValueError(f"expected tensors in x that share their first axis (the batch); got sizes {sorted(sizes)}.")
    return int(sizes.pop())


def batch_slices(size: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` data that cover ``size``; one empty slice for an empty batch."""
    for start in range(0, max(size, 1), step):
        yield slice(start, start + step)


def _num_samples(samples: Latents | None, options: dict[str, Any]) -> int:
    count = options.get("num_samples")
    if samples is not None:
        return check_latents(samples, count)
    return DEFAULT_NUM_SAMPLES if count is None else count


def _samples_at_once(count: int, budget: int, options: dict[str, Any]) -> int:
    """All of a datum's, or as many as ``chunk_size`` (set here if need be) and the budget allow."""
    chunk_size = options.get("chunk_size")
    live = min(count if chunk_size is None else chunk_size, budget)
    if live < count:
        options["chunk_size"] = live
    return max(1, live)


def _room_for(part: Estimate, size: int) -> Estimate:
    """The whole batch's results, to be filled in: made once, as small results that are kept between the large buffers
    of the parts would keep the C library's allocator from using their memory again."""
    value = part.value.new_empty((size, *part.value.shape[1:]))
    log_weights = part.log_weights.new_empty((part.num_samples, size, *part.log_weights.shape[2:]))
    return Estimate(value, log_weights, part.direction)
