"""The pytest plugin costs nothing until it is used, splits the budget over the tests that ask, and prints the seeds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import iwbounds
from iwbounds.testing import ErrorBudget

SOURCE = Path(iwbounds.__file__).parents[1]  # src, or where a wheel was installed

IDLE = """
import sys

def test_nothing_was_imported():
    assert "torch" not in sys.modules and "iwbounds" not in sys.modules and "hypothesis" not in sys.modules
"""

ACTIVE = """
import pytest

@pytest.mark.parametrize("case", range(4))
def test_spends(error_budget, case):
    share = error_budget.spend("only")
    assert error_budget.alpha == 0.04 / 4
    assert share["alpha"] < 0.01

def test_does_not_ask():
    pass
"""


def run(directory, text, *options):
    (directory / "test_it.py").write_text(text)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "pytest_iwbounds", "-p", "no:hypothesispytest"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-rP", *options, "test_it.py"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_starting_pytest_with_the_plugin_imports_neither_torch_nor_the_package(tmp_path):
    assert "1 passed" in run(tmp_path, IDLE)


def test_the_budget_is_split_over_the_tests_that_ask_and_seeds_are_printed(tmp_path, capsys):
    output = run(tmp_path, ACTIVE, "--iw-alpha=0.04", "--iw-seed=3")
    assert "5 passed" in output
    assert "--iw-alpha=0.04 --iw-seed=3" in output
    for case in range(4):
        ErrorBudget(0.01, 3, f"test_it.py::test_spends[{case}]").spend("only")
    printed = re.findall(r"test_it.py::test_spends.*", capsys.readouterr().out)
    assert len(set(printed)) == 4
    assert all(line in output for line in printed)


STAR = """
from iwbounds.testing import *
found = "strategies" in globals(), callable(check_contract), callable(assert_grad_unbiased)
"""


def test_star_import_works_with_hypothesis():
    names = {}
    exec(STAR, names)
    assert names["found"] == (True, True, True)


def test_without_hypothesis_star_import_works_and_the_strategies_say_what_to_install():
    program = (
        f"import sys; sys.modules['hypothesis'] = None\n{STAR}print(*found)\n"
        "try: from iwbounds.testing import strategies\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False True True\n")
    assert "pip install 'iwbounds[testing]'" in done.stdout


def test_strategies_are_an_attribute_of_the_package():
    import iwbounds.testing

    assert iwbounds.testing.strategies.__name__ == "iwbounds.testing.strategies"
    with pytest.raises(AttributeError, match="no attribute 'guesses'"):
        iwbounds.testing.guesses  # noqa: B018


def test_nothing_below_imports_the_kit():
    package = SOURCE / "iwbounds"
    below = [path for path in package.rglob("*.py") if "testing" not in path.relative_to(package).parts]
    assert below
    assert not [path for path in below if re.search(r"^\s*(from|import) iwbounds\.testing", path.read_text(), re.M)]
