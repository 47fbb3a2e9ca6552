"""``iw.evaluate(process_group=)``: data over ranks, one report, equal to that of one process."""

import pytest

import iwbounds as iw
from tests.distributed import evaluations
from tests.distributed.processes import results, run_all


@pytest.mark.parametrize(
    ("sizes", "bound", "kind"),
    [
        ((200, 50), iw.IWAE(), "tensor"),
        ((100, 130), iw.Renyi(0.5), "wrapped"),
        ((100, 0, 120), iw.IWAE(), "loader"),
        ((100, 100), iw.MIWAE(2), "list"),
    ],
    ids=str,
)
def test_the_report_of_the_parts_is_that_of_the_whole(sizes, bound, kind, tmp_path):
    found = results(len(sizes), evaluations.report, tmp_path, sizes, bound, kind)
    _, expected = found[0]
    for report, _ in found:
        assert report == expected


def test_parts_of_any_size_are_numbered_one_after_the_other(tmp_path):
    for found, expected in results(2, evaluations.parts_of_any_size, tmp_path):
        assert found == expected


def test_a_rank_that_dies_ends_the_others_without_a_report_and_the_next_run_goes_on(tmp_path):
    (said, calls, written), dead = run_all(2, evaluations.killed, tmp_path, tmp_path, True, timeout=20)
    assert dead is None
    assert "a rank has died, or did not arrive within the group's timeout" in said
    assert (calls, written) == (3, False)
    (tmp_path / "store-2-killed").unlink()
    for rank, (report, calls, loaded) in enumerate(results(2, evaluations.killed, tmp_path, tmp_path, False)):
        assert report["index"] == list(range(500))
        assert calls == (0 if rank == 0 else 2), "what rank 0 had done is not done again"
        if rank == 0:
            assert loaded == report


def test_what_would_give_a_wrong_report_is_refused_and_a_failing_rank_named(tmp_path):
    for rank, (same, padded, unknown, other, failed) in enumerate(results(2, evaluations.refused, tmp_path)):
        assert "all 2 have the same" in same
        assert "DistributedSampler repeats 1" in padded
        assert "whose number is known" in unknown
        assert "expected iwbounds to be called with the same arguments" in other
        assert ("rank 1 of 2 stopped" in failed) == (rank == 0)
