"""A normalising flow of zuko as the posterior of a banana, and the evidence that it certifies."""

import sys

import torch
import zuko
from torch.distributions import Normal

import iwbounds as iw

LOG_EVIDENCE = 1.5


def log_joint(z):
    """A normalised banana times e^1.5: z_1 ~ N(0, 1), z_2 ~ N(z_1²/2, 0.6²)."""
    first, second = z.unbind(-1)
    return Normal(0.0, 1.0).log_prob(first) + Normal(0.5 * first**2, 0.6).log_prob(second) + LOG_EVIDENCE


def main(quick=False):
    torch.manual_seed(0)
    flow = zuko.flows.NSF(2, transforms=2, hidden_features=(32, 32))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(60 if quick else 2000):
        optimizer.zero_grad()
        # flow() makes the distribution; the lazy flow itself is none. A conditional flow is called with its context.
        (-iw.estimate(log_joint, flow(), num_samples=128).value).backward()
        optimizer.step()
    with torch.no_grad():
        found = iw.certify(log_joint, flow(), tolerance=0.1, max_samples=20_000)
        weights = iw.estimate(log_joint, flow(), num_samples=2000)
    print(
        f"log evidence {found.log_evidence.item():.3f}, certified above {found.lower.item():.3f}; truth {LOG_EVIDENCE}"
    )
    print(f"ESS {weights.ess.item():.0f} of 2000, k̂ {weights.pareto_k.item():.2f}")
    assert found.lower < LOG_EVIDENCE < found.lower + 0.2
    assert weights.ess > 1000


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
