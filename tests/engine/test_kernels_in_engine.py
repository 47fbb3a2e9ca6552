"""Bounds and VIMCO give on a GPU, by a fused kernel, what they give elsewhere; here through Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import iwbounds as iw
from iwbounds.bounds import power_mean
from iwbounds.gradients import score

BOUNDS = (iw.IWAE(), iw.ELBO(), iw.Renyi(0.3), iw.Renyi(2.0), iw.CIWAE(0.4), iw.CUBO(2))
has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the fused kernels need Triton")

# In a process of its own: the kernels' own tests must be the first to import Triton, in its interpreter.
CODE = textwrap.dedent("""
    import torch, iwbounds as iw
    from iwbounds.bounds import power_mean
    from iwbounds.gradients import score
    from iwbounds.kernels import fused as kernels
    torch.manual_seed(0)
    log_w = torch.randn(33, 4, dtype=torch.float64)
    log_w[3, 1] = -torch.inf
    bounds = (iw.IWAE(), iw.ELBO(), iw.Renyi(0.3), iw.Renyi(2.0), iw.CIWAE(0.4), iw.CUBO(2))
    def results():
        for bound in bounds:
            yield bound.differentiate(log_w, path=True)
        for vimco in (iw.VIMCO(), iw.VIMCO(geometric=True)):
            value, coefficients = vimco.evaluate(iw.IWAE(), log_w)
            yield value, coefficients.model, coefficients.score
    plain = list(results())
    asked = []
    power_mean.served_by_kernel = score.served_by_kernel = lambda x: True
    for name in ("fused_bound", "fused_vimco"):
        real = getattr(kernels, name)
        def on_request(*args, real=real, **options):
            asked.append(real.__name__)
            return real(*args, kernel=True, **options)
        setattr(kernels, name, on_request)
    for found, expected in zip(results(), plain, strict=True):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    print(asked.count("fused_bound"), asked.count("fused_vimco"))
""")


@has_triton
def test_kernel_path_equals_the_plain_one():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-2:] == ["6", "2"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_bounds_agree_with_the_cpu():
    log_w = torch.randn(64, 100)
    for bound in BOUNDS:
        for found, expected in zip(
            bound.differentiate(log_w.cuda(), path=True), bound.differentiate(log_w, path=True), strict=True
        ):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    for gradient in (iw.VIMCO(), iw.VIMCO(geometric=True)):
        (value, found), (expected_value, expected) = (gradient.evaluate(iw.IWAE(), x) for x in (log_w.cuda(), log_w))
        torch.testing.assert_close(value.cpu(), expected_value)
        torch.testing.assert_close(found.score.cpu(), expected.score, rtol=1e-4, atol=1e-6)


def test_powers_that_the_kernel_cannot_hold_are_left_to_the_plain_code(monkeypatch):
    """The kernel's c − h loses p times the rounding of float32: at K = 1 and p = 1e8 it would be 0 in place of 1."""
    for module in (power_mean, score):
        monkeypatch.setattr(module, "served_by_kernel", lambda x: True)
    monkeypatch.setattr(power_mean.PowerMean, "_by_kernel", lambda *_: pytest.fail("went to the kernel"))
    assert iw.Renyi(-1e8).differentiate(torch.zeros(1, 2), path=True).path.tolist() == [[1.0, 1.0]]
