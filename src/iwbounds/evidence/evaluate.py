r"""The evaluation loop: every datum once, many samples each, in constant memory, from seeds that settle every draw.

The draws of datum block b and sample block s come from a seed made of (seed, first datum of b, s) alone. A sample block
has a size that depends on the data block's, not on ``chunk_size``: so the samples are the same however they are cut,
in whatever order they are taken, and after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parallel import DistributedDataParallel

from iwbounds.bounds.base import Bound, Direction
from iwbounds.bounds.iwae import IWAE
from iwbounds.certificates import check_confidence
from iwbounds.checks import Latents, check_whole_number, latent_leaves, map_latents
from iwbounds.engine.ranks import Ranks
from iwbounds.evidence.batches import Batch, count_data, numbered_batches
from iwbounds.evidence.parts import evaluate_parts, own_count
from iwbounds.evidence.progress import Progress
from iwbounds.evidence.report import EvidenceReport
from iwbounds.evidence.state import Plan, State, Sums, fingerprint
from iwbounds.evidence.weighted import Weighted
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal

__all__ = ["evaluate"]

Model: TypeAlias = Callable[[Any], tuple[LogJoint, Distribution | Proposal | ExtendedProposal]]

_ROWS = {"cpu": 5_000, "other": 100_000}
"""Samples × data at once. On a CPU, 50 samples of 100 images were 1.75 times faster than 1000; a GPU wants more."""


def evaluate(
    model: Model,
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
    samples_per_randomisation: int | None = None,
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
    for NaN and +inf, for a proposal with dependent draws (unless ``samples_per_randomisation`` says that separate calls
    of it are independent), and where data share their draws.

    Args:
        model: one batch of data to ``(log_joint, proposal)``, whose batch shape is the number of data. Switched to
            evaluation mode by you.
        data: a tensor, or a tuple or dict of tensors with one row per datum; or an iterable of batches, such as a
            ``DataLoader`` (a list of one tensor, as it makes of ``TensorDataset(x)``, is passed on as that tensor).
        bound: what to estimate. Any but IWAE needs all log-weights of a batch at once: ``num_samples`` × batch floats.
        num_samples: K, for every datum. A bound that chooses K itself (:class:`iwbounds.UMLMC`) draws one level for
            each datum, and does not read it.
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
        samples_per_randomisation: for draws that depend on each other within one call of the proposal, and not between
            calls (:class:`iwbounds.QuasiRandom`, :class:`iwbounds.StratifiedMixture`, antithetic pairs): how many to
            draw in one call. The mean weight of each call then counts as one independent weight, for the errors, ESS,
            k̂ and the certificate. ``num_samples`` is a multiple of it.
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
    if bound.chooses_num_samples:
        # What all data draw; those few that draw a higher level are evaluated anew, in _at_levels.
        num_samples = bound.at_level(0).min_samples  # type: ignore[attr-defined]
    per_call = 1 if samples_per_randomisation is None else samples_per_randomisation
    path = None if state_file is None else Path(state_file)
    if isinstance(model, DistributedDataParallel):
        # Its forward may exchange buffers with ranks that have another number of batches.
        model = model.module

    def part(first: int, seed: int | None, path: Path | None, show: bool) -> State:
        """The evaluation of ``data``, numbered from ``first``."""
        _check(model, bound, num_samples, chunk_size, first, first_sample, per_call)
        plan = Plan(bound, num_samples, chunk_size, check_confidence(confidence), seed, first_sample, per_call)
        return _evaluate(model, data, State(plan, model, path), first, show)

    if process_group is None:
        return part(first_datum, seed, path, progress).report()
    # Ranks that differ in any of these would put two evaluations into one report: compared before any work is done.
    shared: dict[str, object] = {"bound": bound, "num_samples": num_samples, "confidence": confidence, "seed": seed}
    # Of the state file whether there is one: its path may be another on each machine.
    shared |= {"first_datum": first_datum, "first_sample": first_sample, "state_file": path is not None}
    shared |= {"samples_per_randomisation": per_call}
    ranks = Ranks(process_group, lambda: own_count(data), **shared, model=fingerprint(model))
    return evaluate_parts(ranks, part, seed, path, first_datum, progress)


def _evaluate(model: Model, data: Any, state: State, first: int, show: bool) -> State:
    total = count_data(data)
    with torch.no_grad(), Progress("evaluate", total, "data", show) as bar:
        try:
            for batch in numbered_batches(data, first):
                if state.holds(batch):
                    bar.advance(batch.size, state.note())
                else:
                    _evaluate_batch(model, batch, state, bar)
            state.finish()
        finally:
            # After an error or an interruption too: the next call goes on from what is finished.
            state.save()
    return state


def _check(
    model: object,
    bound: Bound,
    num_samples: int,
    chunk_size: int | None,
    first_datum: int,
    first_sample: int,
    per_call: int,
) -> None:
    check_whole_number("samples_per_randomisation", per_call, 1)
    if num_samples % per_call:
        raise ValueError(
            f"expected num_samples to be a multiple of samples_per_randomisation = {per_call}; got {num_samples}. "
            f"Take {math.ceil(num_samples / per_call) * per_call}."
        )
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
    # Private bases, but the only ones that all variants (SyncBatchNorm, AlphaDropout, …) have in common.
    moody = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        if isinstance(module, moody) and module.training:
            raise ValueError(
                f"expected a model in evaluation mode; its {type(module).__name__} {name!r} is in training mode, so "
                "that the evidence would be that of another model in every batch. Call model.eval() first."
            )


def _evaluate_batch(model: Model, batch: Batch, state: State, bar: Progress) -> None:
    plan = state.plan
    # A model may draw while it is called (random features, a mini-batch): the same numbers in every evaluation.
    with plan.seeded(batch, "model"):
        weighted = Weighted.of(*model(batch.x))
    sums = state.resumed(batch)
    rows = _sample_block(batch, plan)
    bar.advance(batch.size * sums.count / plan.num_samples, state.note())
    while sums.count < plan.num_samples:
        first = plan.first + sums.count
        size = min(rows, plan.stop - first)
        # By the number of the block, not by how many came before in this process: a resumed run meets the same draws.
        with plan.seeded(batch, first // rows):
            log_w, shared = _log_weights(weighted, size, plan.chunk_size)
        _check_batch(log_w, size, batch)
        sums = sums.added(log_w, shared, plan)
        bar.advance(batch.size * size / plan.num_samples, state.note())
        state.note_partial(batch, sums)
    # SUMO and U-MLMC draw here, from a seed of their own: not from where the samples have left the generator.
    with plan.seeded(batch, "bound"):
        independent = weighted.proposal.independent
        values = _values(model, batch, plan, sums, independent)
        refusals = _refusals(plan, independent, sums.shared)
        state.add(_report(batch, plan, sums.flushed(), values, refusals, independent))


def _report(
    batch: Batch, plan: Plan, sums: Sums, values: Tensor | None, refusals: set[str], independent: bool
) -> EvidenceReport:
    # State has drawn one, or found it in the file, where the caller gave none.
    assert plan.seed is not None
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
        samples_per_randomisation=plan.per_call,
        # What the weights are then, means of separate calls, is independent.
        independent=independent or plan.per_call > 1,
    )


def _values(model: Model, batch: Batch, plan: Plan, sums: Sums, independent: bool) -> Tensor | None:
    """Of a bound that sums of weights do not give."""
    if plan.streams:
        return None
    # float64, as the sums that give IWAE: bounds of one run differ by less than float32 rounds.
    log_w = torch.cat(sums.kept).double()
    if plan.bound.chooses_num_samples:
        return _at_levels(model, batch, plan, log_w, independent).cpu()
    return plan.bound(log_w).cpu()


def _at_levels(model: Model, batch: Batch, plan: Plan, log_w: Tensor, independent: bool) -> Tensor:
    """U-MLMC with a level for each datum: one for a whole batch would make its data's errors one and the same."""
    bound: Any = plan.bound
    if not independent:
        raise ValueError(f"{bound!r} is exact for independent samples; got a proposal with independent=False.")
    levels = torch.tensor([bound.draw_level() for _ in range(batch.size)])
    values = log_w.new_empty(batch.size)
    # Data of one level together: a call of the model for each level, not for each datum.
    for level in sorted(set(levels.tolist())):
        rows, one = (levels == level).nonzero().squeeze(1).to(log_w.device), bound.at_level(level)
        # Level 0 uses the samples that all data have; a higher one takes more, drawn for its data alone.
        if level:
            part = map_latents(lambda leaf, rows=rows: leaf[rows] if isinstance(leaf, Tensor) else leaf, batch.x)
            values[rows] = one(_log_weights(Weighted.of(*model(part)), one.min_samples, plan.chunk_size)[0].double())
        else:
            values[rows] = one(log_w[:, rows])
    return values


