"""Sequences of different lengths in one batch: padding is masked out of both densities, and the evidence is right."""

import sys

import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import iwbounds as iw


class StateSpace(nn.Module):
    """z_t ~ N(z_{t−1}, 0.5²), x_t ~ N(z_t, 1); q(z_t | x) a Gaussian from a network that reads x both ways."""

    def __init__(self):
        super().__init__()
        self.network, self.out = nn.GRU(2, 16, batch_first=True, bidirectional=True), nn.Linear(32, 2)

    def forward(self, batch):
        x, mask = batch  # (B, T), and False where there is padding
        # The network is told what is padding: a zero alone could be data.
        mean, log_scale = self.out(self.network(torch.stack([x, mask.float()], -1))[0]).unbind(-1)
        q = Normal(mean, log_scale.exp())

        def log_prob(z):  # what is masked in p is masked in q: those z are no latents
            return q.log_prob(z).masked_fill(~mask, 0.0).sum(-1)

        def log_joint(z):
            previous = nn.functional.pad(z, (1, 0))[..., :-1]
            steps = Normal(previous, 0.5).log_prob(z) + Normal(z, 1.0).log_prob(x)
            return steps.masked_fill(~mask, 0.0).sum(-1)

        return log_joint, iw.Proposal(q.rsample, log_prob, batch_shape=(len(x),))


def main(quick=False):
    torch.manual_seed(0)
    mask = torch.arange(10) < torch.randint(3, 11, (60, 1))
    x = (0.5 * torch.randn(60, 10).cumsum(1) + torch.randn(60, 10)).masked_fill(~mask, 0.0)  # any number but NaN
    model = StateSpace()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(80 if quick else 1000):
        iw.accumulate(model, (x, mask), num_samples=16)
        optimizer.step()
        optimizer.zero_grad()
    report = iw.evaluate(model, (x, mask), num_samples=1000, progress=not quick, seed=0)
    cov = 0.25 * torch.ones(10, 10).tril() @ torch.ones(10, 10).triu() + torch.eye(10)  # of x_1..x_10
    exact = [MultivariateNormal(torch.zeros(n), cov[:n, :n]).log_prob(x[i, :n]) for i, n in enumerate(mask.sum(1))]
    gap = (torch.stack(exact) - report.log_evidence).mean()
    print(f"{report}\nthe exact evidence is {gap:.4f} nats above, on average")
    assert gap.abs() < 0.06, "a step too many or too few is worth a nat"


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
