"""The house stands as docs/architecture.md says: imports point downward, no chain of them is longer than ten, and the
way of a call is short."""

import ast
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import iwbounds

ROOT = Path(iwbounds.__file__).parent
DEEPEST = 10

FLOORS = [
    ["checks", "seeding"],
    ["logspace", "kernels", "densities", "diagnostics"],
    ["bounds", "certificates", "posterior"],
    ["gradients"],
    ["proposals"],
    ["engine"],
    ["evidence"],
    ["plots", "testing"],
    ["adapters"],
]
"""From the ground up; a folder or file imports from its own floor and from those below."""
LAZY = "plots"

HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
MODULES = {
    ".".join(("iwbounds", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def floor_of(module):
    return module.split(".")[1]


def imported(module, everywhere):
    """The package's modules that a module imports: when it is loaded, or anywhere in it."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iwbounds"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
    return found - {module}


@cache
def depth(module):
    """The longest chain of imports that loading a module sets off."""
    below = [depth(name) for name in imported(module, everywhere=False)]
    count, chain = max(below, default=(0, ()))
    return count + 1, (module, *chain)


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"iwbounds"}))
def test_imports_point_downward(module):
    """But for the pictures, which a report asks for when it is to be plotted."""
    names = imported(module, everywhere=True) - {"iwbounds"}
    above = {name for name in names if HEIGHT[floor_of(name)] > HEIGHT[floor_of(module)]}
    assert {name for name in above if floor_of(name) != LAZY} == set()
    assert not above & imported(module, everywhere=False)


def test_no_chain_of_imports_is_longer_than_ten():
    count, chain = max(depth(module) for module in MODULES)
    assert count <= DEEPEST, " → ".join(chain)


def walked(call):
    """The package's files in the order in which their functions are called."""
    files = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            files.append(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return files


def test_a_reader_of_a_default_call_turns_few_pages():
    """Files × moves between them; the engine before this one had 60 between 17, by the same count."""
    q = torch.distributions.Normal(torch.zeros(3, requires_grad=True), 1.0)

    def call():
        iwbounds.estimate(lambda z: -z * z, q, num_samples=8)

    call()  # what is imported or cached by the first call is no part of the way
    files = walked(call)
    assert len(set(files)) <= 10
    assert 1 + sum(a != b for a, b in pairwise(files)) <= 30