def _refusals(plan: Plan, independent: bool, shared: bool) -> set[str]:
    """Why Markov's inequality would say nothing."""
    bound, found = plan.bound, set()
    if bound.direction is not Direction.LOWER:
        found.add(f"{bound!r} is not a lower bound (direction {bound.direction.value})")
    elif bound.chooses_num_samples:
        found.add(f"{bound!r} is a difference of bounds at a random level, which may be far above log p(x)")
    if not independent and plan.per_call == 1:
        found.add(
            "the proposal's draws depend on each other (independent=False); where separate calls of it do not, say "
            "samples_per_randomisation="
        )
    if shared:
        found.add("the data of a batch share their draws, so that their estimates are not independent")
    return found


def _sample_block(batch: Batch, plan: Plan) -> int:
    """How many samples are drawn from one seed: it must not depend on ``chunk_size``."""
    if plan.per_call > 1:
        return _whole_calls(plan)
    devices = {leaf.device.type for leaf in latent_leaves(batch.x) if isinstance(leaf, Tensor)}
    rows = _ROWS["cpu" if devices == {"cpu"} else "other"]
    # torch fills normals 16 at a time; and between blocks, none of them long, the state may be written.
    block = min(1000, max(16, rows // batch.size))
    if plan.first % block:
        raise ValueError(
            f"expected first_sample to be a multiple of {block}, the samples that one seed draws for a batch of "
            f"{batch.size} data; got {plan.first}. Take {math.ceil(plan.first / block) * block}."
        )
    return block


def _whole_calls(plan: Plan) -> int:
    if plan.first % plan.per_call:
        raise ValueError(
            f"expected first_sample to be a multiple of samples_per_randomisation = {plan.per_call}; got {plan.first}."
        )
    return plan.per_call


def _log_weights(weighted: Weighted, size: int, chunk_size: int | None) -> tuple[Tensor, bool]:
    """Log-weights of one block of samples ``(size, *batch)``, and whether its data were given the same draws."""
    latents = weighted.proposal.sample((size,))
    log_w = weighted.log_weights(latents, chunk_size)
    return log_w, _shared(weighted.proposal, latents, log_w)


def _shared(proposal: Proposal, latents: Latents, log_w: Tensor) -> bool:
    """Whether the first two data have a latent in common: with continuous draws of their own, that is impossible."""
    if log_w.ndim != 2 or log_w.shape[1] < 2:
        return False

    def common(z: Tensor, flag: bool | None) -> bool:
        if flag is False or not z.is_floating_point():
            return False  # discrete draws coincide by chance
        constant = flag is None and bool((z == z[:1]).all())  # carried along, the same for all
        return not constant and bool((z[:, 0] == z[:, 1]).all())

    return any(latent_leaves(map_latents(common, latents, proposal.reparameterized)))


def _check_batch(log_w: Tensor, size: int, batch: Batch) -> None:
    if log_w.shape != (size, batch.size):
        raise ValueError(
            f"expected model to return a log_joint and a proposal of batch shape ({batch.size},), one per datum of "
            f"the batch it was given; got {tuple(log_w.shape[1:])}. Expand the proposal over the data, and sum over "
            "event dimensions."
        )
