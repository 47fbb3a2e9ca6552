"""What an evaluation is of, and what it knows so far: in memory, and in a file that a later call goes on from."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iwbounds.bounds.base import Bound
from iwbounds.bounds.iwae import IWAE
from iwbounds.diagnostics import tail_size
from iwbounds.evidence.batches import Batch, digest_of
from iwbounds.evidence.report import EvidenceReport, write_atomically
from iwbounds.evidence.streaming import StreamingWeights, means_of_calls
from iwbounds.seeding import derived_seed, forked_rng

__all__ = ["Plan", "State", "Sums", "fingerprint", "merged"]

_EVERY = 5.0  # seconds between writes


# Not frozen: State writes the seed into it, which it draws or finds in the file.
@dataclass
class Plan:
    """What is evaluated, without the model and the data."""

    bound: Bound
    num_samples: int
    chunk_size: int | None
    confidence: float
    seed: int | None
    first: int
    per_call: int = 1
    """Samples per independent randomisation."""

    @property
    def stop(self) -> int:
        return self.first + self.num_samples

    @property
    def streams(self) -> bool:
        """Whether sums of weights are all that the value takes."""
        return isinstance(self.bound, IWAE)

    def seeded(self, batch: Batch, what: object) -> Any:
        """Random numbers that depend on the seed, the batch and ``what`` alone."""
        return forked_rng(derived_seed(self.seed, batch.start, what))


@dataclass(frozen=True)
class Sums:
    """The samples of one batch so far. Immutable, so that an interruption finds the old state or the new one."""

    weights: StreamingWeights
    dead: Tensor
    bad: Tensor
    pending: tuple[Tensor, ...] = ()
    """Log-weights not yet in ``weights``: finding the largest of many at once is far cheaper than block by block."""
    kept: tuple[Tensor, ...] = ()
    """All log-weights, for bounds that need them at once."""
    shared: bool = False
    """Whether the data were seen to share their draws."""
    per_call: int = 1

    @classmethod
    def empty(cls, batch: Batch, plan: Plan) -> Sums:
        # Enough for the tail of four times the samples, should others be merged later.
        capacity = tail_size(4 * plan.num_samples // plan.per_call) + 1
        none = torch.zeros(batch.size, dtype=torch.int64)
        return cls(StreamingWeights.empty((batch.size,), capacity=capacity), none, none, per_call=plan.per_call)

    @property
    def count(self) -> int:
        """Samples so far."""
        return self.weights.count * self.per_call + sum(map(len, self.pending))

    def added(self, log_w: Tensor, shared: bool, plan: Plan) -> Sums:
        """With one more block of log-weights."""
        kept = self.kept if plan.streams else (*self.kept, log_w)
        more = replace(self, pending=(*self.pending, log_w), kept=kept, shared=self.shared or shared)
        return more.flushed() if sum(map(len, more.pending)) >= 2 * self.weights.capacity else more

    def flushed(self) -> Sums:
        """With nothing pending."""
        if not self.pending:
            return self
        log_w = torch.cat(self.pending)
        new = StreamingWeights.of(means_of_calls(log_w, self.per_call), self.weights.capacity)
        return replace(
            self,
            weights=self.weights.merged(_on_cpu(new)),
            dead=self.dead + log_w.isneginf().sum(0).cpu(),
            bad=self.bad + (log_w.isnan() | log_w.isposinf()).sum(0).cpu(),
            pending=(),
        )


class State:
    """What is known so far, in memory and in the state file."""

    def __init__(self, plan: Plan, model: object, path: Path | None) -> None:
        self.plan, self.path = plan, path
        self.finished = False
        self.partial: dict[str, Any] | None = None
        self._begun: tuple[Batch, Sums] | None = None
        self._parts: list[EvidenceReport] = []
        self._seen: set[int] = set()
        self._total, self._count = 0.0, 0
        self._saved = time.monotonic()
        self._of: dict[str, Any] = {"model": fingerprint(model), "bound": repr(plan.bound), "first_sample": plan.first}
        self._of |= {"num_samples": plan.num_samples, "samples_per_randomisation": plan.per_call}
        if path is not None and path.exists():
            self._load(path)
        if plan.seed is None:
            # From the system, not from torch: an evaluation does not move the caller's random numbers. 31 bits fit
            # everywhere.
            plan.seed = int.from_bytes(os.urandom(4), "big") >> 1
        self._of["seed"] = plan.seed
        # After loading: also what an earlier process has finished.
        self._digests = {start: (stop, digest) for part in self._parts for start, stop, digest in part.batches}

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        # Without a seed of the caller's any will do: the file's draws are the ones to go on with.
        expected = self._of if self.plan.seed is None else self._of | {"seed": self.plan.seed}
        # Continuing another model's evaluation would mix two evidences in one report.
        other = [name for name, value in expected.items() if state["of"][name] != value]
        if other:
            raise ValueError(
                f"expected the state of this evaluation in {path}; it is of another {', '.join(other)}. Delete the "
                "file, or name another."
            )
        self.plan.seed = state["of"]["seed"]
        if state["report"] is not None:
            self.add(EvidenceReport.from_state_dict(state["report"]))
        self.partial = state["partial"]

    def holds(self, batch: Batch) -> bool:
        """Whether the batch is done, by its index; the values under that index must be the same."""
        self._seen.add(batch.start)
        known, partial = self._digests.get(batch.start), self.partial
        # A batch half done is not among the finished ones, but its sums are of these values too.
        begun = partial is not None and partial["start"] == batch.start and partial["digest"] != batch.digest
        if begun or known not in (None, (batch.stop, batch.digest)):
            raise ValueError(
                f"expected the data from index {batch.start} on to be those of {self.path}; their values or batches "
                "differ. Give the same data in the same order and batches (no shuffling)."
            )
        return known is not None

    def finish(self) -> None:
        """All data of this call are done, and no others are in the state."""
        others = self._digests.keys() - self._seen
        if others:
            raise ValueError(
                f"expected the data of {self.path} to be those of this call; it also holds those from index "
                f"{min(others)} on. Give all data, or name another file."
            )
        self.finished = True

    def resumed(self, batch: Batch) -> Sums:
        """What is known of a batch that is not done."""
        sums, partial = Sums.empty(batch, self.plan), self.partial
        if partial is None or partial["start"] != batch.start:
            return sums
        weights = StreamingWeights.from_state_dict(partial["weights"])
        dead, bad, shared = (partial[name] for name in ("dead", "bad", "shared"))
        return Sums(weights, dead, bad, shared=shared, per_call=self.plan.per_call)

    def note_partial(self, batch: Batch, sums: Sums) -> None:
        # Bounds that need all weights at once have no state inside a batch: they start the batch anew.
        if self.path is not None and self.plan.streams:
            self._begun = batch, sums
            self._save_now_and_then()

    def add(self, part: EvidenceReport) -> None:
        """A finished batch."""
        self._parts.append(part)
        self._total += part.log_evidence.sum().item()
        self._count += part.num_data
        self.partial = self._begun = None
        self._save_now_and_then()

    def note(self) -> str:
        """For the progress bar."""
        return f"NLL {-self._total / self._count:.3f}" if self._count else ""

    def report(self) -> EvidenceReport:
        if not self._parts:
            raise ValueError("expected at least one datum; the data are empty.")
        # Kept merged: the next report, or the next save, starts from one part.
        self._parts = [merged(self._parts)]
        return self._parts[0]

    def write_whole(self, report: EvidenceReport, path: Path) -> None:
        """The report of all parts of the data, as the finished state of one evaluation of all."""
        write_atomically({"of": self._of, "partial": None, "report": report.state_dict(), "finished": True}, path)

    @staticmethod
    def known_seed(path: Path | None) -> int | None:
        """The seed of an evaluation that a file holds; None where there is no file."""
        if path is None or not path.exists():
            return None
        return int(torch.load(path, weights_only=True)["of"]["seed"])

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > _EVERY:
            self.save()

    def save(self) -> None:
        if self.path is None:
            return
        report = self.report().state_dict() if self._parts else None
        if self._begun is not None:
            # What is pending is in no sum yet, and may be on a GPU.
            batch, sums = self._begun[0], self._begun[1].flushed()
            self.partial = {"start": batch.start, "digest": batch.digest, "weights": sums.weights.state_dict()}
            self.partial |= {"dead": sums.dead, "bad": sums.bad, "shared": sums.shared}
        state = {"of": self._of, "partial": self.partial, "report": report, "finished": self.finished}
        write_atomically(state, self.path)
        self._saved = time.monotonic()


def merged(parts: list[EvidenceReport]) -> EvidenceReport:
    """By halves: one after the other would copy the first ones as often as there are parts."""
    if len(parts) == 1:
        return parts[0]
    # O(N log N) copies in all.
    half = len(parts) // 2
    return merged(parts[:half]) + merged(parts[half:])


def fingerprint(model: object) -> str:
    """Of a module's parameters and buffers, so that a state file is not continued with other ones."""
    # Of a bare function nothing can be seen: its state file goes by options and data alone.
    entries = sorted(model.state_dict().items()) if isinstance(model, nn.Module) else []
    return digest_of(part for entry in entries for part in entry)


def _on_cpu(weights: StreamingWeights) -> StreamingWeights:
    """Reduced where they were made; kept on the CPU, where a data set of any size fits."""
    state = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in weights.state_dict().items()}
    return StreamingWeights.from_state_dict(state)
