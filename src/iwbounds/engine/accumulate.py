"""Gradients of a large batch in the memory of a small one.

Bounds never couple data, so a batch can be split and its backward run part by part, with no second pass over anything.
Samples of one datum are coupled by its normaliser: they are split (see :mod:`iwbounds.engine.chunks`) only where a
single datum does not fit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.parallel import DistributedDataParallel

from iwbounds.bounds.base import Bound
from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import Latents, check_latents, check_whole_number, latent_leaves, map_latents
from iwbounds.engine.chunks import run_in_two_passes
from iwbounds.engine.estimate import run
from iwbounds.engine.ranks import Ranks
from iwbounds.engine.request import DEFAULT_NUM_SAMPLES, Request, complete
from iwbounds.engine.result import Estimate
from iwbounds.gradients.base import Gradient
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal

__all__ = ["DEFAULT_LIVE_SAMPLES", "Model", "accumulate", "batch_slices"]

Model: TypeAlias = Callable[[Any], tuple[LogJoint, Distribution | Proposal | ExtendedProposal]]
"""From data to the log-joint and the proposal of that data."""

DEFAULT_LIVE_SAMPLES = 5000
"""Samples × data held at once. With this many rows, a step of a 784-200-200-50 VAE at K = 5000 costs what the whole
batch costs in one graph; far fewer make many small matrix products, which take longer."""


def accumulate(
    model: Model,
    x: Any,
    max_live_samples: int | None = None,
    *,
    bound: Bound = IWAE(),
    gradient: Gradient | None = None,
    proposal_bound: Bound | None = None,
    num_samples: int | None = None,
    chunk_size: int | None = None,
    backward_samples: int | None = None,
    samples: Latents | None = None,
    scaled_likelihood: bool = False,
    process_group: Any = None,
) -> Estimate:
    r"""Add the gradient of −mean(value) over a batch to ``.grad``, holding few samples in memory at once.

    The same gradient as ``(-iw.estimate(*model(x), **options).value.mean()).backward()``, part by part. Call the
    optimizer's ``zero_grad`` before and ``step`` after.

    Args:
        model: data to ``(log_joint, proposal)``, whose batch shape starts with the data's first axis. It is called once
            for each part of the data.
        x: a tensor ``(batch, …)``, or a tuple or dict of such; every tensor is sliced along its first axis. Where it
            comes from a network, that network gets its gradient too.
        max_live_samples: how many samples × data may be in memory at once; 5000 by default. Where one datum has more
            samples than this, its samples are chunked.
        bound, gradient, proposal_bound, num_samples, backward_samples, scaled_likelihood: those of
            :func:`iwbounds.estimate`.
        chunk_size: the parts are of so many samples of more data, and every sample is evaluated twice.
        samples: as in :func:`iwbounds.estimate`; sliced along their batch axis.
        process_group: a ``torch.distributed`` group whose ranks share the *data*: ``x`` is this rank's part of the
            batch, at least one datum, and the mean is over all of it. What is added to ``.grad`` is this rank's part of
            the gradient, and the **sum** over the ranks is the gradient. A ``DistributedDataParallel`` model is
            synchronised by the last backward alone; its mean over the ranks is allowed for, so that every rank is left
            with the gradient itself. (In :func:`iwbounds.estimate` the ranks share the samples.)

    Returns:
        The :class:`iwbounds.Estimate` of the whole batch, without a backward: it has been run.

    Raises:
        TypeError: ``max_live_samples`` is no whole number.
        ValueError: tensors in ``x`` differ in their first axis, ``max_live_samples`` is not positive, or the proposal's
            batch is not the data's; a ``DistributedDataParallel`` model without a ``process_group``, whose ranks would
            be synchronised by the first of several backwards alone; and whatever :func:`iwbounds.estimate` raises.
        RuntimeError: another rank of the ``process_group`` has failed, naming it.

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
    # Before the model is called for the first time: a wrong argument is to cost no forward.
    _check_model(model)
    count = _num_samples(samples, num_samples)
    chunk_size, step = _cut(count, chunk_size, max_live_samples)
    # Without gradients there is nothing to synchronise, and any model will do.
    wrapped = _find_distributed(model) if torch.is_grad_enabled() else []
    ranks = None
    if process_group is not None:
        shared = {"bound": bound, "gradient": gradient, "proposal_bound": proposal_bound, "count": count}
        ranks = Ranks(process_group, lambda: batch_size(x), **shared, backward_samples=backward_samples)
        _check_numbers(ranks.numbers)

    def request_of(inputs: Any, drawn: Latents | None) -> Request:
        return complete(
            *model(inputs),
            bound,
            gradient,
            proposal_bound=proposal_bound,
            num_samples=num_samples,
            samples=drawn,
            scaled_likelihood=scaled_likelihood,
            chunk_size=chunk_size,
            backward_samples=backward_samples,
        )

    with nullcontext() if ranks is None else ranks.together():
        _check_wrapped(model, wrapped, ranks, step < batch_size(x), chunk_size is not None)
        whole = _run_parts(request_of, x, samples, step, wrapped, ranks)
        # A running baseline is of the whole batch, and the same on all ranks.
        values = whole.value if ranks is None else ranks.gather(whole.value)[0]
        if ranks is not None and gradient is not None and gradient.learns and torch.is_grad_enabled():
            gradient.pool(ranks.gather_objects)
    if gradient is not None and torch.is_grad_enabled():
        gradient.update(values)
    return whole


