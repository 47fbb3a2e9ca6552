"""The networks of Burda et al.: one stochastic layer of 50 units, or two of 100 and 50, with tanh layers between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import iwbounds as iw
from iwbounds.densities import bernoulli_logits, diagonal_gaussian

LogJoint = Callable[[Tensor], Tensor]


def network(*sizes: int) -> nn.Sequential:
    """Linear layers with tanh between them, Glorot-uniform weights and biases of zero."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())][:-1]
    for layer in layers[::2]:  # every other one is a tanh
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def normal(mean: Tensor, log_scale: Tensor) -> Independent:
    """A diagonal Gaussian. Without validation: it reads every value, each step. A NaN shows in the bound."""
    return Independent(Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)


def start_at_mean(decoder: nn.Sequential, mean: Tensor) -> None:
    """The decoder's last bias at the logits of the mean image, as in the paper."""
    # clamped: a pixel that is never inked has a logit of −inf
    decoder[-1].bias.data = mean.clamp(1e-3, 1 - 1e-3).logit()


class OneLayer(nn.Module):
    """z ~ N(0, I), x ~ Bernoulli(decoder(z)), q(z | x) a diagonal Gaussian: 784-200-200-50 both ways."""

    def __init__(self, mean: Tensor, hidden: int = 200, latent: int = 50) -> None:
        super().__init__()
        self.encoder = network(len(mean), hidden, hidden, 2 * latent)
        self.decoder = network(latent, hidden, hidden, len(mean))
        start_at_mean(self.decoder, mean)

    def codes(self, x: Tensor) -> Sequence[Tensor]:
        """The mean of each stochastic layer's posterior, (N, units): what active units are counted in."""
        return (self.encoder(x).chunk(2, -1)[0],)

    def forward(self, x: Tensor) -> tuple[LogJoint, Independent]:
        mean, log_scale = self.encoder(x).chunk(2, -1)

        def log_joint(z: Tensor) -> Tensor:
            return diagonal_gaussian(z, 0.0, 0.0) + bernoulli_logits(self.decoder(z), x)

        return log_joint, normal(mean, log_scale)


class TwoLayers(nn.Module):
    """z2 ~ N(0, I), z1 | z2 Gaussian, x | z1 Bernoulli; q(z1 | x) q(z2 | z1): units 100 and 50, hidden 200 and 100."""

    def __init__(self, mean: Tensor, hidden: int = 200, latent: int = 50) -> None:
        super().__init__()
        near, far = 2 * latent, latent  # the paper's 100 and 50
        self.encoder = network(len(mean), hidden, hidden, 2 * near)
        self.far_encoder = network(near, hidden // 2, hidden // 2, 2 * far)
        self.near_decoder = network(far, hidden // 2, hidden // 2, 2 * near)
        self.decoder = network(near, hidden, hidden, len(mean))
        start_at_mean(self.decoder, mean)

    def codes(self, x: Tensor) -> Sequence[Tensor]:
        """Of the far layer: the mean of q(z2 | z1) at the mean of q(z1 | x)."""
        near = self.encoder(x).chunk(2, -1)[0]
        return near, self.far_encoder(near).chunk(2, -1)[0]

    def forward(self, x: Tensor) -> tuple[iw.PriorAndLikelihood, iw.Proposal]:
        near_mean, near_log_scale = self.encoder(x).chunk(2, -1)

        def sample(shape: Sequence[int]) -> tuple[Tensor, Tensor]:
            # torch's global generator: an epoch that is seeded can be repeated
            z1 = near_mean + near_log_scale.exp() * torch.randn(*shape, *near_mean.shape)
            mean, log_scale = self.far_encoder(z1).chunk(2, -1)
            return z1, mean + log_scale.exp() * torch.randn_like(mean)

        def log_prob(z: tuple[Tensor, Tensor]) -> Tensor:
            z1, z2 = z
            # The far encoder is evaluated at the z1 that is given: a path leads from z1 into q(z2 | z1) too.
            return diagonal_gaussian(z1, near_mean, near_log_scale) + diagonal_gaussian(
                z2, *self.far_encoder(z1).chunk(2, -1)
            )

        # The prior in sight, for GDReG: that of z1 has a network to train. Others take it for a plain log-joint.
        def near_prior(z: tuple[Tensor, Tensor]) -> Independent:
            return normal(*self.near_decoder(z[1]).chunk(2, -1))

        at_zero = x.new_zeros(self.near_decoder[0].in_features)
        prior = near_prior, normal(at_zero, at_zero)
        log_joint = iw.PriorAndLikelihood(prior, lambda z: bernoulli_logits(self.decoder(z[0]), x))
        return log_joint, iw.Proposal(sample, log_prob)


MODELS: dict[int, type[OneLayer] | type[TwoLayers]] = {1: OneLayer, 2: TwoLayers}
"""By the number of stochastic layers."""


@torch.no_grad()
def active_units(model: OneLayer | TwoLayers, x: Tensor) -> list[int]:
    """In each stochastic layer, the units whose posterior mean varies over the data by more than 0.01 (variance)."""
    return [(code.var(0) > 0.01).sum().item() for code in model.codes(x)]
