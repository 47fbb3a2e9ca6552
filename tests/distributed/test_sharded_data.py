"""Data over ranks: ``iw.accumulate(process_group=)``, DistributedDataParallel, sums by hand, against one process."""

import pytest

from tests.distributed import sharded_data
from tests.distributed.processes import results


@pytest.mark.parametrize("wrapped", [False, True], ids=["summed by hand", "DistributedDataParallel"])
@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(size, wrapped, tmp_path):
    assert set(results(size, sharded_data.accumulated, tmp_path, wrapped)) == {24}


@pytest.mark.parametrize("function", [sharded_data.paths_under_ddp, sharded_data.estimates_under_ddp])
def test_distributed_data_parallel_leaves_every_rank_with_one_gradient(function, tmp_path):
    assert results(2, function, tmp_path) == [1, 1]


def test_what_would_let_ranks_drift_apart_is_refused_and_a_failing_rank_named(tmp_path):
    for rank, found in enumerate(results(2, sharded_data.refusals, tmp_path)):
        drift, unused, inside, failed, none = found
        assert "Pass process_group=" in drift
        assert "without find_unused_parameters" in unused
        assert "around the whole model" in inside
        assert ("rank 1 of 2 stopped" in failed) == (rank == 0)
        assert "in a later part" in failed
        assert "rank 1 has none (the ranks have [1, 0])" in none
