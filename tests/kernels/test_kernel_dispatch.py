"""Which path runs, and what is said where the one asked for cannot."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

from iwbounds.kernels import dispatch, fused_bound, fused_log_mean_exp, kernels_available, runs_kernel

ON_GPU = torch.cuda.is_available()


def test_cpu_tensors_take_the_reference_even_where_the_interpreter_could_serve(launches):
    fused_bound(torch.zeros(3, 2))
    fused_log_mean_exp(torch.zeros(3, 2))
    assert launches == []


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_cuda_tensors_take_the_kernel(launches):
    fused_bound(torch.zeros(3, 2, device="cuda"))
    assert launches == ["triton_bound_write"]


def test_an_explicit_kernel_is_never_replaced_in_silence(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"kernel=True asks; the tensors are on the CPU\. Move them to a GPU"):
        fused_bound(torch.zeros(3), kernel=True)


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert not kernels_available()
    with pytest.raises(RuntimeError, match="pip install triton"):
        fused_bound(torch.zeros(3), kernel=True)


def test_availability_follows_device_and_interpreter(monkeypatch, launches):
    assert kernels_available() == ON_GPU
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels_available("cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not kernels_available("cpu")
    assert not kernels_available("meta")


def test_an_explicit_kernel_is_refused_where_only_plain_code_will_do(launches):
    x = torch.zeros(3, 2)
    with pytest.raises(RuntimeError, match="forward-mode AD need plain code"):
        torch.func.vmap(lambda t: fused_log_mean_exp(t, kernel=True))(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="forward-mode AD need plain code"):
            fused_log_mean_exp(dual, kernel=True)
        assert runs_kernel(x, True)


def test_importing_and_using_the_package_on_the_cpu_leaves_triton_alone():
    code = (
        "import sys, torch; from iwbounds.kernels import fused_bound, kernels_available; "
        "fused_bound(torch.zeros(3)); kernels_available(); assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_kernel_compiles_for_a_gpu_that_need_not_be_there(tmp_path):
    script = pathlib.Path(__file__).with_name("triton_compile.py")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(script), "90", "float32"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 15
