"""Small models in float64, the same on every rank, with noise that any rank can take its part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

import iwbounds as iw
from iwbounds.seeding import forked_rng

B, D = 3, 2


class Gaussian(torch.nn.Module):
    """z ~ N(0, 1), x | z ~ N(linear(z), 1), and a Gaussian proposal; ``model(x)`` gives both."""

    def __init__(self) -> None:
        super().__init__()
        with forked_rng(5):
            self.encoder, self.decoder = torch.nn.Linear(4, D).double(), torch.nn.Linear(D, 4).double()
            self.log_scale = torch.nn.Parameter(torch.full((D,), -0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Independent]:
        q = Independent(Normal(self.encoder(x), self.log_scale.exp()), 1)

        def log_joint(z: Tensor) -> Tensor:
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(self.decoder(z), 1.0).log_prob(x).sum(-1)

        return log_joint, q

    def noise(self, x: Tensor, z: Tensor) -> Tensor:
        """What the samples z were made of."""
        return ((z - self.encoder(x)) / self.log_scale.exp()).detach()

    def placed(self, x: Tensor, noise: Tensor) -> Tensor:
        """Samples in the graph."""
        return self.encoder(x) + self.log_scale.exp() * noise

    def samples(self, x: Tensor, count: int) -> Tensor:
        """In the graph, from fixed noise."""
        return self.placed(x, fixed_noise(count, len(x)))


class Mixed(Gaussian):
    """A coin beside z: path and score in one backward."""

    def forward(self, x: Tensor) -> tuple[Callable[[Any], Tensor], iw.Proposal]:
        log_joint, q = super().forward(x)
        coin = Independent(Bernoulli(logits=self.encoder(x)), 1)
        proposal = iw.Proposal(
            sample=lambda shape: (q.rsample(shape), coin.sample(shape)),
            log_prob=lambda latents: (q.log_prob(latents[0]), coin.log_prob(latents[1])),
            reparameterized=(True, False),
        )
        return lambda latents: log_joint(latents[0] + latents[1]), proposal

    def samples(self, x: Tensor, count: int) -> Any:
        coins = (fixed_noise(count, len(x), seed=9) > 0).double()
        return super().samples(x, count), coins


def data(count: int = B) -> Tensor:
    with forked_rng(1):
        return torch.randn(count, 4, dtype=torch.float64)


def fixed_noise(count: int, batch: int, seed: int = 2) -> Tensor:
    with forked_rng(seed):
        return torch.randn(count, batch, D, dtype=torch.float64)


def flat_gradient(loss: Tensor, module: torch.nn.Module) -> Tensor:
    """All parameters' gradients in one vector; zeros where one has none."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([torch.zeros(p.numel()).to(p) if g is None else g.flatten() for p, g in pairs])
