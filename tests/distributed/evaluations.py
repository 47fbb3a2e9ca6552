"""What every rank does with ``iw.evaluate(process_group=)``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import iwbounds as iw
from tests.distributed.models import Gaussian, data

K = 40


class Counted(Gaussian):
    """Counts its calls, and may die or raise in one of them."""

    calls, stop, error = 0, None, None

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        if self.calls == self.stop:
            os._exit(1)
        if self.calls == self.error:
            raise ZeroDivisionError("in the model")
        return super().forward(x)


def evaluated(model: Any, x: Any, **options: Any) -> iw.EvidenceReport:
    return iw.evaluate(model, x, num_samples=K, progress=False, **options)


def plain(report: iw.EvidenceReport) -> dict[str, Any]:
    """All that a report is made of, in lists."""
    state = report.state_dict()
    found = state | state.pop("weights")
    return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in found.items()}


def part(group: dist.ProcessGroup, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return x.split(sizes)[group.rank()]


def report(group: dist.ProcessGroup, sizes: tuple[int, ...], bound: iw.Bound, kind: str) -> tuple[Any, Any]:
    """The report of the ranks' parts, and that of one process, on rank 0."""
    x, model = data(sum(sizes)), Gaussian()
    own = part(group, x, sizes)
    wrapped = DistributedDataParallel(model, process_group=group) if kind == "wrapped" else model
    given = DataLoader(TensorDataset(own), batch_size=100) if kind == "loader" else own
    given = list(own.split(100)) if kind == "list" else given
    found = evaluated(wrapped, given, bound=bound, seed=3, process_group=group)
    alone = evaluated(model, x, bound=bound, seed=3) if group.rank() == 0 else None
    return plain(found), alone and plain(alone)


def parts_of_any_size(group: dist.ProcessGroup) -> tuple[Any, Any]:
    """Where parts begin inside a batch: the merged reports of two processes, each of its own data."""
    x, model = data(70), Gaussian()
    found = evaluated(model, part(group, x, (30, 40)), process_group=group)  # the seed is rank 0's
    one = evaluated(model, x[:30], seed=found.seed)
    return plain(found), plain(one + evaluated(model, x[30:], seed=found.seed, first_datum=30))


def killed(group: dist.ProcessGroup, folder: Path, dies: bool) -> Any:
    """Rank 1 dies in its second batch, if it does: what is said, or the report; and how often the model was called."""
    x, model = data(500), Counted()
    model.stop = 2 if dies and group.rank() == 1 else None
    path = folder / "state.pt"
    try:
        found = evaluated(model, part(group, x, (300, 200)), state_file=path, process_group=group)
    except RuntimeError as error:
        return str(error), model.calls, path.exists()
    # Rank 0 writes it; the others may be here before it has.
    return plain(found), model.calls, plain(iw.EvidenceReport.load(path)) if group.rank() == 0 else None


def refused(group: dist.ProcessGroup) -> list[str]:
    x, model, found, rank = data(201), Gaussian(), [], group.rank()
    failing, other = Counted(), Gaussian()
    failing.error = 2 if rank == 1 else None
    with torch.no_grad():
        other.log_scale += rank
    padded = DataLoader(TensorDataset(x), batch_size=100, sampler=DistributedSampler(x, 2, rank, shuffle=False))
    for of, given in (
        (model, x),
        (model, padded),
        (model, iter([x[:100]])),
        (other, x[rank::2]),
        (failing, part(group, x, (1, 200))),
    ):
        try:
            evaluated(of, given, process_group=group)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            found.append(str(error))
    whole = DataLoader(Subset(TensorDataset(x), range(rank, 201, 2)), batch_size=100)
    assert evaluated(model, whole, process_group=group).num_data == 201
    return found
