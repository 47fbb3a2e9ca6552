"""Streaming states give what all weights at once give, however they are cut."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import iwbounds as iw
from iwbounds.evidence.streaming import StreamingWeights


def exact(log_w):
    return log_w.double().logsumexp(0) - math.log(log_w.shape[0])


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([1.0, 100.0]), st.randoms())
def test_any_partition_in_any_order_gives_the_same_state(sizes, scale, random):
    generator = torch.Generator().manual_seed(len(sizes))
    chunks = [scale * torch.randn(size, 3, generator=generator) for size in sizes]
    states = [StreamingWeights.of(chunk) for chunk in chunks]
    random.shuffle(states)
    state = sum(states, StreamingWeights.empty((3,)))
    log_w = torch.cat(chunks)
    torch.testing.assert_close(state.log_mean(), exact(log_w), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state.ess(), iw.effective_sample_size(log_w.double()), rtol=1e-12, atol=1e-12)
    assert state.count == sum(sizes)


def test_a_hundred_thousand_single_samples_lose_nothing():
    log_w = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) - 1234.0
    state = StreamingWeights.empty(())
    for part in log_w.split(1000):
        for one in part.split(1)[:10]:
            state = state.updated(one)
        state = state.updated(part[10:])
    assert state.log_mean().item() == pytest.approx(exact(log_w).item(), abs=1e-10)


def test_dead_chunks_count_and_add_nothing():
    dead, alive = torch.full((5, 2), -torch.inf), torch.randn(5, 2) - 2000.0
    for first, second in ((dead, alive), (alive, dead)):
        state = StreamingWeights.empty((2,)).updated(first).updated(second)
        torch.testing.assert_close(state.log_mean(), exact(torch.cat([first, second])))
    only_dead = StreamingWeights.of(dead) + StreamingWeights.of(dead)
    assert (only_dead.log_mean() == -torch.inf).all()
    assert (only_dead.ess() == 0).all()


def test_nan_stays_in_its_datum():
    log_w = torch.randn(6, 3)
    log_w[2, 1] = torch.nan
    state = StreamingWeights.of(log_w[:4]).updated(log_w[4:])
    assert state.log_mean().isnan().tolist() == [False, True, False]


def test_a_state_survives_a_restart(tmp_path):
    state = StreamingWeights.of(torch.randn(9, 4))
    torch.save(state.state_dict(), tmp_path / "state.pt")
    loaded = StreamingWeights.from_state_dict(torch.load(tmp_path / "state.pt"))
    more = torch.randn(3, 4)
    assert torch.equal(loaded.updated(more).log_mean(), state.updated(more).log_mean())


def test_states_of_other_batches_are_refused_and_an_empty_one_knows_nothing():
    with pytest.raises(ValueError, match=r"batch shape \(2,\); got \(3,\)"):
        StreamingWeights.empty((2,)).merged(StreamingWeights.empty((3,)))
    assert StreamingWeights.empty((2,)).log_mean().isnan().all()


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.randoms())
def test_the_tail_of_any_partition_is_that_of_all(sizes, random):
    generator = torch.Generator().manual_seed(len(sizes))
    chunks = [2 * torch.randn(size, 3, generator=generator) for size in sizes]
    log_w = torch.cat(chunks)
    states = [StreamingWeights.of(chunk, capacity=200) for chunk in chunks]
    random.shuffle(states)
    found = sum(states, StreamingWeights.empty((3,), capacity=200)).pareto_k()
    torch.testing.assert_close(found, iw.pareto_k(log_w.double()), rtol=0, atol=1e-12, equal_nan=True)


def test_a_tail_that_was_not_kept_is_unknown():
    log_w = torch.randn(1000, 2)
    assert StreamingWeights.of(log_w).pareto_k().isnan().all()
    assert StreamingWeights.of(log_w, capacity=50).pareto_k().isnan().all()
    both = StreamingWeights.of(log_w, capacity=200) + StreamingWeights.of(log_w)
    assert both.pareto_k().isnan().all()
