"""One thread (results must not depend on how sums are split), a seed for every test, and global state watched."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent
SLOW = {
    ROOT / name
    for name in (
        "bounds/test_orderings.py",
        "bounds/test_umlmc.py",
        "distributed/test_sharded_data.py",
        "distributed/test_sharded_samples.py",
        "engine/test_kernels_in_engine.py",
        "engine/test_large_k.py",
        "engine/test_modes.py",
        "engine/test_redraws.py",
        "evidence/test_certify.py",
        "evidence/test_information.py",
        "evidence/test_sandwich.py",
        "kernels/test_bound_kernel.py",
        "kernels/test_density_kernels.py",
        "kernels/test_functions.py",
        "kernels/test_kernel_dispatch.py",
        "kernels/test_leave_one_out_kernel.py",
        "proposals/test_hierarchical_gradients.py",
        "test_exactness.py",
        "test_examples.py",
        "test_hierarchical_examples.py",
        "testing/test_kit_assumptions.py",
        "testing/test_kit_contracts.py",
        "testing/test_kit_digits.py",
        "testing/test_kit_plugin.py",
        "testing/test_kit_power.py",
        "testing/test_kit_unbiasedness.py",
    )
}
"""Modules of more than a few seconds, which ``make test-fast`` leaves out; ``make test`` runs everything."""


def pytest_collection_modifyitems(items):
    missing = [str(path) for path in SLOW if not path.exists()]
    if missing:
        raise pytest.UsageError(f"expected the modules of SLOW in tests/conftest.py to exist; missing: {missing}")
    for item in items:
        if item.path in SLOW:
            item.add_marker(pytest.mark.slow)


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
