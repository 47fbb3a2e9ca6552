"""One thread (results must not depend on how sums are split), a seed for every test, and global state watched."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent
ADAPTERS = ROOT.parent / "src" / "iwbounds" / "adapters"
SLOW = {ADAPTERS} | {
    ROOT / name
    for name in (
        "adapters",
        "assumptions/test_distribution_sweep.py",
        "assumptions/test_pyro_sweep.py",
        "assumptions/test_zuko_sweep.py",
        "bounds/test_orderings.py",
        "bounds/test_umlmc.py",
        "bounds/test_user_bounds.py",
        "distributed",
        "engine/test_kernels_in_engine.py",
        "engine/test_large_k.py",
        "engine/test_learning.py",
        "engine/test_modes.py",
        "engine/test_redraws.py",
        "evidence/test_certificates.py",
        "evidence/test_certify.py",
        "evidence/test_information.py",
        "evidence/test_randomisations.py",
        "evidence/test_sandwich.py",
        "kernels/test_bound_kernel.py",
        "kernels/test_density_kernels.py",
        "kernels/test_functions.py",
        "kernels/test_kernel_dispatch.py",
        "kernels/test_leave_one_out_kernel.py",
        "proposals/test_annealed_importance.py",
        "proposals/test_hierarchical_chunks.py",
        "proposals/test_hierarchical_gradients.py",
        "proposals/test_quasi_random.py",
        "test_annealed_example.py",
        "test_exactness.py",
        "test_examples.py",
        "test_hierarchical_examples.py",
        "test_papers.py",
        "test_recipes.py",
        "test_site.py",
        "testing/test_kit_assumptions.py",
        "testing/test_kit_contracts.py",
        "testing/test_kit_digits.py",
        "testing/test_kit_docs.py",
        "testing/test_kit_plugin.py",
        "testing/test_kit_power.py",
        "testing/test_kit_unbiasedness.py",
    )
}
"""Modules and folders that ``make test-fast`` leaves out, beside single tests marked slow."""


def _import_with_switches_kept(library):
    """Import what changes torch's global switches when it is imported, before any test, and put them back."""
    if find_spec(library) is not None:
        before = torch.distributions.Distribution._validate_args
        import_module(library)
        torch.distributions.Distribution.set_default_validate_args(before)


_import_with_switches_kept("zuko")


def pytest_ignore_collect(collection_path, config):
    """Without the slow tests their modules, and the libraries some are for, are not even imported."""
    return True if collection_path in SLOW and config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(items):
    missing = [str(path) for path in SLOW if not path.exists()]
    if missing:
        raise pytest.UsageError(f"expected the modules of SLOW in tests/conftest.py to exist; missing: {missing}")
    for item in items:
        if not SLOW.isdisjoint([item.path, *item.path.parents]):
            item.add_marker(pytest.mark.slow)
        if item.path.is_relative_to(ADAPTERS):
            _skip_without_library(item)


def _skip_without_library(item):
    """The docstrings of an adapter show the library that it is named after; tests/adapters skip by themselves."""
    library = item.path.relative_to(ADAPTERS).parts[0].removesuffix(".py")
    if library in ("jax", "pyro", "zuko") and find_spec(library) is None:
        item.add_marker(pytest.mark.skip(reason=f"the adapter needs {library}: pip install 'iwbounds[dev]'"))


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
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")  # figures of scripts that ran inside the test


def _global_state():
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.distributions.Distribution._validate_args,
        torch.are_deterministic_algorithms_enabled(),
    )
