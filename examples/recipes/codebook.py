"""A codebook: images as four discrete codes each, trained by VIMCO, without straight-through or temperature."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Categorical, Independent
from torch.nn.functional import softplus

import iwbounds as iw

POSITIONS, CODES = 4, 8


class CodebookVAE(nn.Module):
    """Codes ~ a learned prior for each position; pixels ~ Bernoulli(decoder(embedded codes))."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(POSITIONS, CODES))
        self.codebook = nn.Parameter(torch.randn(POSITIONS, CODES, 8))
        self.encoder = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, POSITIONS * CODES))
        self.decoder = nn.Sequential(nn.Linear(POSITIONS * 8, 100), nn.ReLU(), nn.Linear(100, 64))

    def forward(self, x):
        def log_joint(codes):
            entries = self.codebook[torch.arange(POSITIONS), codes]  # (K, B, positions, 8)
            logits = self.decoder(entries.flatten(-2))
            prior = Independent(Categorical(logits=self.prior), 1).log_prob(codes)
            return prior + (x * logits - softplus(logits)).sum(-1)

        logits = self.encoder(x).unflatten(-1, (POSITIONS, CODES))
        return log_joint, Independent(Categorical(logits=logits), 1)


def main(quick=False):
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().data).float().ge(8).float()
    model = CodebookVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    history = []
    for _ in range(100 if quick else 5000):
        x = images[torch.randint(len(images), (50,))]
        optimizer.zero_grad()
        value = iw.estimate(*model(x), gradient=iw.VIMCO(), num_samples=8).value.mean()  # the default here, too
        (-value).backward()
        optimizer.step()
        history.append(value.item())
    codes = model(images)[1].sample()
    used = [len(codes[:, position].unique()) for position in range(POSITIONS)]
    print(f"bound {history[0]:.1f} at first, {sum(history[-10:]) / 10:.1f} in the end; codes in use {used} of {CODES}")
    assert sum(history[-10:]) / 10 > history[0] + 10
    assert min(used) > 1, "a position that always says the same says nothing"


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
