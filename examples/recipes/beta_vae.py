"""A β-VAE with warm-up: the weight on the KL term stands in the log-joint, and the report is of the model itself."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn.functional import softplus

import iwbounds as iw


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 20))
        self.decoder = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 64))

    def forward(self, x, beta=1.0):
        mean, log_scale = self.encoder(x).chunk(2, -1)
        q = Independent(Normal(mean, log_scale.exp()), 1)

        def log_joint(z):
            logits = self.decoder(z)
            prior, likelihood = Normal(0.0, 1.0).log_prob(z).sum(-1), (x * logits - softplus(logits)).sum(-1)
            # log p(x|z) + β log p(z) − β log q(z), and estimate subtracts a whole log q: so (1 − β) of it is added.
            # (A β inside log_prob would be a proposal that is no density.)
            return likelihood + beta * prior + (1 - beta) * q.log_prob(z)

        return log_joint, q


def main(quick=False):
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().data).float().ge(8).float()
    train, test = images[:1500], images[1500:1600]
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    steps = 200 if quick else 4000
    before = iw.evaluate(model, test, num_samples=100, progress=False, seed=0)
    for step in range(steps):
        beta = min(1.0, step / (steps / 2))  # below 1 this is no bound of log p(x); at 1 it is the ELBO
        optimizer.zero_grad()
        x = train[torch.randint(len(train), (50,))]
        # Only the ELBO: a multi-sample bound of a tempered density is a bound of another integral.
        value = iw.estimate(*model(x, beta), iw.ELBO(), iw.Reparameterized(), num_samples=1).value
        (-value.mean()).backward()
        optimizer.step()
    report = iw.evaluate(model, test, num_samples=100, progress=False, seed=0)  # β = 1, whatever it was trained with
    spread = model(test)[1].mean.std(0)
    print(f"{report}\nactive units: {int((spread > 0.1).sum())} of 10")
    assert report.nll < before.nll - 5
    assert (spread > 0.1).sum() >= 2, "the warm-up keeps units from collapsing before the decoder can use them"


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
