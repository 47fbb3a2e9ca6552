"""The names of the package: listed, found by dir and tab completion, none that brings an optional dependency."""

import pathlib
import re
import subprocess
import sys
import types

import pytest

import iwbounds as iw

PACKAGES = (iw, iw.bounds, iw.densities, iw.engine, iw.evidence, iw.gradients, iw.kernels, iw.logspace, iw.proposals)
packages = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)


def kind_and_name(name):
    """As ruff sorts ``__all__``: constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@packages
def test_all_is_sorted_and_dir_contains_it(package):
    assert list(package.__all__) == sorted(package.__all__, key=kind_and_name)
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, name) is not None for name in package.__all__)


@packages
def test_all_is_complete(package):
    """What is imported for the reader and not listed would vanish from ``import *`` and from the documentation."""
    found = {n for n, v in vars(package).items() if n[0] != "_" and not isinstance(v, types.ModuleType)}
    assert found <= set(package.__all__)


@pytest.mark.slow
def test_importing_the_package_brings_no_optional_dependency():
    code = (
        "import sys, iwbounds; "
        "print(sorted({'triton', 'hypothesis', 'matplotlib', 'pytest', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'IWEA'"):
        _ = iw.IWEA


def test_pre_commit_runs_the_ruff_of_constraints():
    root = pathlib.Path(__file__).parent.parent
    pinned = re.search(r"^ruff==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    hook = re.search(r"ruff-pre-commit\s+rev: v(\S+)", (root / ".pre-commit-config.yaml").read_text())
    assert pinned[1] == hook[1]
