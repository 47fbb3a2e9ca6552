"""Property tests of a proposal on (0, ∞): a forgotten Jacobian is found, the right density passes. For pytest, too."""

import sys

import torch
from torch.distributions import LogNormal, Normal

import iwbounds as iw
from iwbounds.testing import assert_sandwich, check_contract

X = torch.tensor([0.4, 1.0, 2.5])
PRIOR, NOISE = LogNormal(0.0, 1.0), 0.5


def simulate():
    """A data set and the latents it came from: all that a test needs; the evidence is not used."""
    z = PRIOR.sample((50,))
    return Normal(z, NOISE).sample(), z


def log_joint(x, z):
    return PRIOR.log_prob(z) + Normal(z, NOISE).log_prob(x)


def right(x, jacobian=1.0):
    """z = exp(u), u ~ N: log q(z) = log q(u) + log |du/dz|, and |du/dz| = 1/z."""
    base = Normal(x.clamp_min(0.1).log(), 0.6)
    return iw.Proposal(lambda shape: base.rsample(shape).exp(), lambda z: base.log_prob(z.log()) - jacobian * z.log())


def planted(x):
    return right(x, jacobian=0.0)


def check(proposal, seed=0):
    check_contract(lambda z: log_joint(X, z), proposal(X), x=X, seed=seed)
    assert_sandwich(simulate, log_joint, proposal, max_datasets=300, seed=seed)


def test_the_proposal_is_a_density():
    check(right)


def test_a_forgotten_jacobian_is_found():
    try:
        check(planted)
    except AssertionError as found:
        print(found)
    else:
        raise AssertionError("the planted error was not found")


def main(quick=False):  # noqa: ARG001
    test_the_proposal_is_a_density()
    test_a_forgotten_jacobian_is_found()


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
