"""One thread (results must not depend on how sums are split), a seed for every test, and global state watched."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded_and_unchanged():
    """Every test starts from the same seed, and may not leave torch's global switches changed."""
    torch.manual_seed(0)
    before = _global_state()
    yield
    assert _global_state() == before


def _global_state():
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.distributions.Distribution._validate_args,
        torch.are_deterministic_algorithms_enabled(),
    )
