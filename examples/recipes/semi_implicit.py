"""A posterior that no Gaussian fits, by a network fed with noise: its density is an integral, bounded on both sides."""

import sys

import torch
from torch import nn
from torch.distributions import Independent, Normal

import iwbounds as iw

LOG_EVIDENCE = 0.7


def log_joint(z):
    """A normalised banana times e^0.7: z_1 ~ N(0, 1), z_2 ~ N(z_1², 0.5²)."""
    first, second = z.unbind(-1)
    return Normal(0.0, 1.0).log_prob(first) + Normal(first**2, 0.5).log_prob(second) + LOG_EVIDENCE


def train(parameters, proposal, steps):
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        (-iw.estimate(log_joint, proposal(), iw.ELBO(), num_samples=32).value).backward()
        optimizer.step()
    with torch.no_grad():
        return iw.estimate(log_joint, proposal(), iw.ELBO(), num_samples=5000).value.item()


def main(quick=False):
    torch.manual_seed(0)
    steps = 300 if quick else 3000
    loc, log_scale = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    gaussian = train([loc, log_scale], lambda: Independent(Normal(loc, log_scale.exp()), 1), steps)

    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    scale = torch.full((2,), -1.0, requires_grad=True)
    noise = Independent(Normal(torch.zeros(2), 1.0), 1)  # q(ψ)

    def semi_implicit():
        # q(z) = ∫ N(z; network(ψ), s²) q(ψ) dψ; 20 draws of ψ bound its density from above, so log p(x) from below.
        return iw.HierarchicalProposal(noise, lambda psi: Independent(Normal(network(psi), scale.exp()), 1), num_aux=20)

    found = train([*network.parameters(), scale], semi_implicit, steps)
    print(f"bound with a Gaussian {gaussian:.3f}, semi-implicit {found:.3f}; log evidence {LOG_EVIDENCE}")
    assert gaussian + 0.15 < found < LOG_EVIDENCE + 0.03


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
