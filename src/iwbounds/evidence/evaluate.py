r"""The evaluation loop: every datum once, many samples each, in constant memory, from seeds that settle every draw.

The draws of datum block b and sample block s come from a seed made of (seed, first datum of b, s) alone. A sample block
has a size that depends on the data block's, not on ``chunk_size``: so the samples are the same however they are cut,
in whatever order they are taken, and after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parallel import DistributedDataParallel

from iwbounds.bounds import IWAE, Bound, Direction
from iwbounds.certificates import check_confidence
from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.engine import estimate
from iwbounds.engine.ranks import Ranks
from iwbounds.evidence.batches import Batch, count_data, numbered_batches
from iwbounds.evidence.parts import evaluate_parts, own_count
from iwbounds.evidence.progress import Progress
from iwbounds.evidence.report import EvidenceReport
from iwbounds.evidence.state import Plan, State, Sums, fingerprint
from iwbounds.proposals import LogJoint, Proposal, as_proposal

__all__ = ["evaluate"]

_ROWS = {"cpu": 5_000, "other": 100_000}
"""Samples × data at once. On a CPU, 50 samples of 100 images were 1.75 times faster than 1000; a GPU wants more."""


def evaluate(
    model: Callable[[Any], tuple[LogJoint, Distribution | Proposal]],
    data: Any,
    bound: Bound = IWAE(),
    num_samples: int = 5000,
    chunk_size: int | None = None,
    confidence: float = 0.99,
    progress: bool = True,
    seed: int | None = None,
    *,
    state_file: str | Path | None = None,
    first_datum: int = 0,
    first_sample: int = 0,
    process_group: Any = None,
) -> EvidenceReport:
    r"""The log evidence of every datum of a data set, with its errors, and what can be certified of the mean.

    Streams over data and samples without gradients and keeps per datum a few float64 sums and the 6√K largest weights
    (for k̂). The numbers depend on ``seed`` and on how the data are batched (a whole data set is cut into batches of
    100), not on ``chunk_size``, the order of work or interruptions; a float32 network may round differently in other
    chunks.
    PyTorch's global random state is left as it was.

    Direction: that of ``bound``. ``report.certified_nll`` holds with probability ``confidence`` at any number of
    samples, by Markov's inequality; it is refused (None, the reason in the report) for a ``bound`` that is not LOWER,
    for NaN and +inf, for a proposal with dependent draws, and where data share their draws.

    Args:
        model: one batch of data to ``(log_joint, proposal)``, whose batch shape is the number of data. Switched to
            evaluation mode by you.
        data: a tensor, or a tuple or dict of tensors with one row per datum; or an iterable of batches, such as a
            ``DataLoader`` (a list of one tensor, as it makes of ``TensorDataset(x)``, is passed on as that tensor).
        bound: what to estimate. Any but IWAE needs all log-weights of a batch at once: ``num_samples`` × batch floats.
        num_samples: K, for every datum.
        chunk_size: at most so many samples of a batch in memory at once; by default 5000 samples × data, 100 000 on a
            GPU, which it cannot raise. For a ``DataLoader``, the batch size matters as well.
        confidence: of the certificate.
        progress: show a bar with the running NLL on standard error (a plain line without tqdm).
        seed: settles every draw; None takes one from the operating system. It is in the report.
        state_file: where to keep the state, so that the same call goes on where an interrupted one stopped. A finished
            file gives its report at once; :meth:`EvidenceReport.load` reads it.
        first_datum: index of the first datum: gives the data of another process other indices and draws. A multiple
            of the batch size gives the numbers of one evaluation of all.
        first_sample: number of the first sample, a multiple of the block of samples (the error names it), for more
            samples of the same data, or for a share of them in another process.
        process_group: a ``torch.distributed`` group whose ranks share the *data*: ``data`` is this rank's part, of any
            size, and the parts are numbered one after the other, from ``first_datum`` on. All ranks return the report
            of all data. It is that of one process where the parts begin at multiples of the batch size. Each rank
            keeps its state in a file of its own beside ``state_file``, into which rank 0 writes the report. The first
            ranks to finish wait for the last, up to the group's timeout.

    Returns:
        An :class:`iwbounds.EvidenceReport`.

    Raises:
        ValueError: a model in training mode with dropout or batch normalisation, no data, a number out of range, a
            proposal whose batch is not the data, or a ``state_file`` of another evaluation; ranks of a
            ``process_group`` with other models or options, with the same data, or with data of unknown number.
        RuntimeError: another rank of the ``process_group`` has failed, naming it; there is no report of a part.
        TypeError: data of an unknown kind; and whatever :func:`iwbounds.estimate` raises.

    >>> from torch.distributions import Normal
    >>> def model(x):
    ...     return lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x), Normal(x / 2, 0.8)
    >>> report = evaluate(model, torch.zeros(200), num_samples=1000, progress=False, seed=0)
    >>> round(report.nll, 3), round(report.certified_nll, 3)
    (1.266, 1.289)
    """
    path = None if state_file is None else Path(state_file)
    if isinstance(model, DistributedDataParallel):
        # Its forward may exchange buffers with ranks that have another number of batches.
        model = model.module

    def part(first: int, seed: int | None, path: Path | None, show: bool) -> State:
        """The evaluation of ``data``, numbered from ``first``."""
        _check(model, bound, num_samples, chunk_size, first, first_sample)
        plan = Plan(bound, num_samples, chunk_size, check_confidence(confidence), seed, first_sample)
        return _evaluate(model, data, State(plan, model, path), first, show)

    if process_group is None:
        return part(first_datum, seed, path, progress).report()
    shared: dict[str, object] = {"bound": bound, "num_samples": num_samples, "confidence": confidence, "seed": seed}
    shared |= {"first_datum": first_datum, "first_sample": first_sample, "state_file": path is not None}
    ranks = Ranks(process_group, lambda: own_count(data), **shared, model=fingerprint(model))
    return evaluate_parts(ranks, part, seed, path, first_datum, progress)


def _evaluate(
    model: Callable[[Any], tuple[LogJoint, Distribution | Proposal]], data: Any, state: State, first: int, show: bool
) -> State:
    total = count_data(data)
    with torch.no_grad(), Progress("evaluate", total, "data", show) as bar:
        try:
            for batch in numbered_batches(data, first):
                if state.holds(batch):
                    bar.advance(batch.size, state.note())
                else:
                    _evaluate_batch(model, batch, state.plan, state, bar)
            state.finish()
        finally:
            state.save()
    return state


def _check(
    model: object, bound: Bound, num_samples: int, chunk_size: int | None, first_datum: int, first_sample: int
) -> None:
    if num_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"expected num_samples and chunk_size of at least 1; got {num_samples} and {chunk_size}.")
    if first_datum < 0 or first_sample < 0:
        raise ValueError(f"expected first_datum and first_sample >= 0; got {first_datum} and {first_sample}.")
    if first_sample and not isinstance(bound, IWAE):
        raise ValueError(f"expected first_sample = 0 with {bound!r}: only samples of IWAE can be merged later.")
    bound.check_count(num_samples)
    if isinstance(model, nn.Module):
        _check_mode(model)


def _check_mode(model: nn.Module) -> None:
    moody = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        if isinstance(module, moody) and module.training:
            raise ValueError(
                f"expected a model in evaluation mode; its {type(module).__name__} {name!r} is in training mode, so "
                "that the evidence would be that of another model in every batch. Call model.eval() first."
            )


def _evaluate_batch(
    model: Callable[[Any], tuple[LogJoint, Distribution | Proposal]],
    batch: Batch,
    plan: Plan,
    state: State,
    bar: Progress,
) -> None:
    with plan.seeded(batch, "model"):
        log_joint, proposal = model(batch.x)
    sums = state.resumed(batch)
    rows = _sample_block(batch, plan)
    bar.advance(batch.size * sums.count / plan.num_samples, state.note())
    while sums.count < plan.num_samples:
        first = plan.first + sums.count
        size = min(rows, plan.stop - first)
        with plan.seeded(batch, first // rows):
            log_w, shared = _log_weights(log_joint, proposal, size, plan.chunk_size)
        _check_batch(log_w, size, batch)
        sums = sums.added(log_w, shared, plan)
        bar.advance(batch.size * size / plan.num_samples, state.note())
        state.note_partial(batch, sums)
    with plan.seeded(batch, "bound"):
        state.add(_report(batch, plan, sums.flushed(), _refusals(plan.bound, proposal, sums.shared)))


def _report(batch: Batch, plan: Plan, sums: Sums, refusals: set[str]) -> EvidenceReport:
    assert plan.seed is not None
    values = None if plan.streams else plan.bound(torch.cat(sums.kept).double()).cpu()
    return EvidenceReport(
        index=torch.arange(batch.start, batch.stop),
        weights=sums.weights,
        bound_values=values,
        dead_weights=sums.dead,
        bad_weights=sums.bad,
        bound=repr(plan.bound),
        direction=plan.bound.direction,
        confidence=plan.confidence,
        refusals=tuple(sorted(refusals)),
        batches=((batch.start, batch.stop, batch.digest),),
        draws=((plan.seed, plan.first, plan.stop),),
    )


def _refusals(bound: Bound, proposal: Distribution | Proposal, shared: bool) -> set[str]:
    """Why Markov's inequality would say nothing."""
    found = set()
    if bound.direction is not Direction.LOWER:
        found.add(f"{bound!r} is not a lower bound (direction {bound.direction.value})")
    if not getattr(as_proposal(proposal), "independent", True):
        found.add("the proposal's draws depend on each other (independent=False)")
    if shared:
        found.add("the data of a batch share their draws, so that their estimates are not independent")
    return found


