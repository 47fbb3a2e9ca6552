"""Bayesian regression with mini-batches: global weights, a likelihood scaled to all the data, an evidence of all."""

import sys
from functools import partial

import torch
from torch.distributions import Independent, MultivariateNormal, Normal

import iwbounds as iw


def main(quick=False):
    torch.manual_seed(0)
    n, size = 500, 50
    features = torch.cat([torch.ones(n, 1), torch.randn(n, 3)], 1)
    y = features @ torch.tensor([0.5, -1.0, 0.3, 2.0]) + torch.randn(n)

    def log_joint(w, rows=slice(None), scale=1.0):
        """w ~ N(0, I), y ~ N(features w, 1): (K, 4) to (K,); batch shape ()."""
        likelihood = Normal(w @ features[rows].T, 1.0).log_prob(y[rows]).sum(-1)
        return Normal(0.0, 1.0).log_prob(w).sum(-1) + scale * likelihood

    loc, log_scale = torch.zeros(4, requires_grad=True), torch.full((4,), -2.0, requires_grad=True)
    optimizer = torch.optim.Adam([loc, log_scale], lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps := 300 if quick else 3000)
    for _ in range(steps):
        batch = partial(log_joint, rows=torch.randint(n, (size,)), scale=n / size)
        optimizer.zero_grad()
        q = Independent(Normal(loc, log_scale.exp()), 1)
        # An unbiased estimate of the log-joint: inside the ELBO, which is a mean, and inside nothing else.
        value = iw.estimate(batch, q, iw.ELBO(), num_samples=8, scaled_likelihood=True).value
        (-value).backward()
        optimizer.step()
        scheduler.step()
    q = Independent(Normal(loc.detach(), log_scale.detach().exp()), 1)
    exact = MultivariateNormal(torch.zeros(n), features @ features.T + torch.eye(n)).log_prob(y).item()
    found = iw.certify(log_joint, q, tolerance=0.1, max_samples=4000)  # on all the data: a bound again
    print(f"log evidence {found.log_evidence.item():.3f}, certified above {found.lower.item():.3f}; exact {exact:.3f}")
    assert found.lower < exact < found.lower + 0.5
    # The same IWAE of scaled mini-batches exceeds the evidence: a lucky batch counts as if all data were like it.
    with torch.no_grad():
        batches = [partial(log_joint, rows=torch.randint(n, (size,)), scale=n / size) for _ in range(100)]
        wrong = [iw.estimate(batch, q, num_samples=64, scaled_likelihood=True).value for batch in batches]
    top = torch.logsumexp(torch.stack(wrong), 0) - torch.tensor(100.0).log()
    print(f"the log of its mean over mini-batches: {top.item():.0f}")
    assert top > exact + 10


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
