"""One evaluation in parts, by the ranks of a process group: each rank its data, and one report of all on every rank.

What crosses ranks is what one process keeps of each datum: float64 sums, counts, and the largest weights. They are put
side by side, so that no mean is ever taken of means, and a part of any size counts as its data do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import DistributedSampler

from iwbounds.engine.ranks import Ranks
from iwbounds.evidence.batches import count_data
from iwbounds.evidence.report import EvidenceReport
from iwbounds.evidence.state import State, merged

__all__ = ["evaluate_parts", "own_count"]


def own_count(data: Any) -> int:
    """How many data this rank has.

    Raises:
        ValueError: only going through them would tell, or a sampler repeats some of them.
    """
    sampler = getattr(data, "sampler", None)
    if isinstance(sampler, DistributedSampler) and sampler.total_size > len(sampler.dataset):  # type: ignore[arg-type]
        raise ValueError(
            f"expected every datum on one rank; DistributedSampler repeats {sampler.total_size - len(sampler.dataset)} "  # type: ignore[arg-type]
            "of them to give all ranks as many. Parts may differ in size here: pass data[rank::size], or a DataLoader "
            "of torch.utils.data.Subset(dataset, range(rank, len(dataset), size))."
        )
    count = count_data(data)
    if count is None:
        raise ValueError(
            f"expected data whose number is known before they are read, so that the ranks' can be numbered one after "
            f"the other; got {type(data).__name__}. Pass a tensor, a list of batches or a DataLoader; or evaluate "
            "each part with first_datum=…, and merge the reports with +."
        )
    return count


def evaluate_parts(
    ranks: Ranks,
    part: Callable[[int, int | None, Path | None, bool], State],
    seed: int | None,
    path: Path | None,
    first: int,
    progress: bool,
) -> EvidenceReport:
    """The report of all ranks' data.

    Args:
        part: evaluates this rank's data, given the first index, the seed, a state file, and whether to show a bar.
        seed: the caller's.
        path: the caller's state file.
        first: index of rank 0's first datum.
    """
    state = None
    with ranks.together():
        own_path = None if path is None else path.with_name(f"{path.name}.rank{ranks.rank}of{ranks.size}")
        seed = _one_seed(ranks, seed, State.known_seed(own_path))
        if ranks.numbers[ranks.rank]:
            start = first + sum(ranks.numbers[: ranks.rank])
            state = part(start, seed, own_path, progress and ranks.rank == 0)
    # Before anything is merged: where a rank has failed there is no report, rather than one of a part of the data.
    ranks.confirm()
    found = ranks.gather_objects(None if state is None else state.report().state_dict())
    reports = [EvidenceReport.from_state_dict(one) for one in found if one is not None]
    _check_apart(reports, ranks.size)
    if not reports:
        raise ValueError("expected at least one datum on one of the ranks; the data are empty.")
    report = merged(reports)
    if path is not None and state is not None and ranks.rank == min(r for r, n in enumerate(ranks.numbers) if n):
        state.write_whole(report, path)
    return report


def _one_seed(ranks: Ranks, seed: int | None, known: int | None) -> int:
    """The caller's; or that of an evaluation that any rank goes on with; or one of rank 0's."""
    rows = ranks.exchange(-1 if known is None else known)
    if seed is not None:
        return seed
    held = {row[0] for row in rows} - {-1}
    if len(held) > 1:
        raise ValueError(
            f"expected the ranks' state files to be of one evaluation; they are of the seeds {sorted(held)}. Delete "
            "them, or name another state_file."
        )
    return held.pop() if held else ranks.seed >> 31  # 31 bits, as the seed of one process


def _check_apart(reports: list[EvidenceReport], size: int) -> None:
    """Raise where every rank was given the same data, which would all be counted ``size`` times."""
    digests = {tuple(digest for _, _, digest in report.batches) for report in reports}
    if size > 1 and len(reports) == size and len(digests) == 1:
        raise ValueError(
            f"expected every rank to have a part of the data of its own; all {size} have the same. Pass "
            "data[rank::size], or torch.tensor_split(data, size)[rank]."
        )