def _cut(count: int, chunk_size: int | None, max_live_samples: int | None) -> tuple[int | None, int]:
    """The samples of a chunk (None: all of them), and the data of a part.

    Samples × data are within the budget: first all samples of fewer data, as one datum's samples share its encoder;
    samples are split only where a single datum exceeds it.
    """
    budget = DEFAULT_LIVE_SAMPLES if max_live_samples is None else _budget(max_live_samples)
    if chunk_size is not None:
        chunk_size = check_whole_number("chunk_size", chunk_size, 1, "Take at least 1; None takes all.")
    live = min(count if chunk_size is None else chunk_size, budget)
    # At least one datum, be its samples more than the budget: then its chunks are as small as asked.
    return (live if live < count else None), max(1, budget // live)


def _run_parts(
    request_of: Callable[[Any, Latents | None], Request],
    x: Any,
    samples: Latents | None,
    step: int,
    wrapped: list[DistributedDataParallel],
    ranks: Ranks | None,
) -> Estimate:
    """Every part of ``step`` data with its backward, and the results of all."""
    # The mean is over the whole batch, known before its parts: each part's backward is weighed by its share at once.
    size, total = batch_size(x), _total(batch_size(x), wrapped, ranks)
    whole: Estimate | None = None
    with _Boundary((x, samples)) as (data, given):
        for part in batch_slices(size, step):
            drawn = None if samples is None else map_latents(lambda z, part=part: z[:, part], given)
            inputs = map_latents(lambda leaf, part=part: leaf[part], data)
            last = part.stop >= size
            ready = functools.partial(ranks.confirm, last=False) if ranks is not None and last else _nothing
            weight = functools.partial(_weight, total, batch_size(inputs))
            # Only the last backward synchronises the ranks, which so may have different numbers of parts.
            with _unsynchronized([] if last else wrapped):
                found = _run_part(request_of(inputs, drawn), weight, ready, one_graph=bool(wrapped))
            whole = whole or _empty_like(found, size)
            # Written to their place: a list of parts to concatenate would hold them twice.
            whole.value[part], whole.log_weights[:, part] = found.value, found.log_weights
    assert whole is not None, "there is at least one part, be it empty"
    return whole


def _total(size: int, wrapped: list[DistributedDataParallel], ranks: Ranks | None) -> float:
    """How many data the mean is over, as this rank's backward is to count them."""
    if ranks is None:
        return size
    # DistributedDataParallel takes the mean over the ranks, where the sum is wanted.
    return sum(ranks.numbers) / (ranks.size if wrapped else 1)


def _run_part(
    request: Request, weight: Callable[[Tensor], float], ready: Callable[[], None], one_graph: bool
) -> Estimate:
    """Estimate some of the data and run their backward; what is left holds no graph.

    Args:
        ready: called before the backward.
        one_graph: whether there may be one backward alone.
    """
    if request.chunk_size is not None and request.backward_samples is None and not one_graph:
        ready()
        return run_in_two_passes(request, request.chunk_size, weight)
    # The graph of this part lives until its backward below, and no longer: that is the memory of one part.
    part = run(request)
    upstream = torch.full_like(part.value, weight(part.value))
    ready()
    if part.value.requires_grad:
        part.value.backward(upstream)  # type: ignore[no-untyped-call]
    # Detached: the backward has been run, and a second one would count every gradient twice.
    return Estimate(part.value.detach(), part.log_weights, part.direction, independent=part.independent)


def _nothing() -> None:
    """Where there are no other ranks to wait for."""


@contextmanager
def _unsynchronized(modules: list[DistributedDataParallel]) -> Iterator[None]:
    """Forwards and backwards that leave the gradients on their rank."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.no_sync())
        yield


class _Boundary:
    """Cuts the graph that leads to some inputs, so that each part can run its own backward; at the end the gradient
    that the parts have left at the cut is sent on, once for all of them: their graphs may share nodes."""

    def __init__(self, inputs: Any) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._cut = map_latents(self._leaf, inputs)

    def _leaf(self, z: Any) -> Any:
        if not (isinstance(z, Tensor) and z.requires_grad and z.grad_fn is not None and torch.is_grad_enabled()):
            return z
        # Each part backpropagates to this leaf and no further: the network that made x is walked once, at the end.
        leaf = z.detach().requires_grad_()
        self._pairs.append((z, leaf))
        return leaf

    def __enter__(self) -> Any:
        return self._cut

    def __exit__(self, failed: object, *_: object) -> None:
        reached = [(z, leaf.grad) for z, leaf in self._pairs if leaf.grad is not None]
        if failed is None and reached:
            torch.autograd.backward([z for z, _ in reached], [grad for _, grad in reached])


_DRIFT = (
    "accumulate runs several backwards, and DistributedDataParallel synchronises the ranks in the first of them alone: "
    "their gradients would drift apart. Pass process_group= (the wrapped model's), so that the last one synchronises; "
    "or pass the module that it wraps (model.module) and sum the gradients yourself afterwards."
)


def _check_numbers(numbers: list[int]) -> None:
    # torch's Independent, for one, has no log-density of an empty batch; and a rank without a backward would leave
    # those that synchronise in it waiting.
    if 0 in numbers:
        raise ValueError(
            f"expected at least one datum on every rank of process_group; rank {numbers.index(0)} has none (the ranks "
            f"have {numbers}). Use larger batches, or drop those that are smaller than the number of ranks."
        )


def _check_wrapped(
    model: Any, wrapped: list[DistributedDataParallel], ranks: Ranks | None, in_parts: bool, chunked: bool
) -> None:
    """Raise ValueError where ``DistributedDataParallel`` would not be synchronised once, by the last backward."""
    if not wrapped:
        return
    if ranks is None:
        if in_parts or chunked:
            raise ValueError(_DRIFT)
        return
    for module in wrapped:
        size = module.process_group.size()
        if size != ranks.size:
            raise ValueError(
                f"expected process_group to be that of the DistributedDataParallel model, of {size} ranks; got one of "
                f"{ranks.size}. Pass model.process_group."
            )
        if module.find_unused_parameters or module.static_graph:
            raise ValueError(
                "expected DistributedDataParallel without find_unused_parameters and static_graph: what the model "
                "returns are callables, in which it finds no parameter, and which are called after its forward."
            )
    if chunked and wrapped != [model]:
        raise ValueError(
            "expected DistributedDataParallel around the whole model where the samples of a datum are chunked: their "
            "densities are evaluated again in the backward, where a wrapped module inside may not be called. Wrap the "
            "module that returns (log_joint, proposal), or raise max_live_samples."
        )


def _find_distributed(model: Any) -> list[DistributedDataParallel]:
    """The DistributedDataParallel modules that a callable is, holds, or closes over."""
    if isinstance(model, torch.nn.Module):
        return [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if isinstance(model, functools.partial):
        return [m for part in (model.func, *model.args, *model.keywords.values()) for m in _find_distributed(part)]
    # A model is often a function around a wrapped module: what it closes over, owns, or names is looked at too.
    cells = [cell.cell_contents for cell in getattr(model, "__closure__", None) or () if _is_filled(cell)]
    owner = getattr(model, "__self__", None)
    used = getattr(getattr(model, "__code__", None), "co_names", ())
    named = [getattr(model, "__globals__", {}).get(name) for name in used]
    modules = [owner, *vars(owner).values()] if hasattr(owner, "__dict__") else [owner]
    parts = [part for part in [*cells, *named, *modules] if isinstance(part, torch.nn.Module)]
    return [module for part in parts for module in _find_distributed(part)]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that is not bound yet
        return False


def _check_model(model: object) -> None:
    if isinstance(model, type) or not callable(model):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"expected model to be a callable from data to (log_joint, proposal); got {given}. It comes first, then "
            "the data."
        )


def _budget(max_live_samples: Any) -> int:
    if isinstance(max_live_samples, Bound | Gradient):
        kind = "bound" if isinstance(max_live_samples, Bound) else "gradient"
        raise TypeError(
            f"expected max_live_samples, a whole number, as the third argument of accumulate; got "
            f"{max_live_samples!r}. Pass it by name: {kind}={max_live_samples!r}."
        )
    return check_whole_number("max_live_samples", max_live_samples, 1, "Hold at least 1.")


def _weight(size: float, part_size: int, value: Tensor) -> float:
    """What −mean(value) over a batch of this size weighs one datum by; ``value`` is that of a part of the batch."""
    if value.shape[:1] != (part_size,):
        raise ValueError(
            f"expected model to return a proposal whose batch shape starts with the {part_size} data it was given; got "
            f"{tuple(value.shape)}. Expand its parameters over the data."
        )
    # An empty batch has no mean, and no gradient.
    return -1 / (size * value[:1].numel()) if value.numel() else 0.0


def batch_size(x: Any) -> int:
    """The first axis' size that all tensors in ``x`` share."""
    # A set: that all tensors agree and what they agree on, in one.
    sizes = {leaf.shape[0] for leaf in latent_leaves(x)}
    if len(sizes) != 1:
        raise ValueError(f"expected tensors in x that share their first axis (the batch); got sizes {sorted(sizes)}.")
    return int(sizes.pop())


def batch_slices(size: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` data that cover ``size``; one empty slice for an empty batch."""
    for start in range(0, max(size, 1), step):
        yield slice(start, start + step)


def _num_samples(samples: Latents | None, num_samples: int | None) -> int:
    if num_samples is not None:
        num_samples = check_whole_number("num_samples", num_samples, 1, "Draw at least 1.")
    if samples is not None:
        return check_latents(samples, num_samples)
    return DEFAULT_NUM_SAMPLES if num_samples is None else num_samples


def _empty_like(part: Estimate, size: int) -> Estimate:
    """The whole batch's results, to be filled in: made once, as small results that are kept between the large buffers
    of the parts would keep the C library's allocator from using their memory again."""
    value = part.value.new_empty((size, *part.value.shape[1:]))
    log_weights = part.log_weights.new_empty((part.num_samples, size, *part.log_weights.shape[2:]))
    return Estimate(value, log_weights, part.direction, independent=part.independent)
