"""Kernel tests run on a GPU where there is one, else in Triton's interpreter.

Triton chooses the interpreter when a kernel is decorated, its own library's included: the kernels are therefore
imported here, under a variable that is gone again when the rest of the suite runs.
"""

import importlib
import importlib.util
import os
import sys

import numpy as np
import pytest
import torch

collect_ignore = ["triton_compile.py"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = ("bound", "leave_one_out", "densities")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def _import_interpreted():
    if "triton" in sys.modules:
        raise pytest.UsageError("Triton was imported before the kernel tests chose its interpreter; run them first.")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    for name in KERNELS:
        importlib.import_module(f"iwbounds.kernels.triton_{name}")
    if before is None:
        del os.environ["TRITON_INTERPRET"]


if HAS_TRITON and DEVICE == "cpu":
    _import_interpreted()


def pytest_collection_modifyitems(items):
    if HAS_TRITON:
        return
    for item in items:
        if str(item.path).startswith(os.path.dirname(__file__)):
            item.add_marker(pytest.mark.skip(reason="Triton is not installed"))


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def launches(monkeypatch):
    """Modules of the kernels launched so far: a test asserts on it that the kernel ran, and not the reference."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    from iwbounds.kernels import triton_tiles

    names, run = [], triton_tiles.launch

    def record(kernel, *arguments, **constants):
        names.append(kernel.fn.__module__.rsplit(".", 1)[-1] + kernel.fn.__name__)
        with np.errstate(all="ignore"):
            run(kernel, *arguments, **constants)

    for name in KERNELS:
        monkeypatch.setattr(f"iwbounds.kernels.triton_{name}.launch", record)
    return names


@pytest.fixture
def nan_filled(monkeypatch):
    """Outputs that a kernel leaves unwritten are NaN, not what memory happened to hold."""

    def filled(make):
        def made(*arguments, **options):
            out = make(*arguments, **options)
            return out.fill_(torch.nan) if out.is_floating_point() else out.fill_(-1)

        return made

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that forty samples are cut into parts, and the parts are combined more than once."""
    from iwbounds.kernels import triton_bound, triton_leave_one_out, triton_tiles

    monkeypatch.setattr(triton_tiles, "LARGEST", 16)
    monkeypatch.setattr(triton_tiles, "USUAL", 16)
    monkeypatch.setattr(triton_bound, "COMBINED", 4)
    monkeypatch.setattr(triton_leave_one_out, "COMBINED", 4)
