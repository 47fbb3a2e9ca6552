"""The leading axes of latents are those of the log-densities, or the call is refused.

Root cause: only the first axis was compared, and the rest was left to broadcasting.
"""

import pytest
import torch
from torch.distributions import Independent, Normal

import iwbounds as iw


def log_joint(z):
    return -z.square()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.randn(3), r"no axis for the samples"),
        (torch.randn(5, 1), r"leading axes of the log-densities, \(5, 3\).*got a latent of shape \(5, 1\)"),
    ],
    ids=["without a sample axis", "broadcast"],
)
@pytest.mark.parametrize("gradient", [iw.Reparameterized(), iw.VIMCO()], ids=repr)
def test_samples_of_another_batch_are_refused(samples, message, gradient):
    with pytest.raises(ValueError, match=message):
        iw.estimate(log_joint, Normal(torch.zeros(3), 1.0), gradient=gradient, samples=samples)


def test_a_global_latent_beside_a_batch_is_refused():
    loc = torch.zeros(4, requires_grad=True)
    q = iw.Proposal(
        lambda shape: {"global": loc + torch.randn(*shape, 4), "local": torch.randn(*shape, 3)},
        lambda z: Normal(0.0, 1.0).log_prob(z["local"]) + Normal(loc, 1.0).log_prob(z["global"]).sum(-1, keepdim=True),
    )
    with pytest.raises(
        ValueError, match=r"leading axes.*\(64, 3\).*got a latent of shape \(64, 4\).*Nothing is broadcast"
    ):
        iw.estimate(lambda z: -z["local"].square(), q)


def test_global_and_expanded_latents_are_fine():
    loc = torch.zeros(4, requires_grad=True)
    assert iw.estimate(lambda z: -z.square().sum(-1), Independent(Normal(loc, 1.0), 1)).value.shape == ()
    q = Independent(Normal(loc, 1.0).expand((3, 4)), 1)
    assert iw.estimate(lambda z: -z.square().sum(-1), q).value.shape == (3,)
    assert iw.estimate(log_joint, Normal(0.0, 1.0), samples=torch.randn(5, 3)).value.shape == (3,)


def test_parameters_may_serve_more_data_than_their_own_batch():
    """One more batch axis in given samples: the value and gradient of each datum are those of it alone."""
    loc = torch.zeros(3, requires_grad=True)
    z = torch.randn(5, 4, 3)
    value = iw.estimate(log_joint, Normal(loc, 1.0), gradient=iw.VIMCO(), samples=z).value
    assert value.shape == (4, 3)
    alone = [iw.estimate(log_joint, Normal(loc, 1.0), gradient=iw.VIMCO(), samples=z[:, i]).value for i in range(4)]
    torch.testing.assert_close(value, torch.stack(alone))
    for one, other in zip(value.sum(1), alone, strict=True):
        found = torch.autograd.grad(one, loc, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(other.sum(), loc, retain_graph=True))
