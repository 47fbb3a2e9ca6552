"""A VAE whose decoder follows log p(x) without bias: U-MLMC for θ, DReG of IWAE for φ, against IWAE at equal cost."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

import iwbounds as iw

CASES = {
    "U-MLMC(4) for θ, IWAE for φ": {"bound": iw.UMLMC(4, 6, complete_up_to=0), "proposal_bound": iw.IWAE()},
    "IWAE of 16 samples": {"bound": iw.IWAE(), "num_samples": 16},  # as many as U-MLMC takes on average
}


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 20))
        self.decoder = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 64))

    def forward(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)
        prior, likelihood = Normal(0.0, 1.0), lambda z: Bernoulli(logits=self.decoder(z)).log_prob(x).sum(-1)
        return lambda z: prior.log_prob(z).sum(-1) + likelihood(z), Independent(Normal(mean, log_scale.exp()), 1)


def trained(train, test, seed, budget, looks, **case):
    """The test NLL at equal parts of the budget: samples for each image of a batch, which is what a step costs."""
    torch.manual_seed(seed)
    model, spent, curve = VAE(), 0, []
    optimizer = torch.optim.Adam(model.parameters())
    while spent < budget:
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - spent / budget)
        estimate = iw.estimate(*model(train[torch.randint(len(train), (100,))].bernoulli()), gradient=iw.DReG(), **case)
        optimizer.zero_grad()
        (-estimate.value.mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)  # a rare level weighs its noise by 1/p
        optimizer.step()
        spent += len(estimate.log_weights)
        while spent >= budget * (len(curve) + 1) / looks:
            curve.append(iw.evaluate(model, test, num_samples=200, progress=False, seed=0).nll)
    return curve


def main(quick=False, seed=0, budget=20_000, looks=12):
    grey = torch.from_numpy(load_digits().data).float() / 16
    train, test = grey[torch.arange(len(grey)) % 4 > 0], grey[::4].bernoulli(generator=torch.Generator().manual_seed(0))
    size = (test[:30], seed, 1_000, 2) if quick else (test, seed, budget, looks)
    curves = {name: trained(train, *size, **case) for name, case in CASES.items()}
    print(*(f"{name}: test NLL {curve[-1]:.2f} nats" for name, curve in curves.items()), sep="\n")
    assert torch.tensor([curve[-1] for curve in curves.values()]).diff().abs() < (2.0 if quick else 0.5)
    return curves


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
