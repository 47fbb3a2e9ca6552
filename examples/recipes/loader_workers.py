"""Evaluation from a DataLoader with worker processes: the same numbers as without, to the last digit."""

import sys

import torch
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

import iwbounds as iw


def model(x):
    """z ~ N(0, 1), x | z ~ N(z, 1); the proposal is wider than the posterior N(x/2, 1/2)."""
    return lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x), Normal(x / 2, 0.9)


def main(quick=False):
    torch.manual_seed(0)
    x = 2**0.5 * torch.randn(200 if quick else 5000)
    reports = []
    for workers in (0, 1 if quick else 4):
        # Not shuffled: what is reported of a datum then stands in the datum's place. (Seeds go by the place, too.)
        loader = DataLoader(TensorDataset(x), batch_size=50, num_workers=workers)
        reports.append(iw.evaluate(model, loader, num_samples=200, seed=7, progress=not quick))
    first, second = reports
    print(first)
    assert torch.equal(first.log_evidence, second.log_evidence)
    truth = Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert abs(first.nll + truth) < 0.02, "the evidence of N(0, 2)"


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