def _sample_block(batch: Batch, plan: Plan) -> int:
    """How many samples are drawn from one seed: it must not depend on ``chunk_size``."""
    devices = {leaf.device.type for leaf in latent_leaves(batch.x) if isinstance(leaf, Tensor)}
    rows = _ROWS["cpu" if devices == {"cpu"} else "other"]
    block = min(1000, max(16, rows // batch.size))
    if plan.first % block:
        raise ValueError(
            f"expected first_sample to be a multiple of {block}, the samples that one seed draws for a batch of "
            f"{batch.size} data; got {plan.first}. Take {math.ceil(plan.first / block) * block}."
        )
    return block


def _log_weights(
    log_joint: LogJoint, proposal: Distribution | Proposal, size: int, chunk_size: int | None
) -> tuple[Tensor, bool]:
    """Log-weights of one block of samples ``(size, *batch)``, and whether its data were given the same draws."""
    plain = as_proposal(proposal)
    # Latents that a proposal extends (hierarchies, paths), or recognises by identity, cannot be cut: the whole block.
    if type(plain) is not Proposal or getattr(plain, "needs_own_samples", False):
        return estimate(log_joint, proposal, num_samples=size).log_weights, False
    latents = plain.sample((size,))
    step = size if chunk_size is None else min(chunk_size, size)
    chunks = [
        estimate(log_joint, proposal, samples=_rows(latents, slice(start, start + step))).log_weights
        for start in range(0, size, step)
    ]
    return torch.cat(chunks), plain.reparameterized is True and _shared(latents, chunks[0])


def _rows(latents: Latents, rows: slice) -> Latents:
    return map_latents(lambda z: z[rows], latents)


def _shared(latents: Latents, log_w: Tensor) -> bool:
    """Whether the first two data have equal latents throughout: with continuous draws of their own, impossible."""
    if log_w.ndim != 2 or log_w.shape[1] < 2:
        return False
    return all(bool((z[:, 0] == z[:, 1]).all()) for z in latent_leaves(latents) if z.ndim > 1)


def _check_batch(log_w: Tensor, size: int, batch: Batch) -> None:
    if log_w.shape != (size, batch.size):
        raise ValueError(
            f"expected model to return a log_joint and a proposal of batch shape ({batch.size},), one per datum of "
            f"the batch it was given; got {tuple(log_w.shape[1:])}. Expand the proposal over the data, and sum over "
            "event dimensions."
        )
