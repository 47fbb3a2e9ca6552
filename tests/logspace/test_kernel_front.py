"""The public reductions hand over to the fused operators where those serve, and come back the same."""

import pytest
import torch

import iwbounds as iw
from iwbounds.logspace import mean

REDUCTIONS = {"log_mean_exp": iw.log_mean_exp, "leave_one_out": iw.leave_one_out_log_mean_exp}


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_served_by_the_operator_a_reduction_is_the_same_to_second_order(monkeypatch, reduction):
    """On the CPU the operator runs its reference: the wiring is tested here, the kernels in their own tests."""
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    plain = reduction(x)
    served = []
    monkeypatch.setattr(mean, "served_by_kernel", lambda x: served.append(x.shape) or True)
    found = reduction(x)
    assert served == [(5, 3)]
    torch.testing.assert_close(found, plain, rtol=1e-14, atol=1e-15)
    assert torch.autograd.gradcheck(reduction, x)
    assert torch.autograd.gradgradcheck(reduction, x)


def test_a_cpu_tensor_is_never_served():
    assert not mean.served_by_kernel(torch.zeros(3))
