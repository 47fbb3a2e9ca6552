"""Flows of zuko: lazy ones get a message, inverse-expensive ones take their density from the pass that drew them."""

from __future__ import annotations

import pytest
import torch

import iwbounds as iw
from iwbounds.adapters.zuko import from_flow

zuko = pytest.importorskip("zuko", reason="what is adapted: pip install 'iwbounds[recipes]'")


def log_joint(z):
    return -0.5 * (z - 0.3).square().sum(-1)


@pytest.fixture
def inverse_autoregressive():
    masked = zuko.flows.MAF(3, transforms=2, hidden_features=(8,))
    flow = zuko.flows.Flow([t.inv for t in masked.transform.transforms], masked.base)
    return flow.double()


class Counting:
    """How often the density was evaluated at given values."""

    def __init__(self, flow, monkeypatch):
        self.count, plain = 0, flow.log_prob

        def log_prob(z):
            self.count += 1
            return plain(z)

        monkeypatch.setattr(flow, "log_prob", log_prob)


def test_a_lazy_flow_gets_a_message(inverse_autoregressive):
    for call in (lambda: iw.estimate(log_joint, inverse_autoregressive), lambda: from_flow(inverse_autoregressive)):
        with pytest.raises(TypeError, match=r"\(context\)"):
            call()


def test_what_is_no_flow_is_refused():
    with pytest.raises(TypeError, match="Other distributions are proposals as they are"):
        from_flow(torch.distributions.Normal(0.0, 1.0))


def test_gradients_are_those_of_the_flow_as_it_is(inverse_autoregressive, monkeypatch):
    flow, found = inverse_autoregressive(), []
    calls = Counting(flow, monkeypatch)
    for proposal in (from_flow(flow), flow):
        torch.manual_seed(0)
        value = iw.estimate(log_joint, proposal, gradient=iw.Reparameterized(), num_samples=6).value
        found.append([value.detach(), *torch.autograd.grad(value, [*inverse_autoregressive.parameters()])])
        assert calls.count == (proposal is flow)
    assert max(g.abs().max() for g in found[1][1:]) > 0.01
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_a_training_step_chooses_a_gradient_that_fits_and_refuses_others(inverse_autoregressive):
    q = from_flow(inverse_autoregressive())
    value = iw.estimate(log_joint, q, num_samples=6).value
    assert torch.autograd.grad(value, [*inverse_autoregressive.parameters()])[0].abs().max() > 0
    for gradient in (iw.DReG(), iw.STL(), iw.VIMCO(), iw.Wake()):
        with pytest.raises(ValueError, match="no derivative at fixed parameters"):
            iw.estimate(log_joint, q, gradient=gradient, num_samples=6)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_evaluation_never_inverts(inverse_autoregressive, monkeypatch, chunk_size):
    flow = inverse_autoregressive()
    calls = Counting(flow, monkeypatch)
    with torch.no_grad():
        torch.manual_seed(0)
        value = iw.estimate(log_joint, from_flow(flow), num_samples=10, chunk_size=chunk_size).value
        assert calls.count == 0
        torch.manual_seed(0)
        torch.testing.assert_close(value, iw.estimate(log_joint, flow, num_samples=10).value)


def test_chunks_in_a_graph_are_exact(inverse_autoregressive):
    parameters, found = [*inverse_autoregressive.parameters()], []
    for chunk_size in (None, 4):
        torch.manual_seed(0)
        q = from_flow(inverse_autoregressive())
        value = iw.estimate(log_joint, q, num_samples=10, chunk_size=chunk_size).value
        found.append(torch.autograd.grad(value, parameters))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_density_is_that_of_the_rows_and_of_nothing_else(inverse_autoregressive):
    flow = inverse_autoregressive()
    q = from_flow(flow)
    other = q.sample((6,))
    z = q.sample((6,))
    shifted = torch.cat([z.new_zeros(1), z.flatten()])[1:].reshape(6, 3)
    for values in (z, z[2:5], z[1:], z[::2], z.flip(0), z + 0.1, other, shifted, z.T.contiguous().T):
        torch.testing.assert_close(q.log_prob(values), flow.log_prob(values), rtol=1e-9, atol=1e-9)
    z.add_(0.5)
    torch.testing.assert_close(q.log_prob(z), flow.log_prob(z), rtol=1e-9, atol=1e-9)


def test_a_sandwich_takes_it(inverse_autoregressive):
    draws = 0.3 + torch.randn(500, 3, dtype=torch.float64)
    found = iw.sandwich(log_joint, from_flow(inverse_autoregressive()), draws, num_samples=500, exact=True)
    truth = 1.5 * torch.log(torch.tensor(2 * torch.pi))
    assert found.lower.certificate < truth < found.upper.certificate
