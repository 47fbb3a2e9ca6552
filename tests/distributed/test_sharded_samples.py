"""``iw.estimate(process_group=)``: K samples over 2, 3 and 4 processes are the K samples of one.

The sum over the ranks of their backwards is compared with one process's backward, on the same draws.
"""

import pytest
import torch

from tests.distributed import sharded_samples
from tests.distributed.processes import results


@pytest.mark.parametrize(("size", "counts"), [(2, (7, 12)), (3, (12, 7)), (4, (6, 12))], ids=["2", "3", "4"])
def test_every_bound_and_estimator_is_that_of_one_process(size, counts, tmp_path):
    found = results(size, sharded_samples.whole_table, tmp_path, counts)
    assert len(set(found)) == 1
    assert found[0] > 250, "cases"


def test_ranks_draw_apart_and_reproducibly(tmp_path):
    first, again = (results(2, sharded_samples.drawn_on_every_rank, tmp_path / name, 7) for name in ("a", "b"))
    assert first[0] == first[1] == again[0]
    assert len(set(map(tuple, first[0]))) == len(first[0]), "no sample is drawn twice, on whatever rank"


def test_quasi_random_points_are_one_table(tmp_path):
    results(2, sharded_samples.quasi_random, tmp_path, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("size", "count", "padded"), [(2, 8, 8), (3, 7, 9)])
def test_what_crosses_ranks_is_the_log_weights(size, count, padded, dtype, tmp_path):
    """And twice 32 bytes per rank; where the shares are not equal, the shorter ones are padded."""
    for found in results(size, sharded_samples.bytes_sent, tmp_path, count, dtype):
        assert found == [32 * size, 32 * size, padded * 3 * dtype.itemsize]


def test_a_sum_over_ranks_leaves_its_terms_alone(tmp_path):
    assert results(3, sharded_samples.summed, tmp_path) == [[111.0]] * 3
