"""A mistake of one rank is an error on all of them, which names it, at once; and a rank that dies ends the others."""

import re

import pytest

from tests.distributed import failures
from tests.distributed.processes import results, run_all

SAID = {
    "shape": (
        r"ValueError: expected iwbounds to return log-weights of one shape and dtype on all 3 ranks.*"
        r"\(rows, 3\) torch.float64; got \(rows, 2\) torch.float64 on rank 1\.",
    )
    * 2,
    "dtype": (r"ValueError.*got \(rows, 3\) torch.float32 on rank 1\.",) * 2,
    "log_joint": (r"ZeroDivisionError: in the model", r"RuntimeError: rank 1 of 3 stopped.*ZeroDivisionError: in the"),
    "sampler": (r"ZeroDivisionError: in the model", r"RuntimeError: rank 1 of 3 stopped.*ZeroDivisionError: in the"),
    "argument": (r"ValueError: expected chunk_size", r"RuntimeError: rank 1 of 3 stopped.*ValueError: expected chunk"),
    "samples": (r"ValueError: expected latents", r"RuntimeError: rank 1 of 3 stopped.*ValueError: expected latents"),
    "other number": (r"ValueError.*same arguments.*num_samples=6.*got.*num_samples=7.*on rank 1",) * 2,
    "no graph": (r"ValueError.*same arguments.*got.*backward_samples=2.*on rank 1",) * 2,
}


@pytest.mark.parametrize("wrong", SAID)
def test_one_rank_that_goes_wrong_stops_all_with_a_message_that_names_it(wrong, tmp_path):
    found = results(3, failures.said, tmp_path, wrong)
    own, others = SAID[wrong]
    for rank, message in enumerate(found):
        assert re.match(own if rank == 1 else others, message, re.DOTALL), (rank, message)


def test_samplers_with_equal_generators_of_their_own_are_refused(tmp_path):
    for message in results(2, failures.own_generator, tmp_path):
        assert "ranks 0 and 1 drew the same" in message


@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_rank_that_dies_ends_the_others(when, tmp_path):
    first, dead, last = run_all(3, failures.killed, tmp_path, when, timeout=20)
    assert dead is None
    for message in (first, last):
        assert "a rank has died, or did not arrive within the group's timeout" in message


def test_what_every_rank_does_wrong_is_refused(tmp_path):
    for few, many, kind, other in results(2, failures.refused, tmp_path):
        assert "at least one sample for each of the 2 ranks" in few
        assert "num_samples = 3 together; got [2, 2]" in many
        assert "torch.distributed.ProcessGroup; got str" in kind
        assert "that this process belongs to" in other
