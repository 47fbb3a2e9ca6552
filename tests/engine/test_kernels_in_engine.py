"""The engine's kernel path gives what the plain one gives: on a GPU by itself, here through Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import iwbounds as iw

# Looked for, not imported: the kernels' own tests must be the first to import Triton, in its interpreter.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the fused kernels need Triton")

CODE = textwrap.dedent("""
    import torch, iwbounds as iw
    from iwbounds.engine.rule import Rule
    torch.manual_seed(0)
    log_w = torch.randn(33, 4, dtype=torch.float64)
    log_w[3, 1] = -torch.inf
    served = 0
    for bound in (iw.IWAE(), iw.ELBO(), iw.Renyi(0.3), iw.Renyi(2.0), iw.CIWAE(0.4), iw.CUBO(2)):
        for gradient in (iw.Reparameterized(), iw.STL(), iw.DReG(), iw.VIMCO()):
            found = gradient.fused(bound.power_mean, log_w, kernel=True)
            if found is None:
                assert isinstance(gradient, iw.VIMCO) and not isinstance(bound, iw.IWAE)
                continue
            value, coefficients = Rule(bound, gradient).evaluate(log_w, True)
            torch.testing.assert_close(found[0], value, rtol=1e-12, atol=1e-12)
            for name in ("model", "path", "score"):
                a, b = getattr(found[1], name), getattr(coefficients, name)
                assert (a is None) == (b is None), name
                if a is not None:
                    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
            served += 1
    print(served)
""")


def test_kernel_path_equals_the_plain_one():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "19"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_engine_takes_the_kernel_and_agrees_with_the_cpu():
    log_w = torch.randn(64, 100)
    for gradient in (iw.Reparameterized(), iw.STL(), iw.DReG(), iw.VIMCO()):
        found = gradient.fused((1.0, 0.0), log_w.cuda(), kernel=True)
        value, coefficients = gradient.evaluate(iw.IWAE(), log_w)
        torch.testing.assert_close(found[0].cpu(), value)
        torch.testing.assert_close(found[1].model.cpu(), coefficients.model)


def test_asked_for_explicitly_a_kernel_that_cannot_run_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"kernel=True.*on the CPU.*TRITON_INTERPRET=1"):
        iw.DReG().fused((1.0, 0.0), torch.zeros(4, 2), kernel=True)
