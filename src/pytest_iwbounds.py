"""The pytest plugin of iwbounds: the ``error_budget`` fixture, ``--iw-alpha`` and ``--iw-seed``.

A module of its own, beside the package, because importing anything inside ``iwbounds`` imports torch: pytest loads its
plugins at every start, and this one must cost nothing until a test asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from iwbounds.testing import ErrorBudget

__all__ = ["error_budget", "pytest_addoption", "pytest_collection_modifyitems", "pytest_report_header"]

_TESTS = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("iwbounds", "sound statistical tests (iwbounds.testing)")
    group.addoption("--iw-alpha", type=float, default=1e-6, help="probability of any false alarm in the whole run")
    group.addoption("--iw-seed", type=int, default=0, help="the seed that all seeds are derived from")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which budget and seed a run used, where they are not the default ones."""
    alpha, seed = config.getoption("--iw-alpha"), config.getoption("--iw-seed")
    return None if (alpha, seed) == (1e-6, 0) else f"iwbounds: --iw-alpha={alpha:g} --iw-seed={seed}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the tests that share the budget."""
    config.stash[_TESTS] = sum("error_budget" in getattr(item, "fixturenames", ()) for item in items)


@pytest.fixture
def error_budget(request: pytest.FixtureRequest) -> ErrorBudget:
    """This test's equal part of ``--iw-alpha``, as an :class:`iwbounds.testing.ErrorBudget` named after the test."""
    from iwbounds.testing import ErrorBudget

    config = request.config
    share = config.getoption("--iw-alpha") / max(1, config.stash.get(_TESTS, 1))
    return ErrorBudget(share, config.getoption("--iw-seed"), request.node.nodeid)
