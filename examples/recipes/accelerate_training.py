"""Training under Accelerate: the module's forward returns the bound, so that whatever wraps it sees every parameter."""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import DataLoader

import iwbounds as iw


class FactorAnalysis(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def pair(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)

        def log_joint(z):
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(self.decoder(z), 0.5).log_prob(x).sum(-1)

        return log_joint, Independent(Normal(mean, log_scale.exp()), 1)

    def forward(self, x):
        # Not the pair: DistributedDataParallel and autocast see what happens inside forward alone.
        return iw.estimate(*self.pair(x), num_samples=16).value


def main(quick=False):
    torch.manual_seed(0)
    data = torch.randn(400, 2) @ torch.randn(2, 6) + 0.5 * torch.randn(400, 6)
    accelerator = Accelerator(cpu=True) if quick else Accelerator()
    model = FactorAnalysis()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=50, shuffle=True))
    history = []
    for _ in range(10 if quick else 100):
        for x in loader:
            optimizer.zero_grad()
            value = model(x).mean()
            accelerator.backward(-value)
            optimizer.step()
            history.append(value.item())
    first, last = sum(history[:8]) / 8, sum(history[-8:]) / 8
    accelerator.print(f"bound per datum: {first:.2f} in the first epoch, {last:.2f} in the last")
    assert last > first + 3


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
