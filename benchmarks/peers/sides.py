"""One VAE, four ways to train it as an IWAE: hand-written, with Pyro, with pythae and with iwbounds.

Every side is made of the same model, whose parameters are the same objects throughout, and is called with a batch. It
leaves the gradient of the batch's loss in ``.grad`` and returns the loss, as its library gives it: minus the summed
bound, or what pythae has in its place. No optimiser takes part.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from common import VAE, step_of
from pyro.infer import RenyiELBO
from pythae.models import IWAE as PYTHAE_IWAE
from pythae.models import IWAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.densities import bernoulli_logits

__all__ = ["FusedLikelihood", "Side", "hand_written", "iwbounds_side", "pyro_side", "pythae_side"]

pyro.enable_validation(False)

Side = Callable[[Tensor], float]


class FusedLikelihood(VAE):
    """The pixels by :func:`iwbounds.densities.bernoulli_logits`, the latents by torch.distributions."""

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        prior = Normal(z.new_zeros(()), z.new_ones(()), validate_args=False)
        return prior.log_prob(z).sum(-1) + bernoulli_logits(self.decoder(z), x)


def hand_written(model: VAE, num_samples: int, noise: Tensor | None = None, compiled: bool = False) -> Side:
    """The shortest PyTorch; with ``noise`` (K, batch, latent) in place of a draw, what the others are held against."""

    def loss_of(x: Tensor) -> Tensor:
        log_joint, q = model(x)
        z = q.rsample((num_samples,)) if noise is None else q.mean + q.stddev * noise
        return len(x) * math.log(num_samples) - (log_joint(z) - q.log_prob(z)).logsumexp(0).sum()

    step = step_of(model, loss_of, compiled)
    return lambda x: step(x).item()


def iwbounds_side(
    model: VAE,
    num_samples: int,
    gradient: iw.Gradient,
    family: type[VAE] = VAE,
    backward_samples: int | None = None,
    compiled: bool = False,
) -> Side:
    """With the log-densities of torch.distributions, or those of another ``family`` of the same parameters."""

    def loss_of(x: Tensor) -> Tensor:
        _, q = family.forward(model, x)
        estimate = iw.estimate(
            lambda z: family.log_joint(model, x, z),
            q,
            gradient=gradient,
            num_samples=num_samples,
            backward_samples=backward_samples,
        )
        return -estimate.value.sum()

    step = step_of(model, loss_of, compiled)
    return lambda x: step(x).item()


def pyro_side(model: VAE, num_samples: int) -> Side:
    """``loss_and_grads`` alone: one plate of known nesting, vectorised particles, no validation, no optimiser."""
    pyro.clear_param_store()
    prior = dist.Normal(torch.zeros(model.latent), torch.ones(model.latent)).to_event(1)

    def generate(x: Tensor) -> None:
        pyro.module("decoder", model.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=model.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", model.encoder)
        mean, log_scale = model.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    elbo = RenyiELBO(alpha=0, num_particles=num_samples, vectorize_particles=True, max_plate_nesting=1)

    def side(x: Tensor) -> float:
        model.zero_grad()
        return elbo.loss_and_grads(generate, guide, x)

    return side


class _Encoder(BaseEncoder):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_scale = self.layers(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=2 * log_scale)


class _Decoder(BaseDecoder):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.layers(z).sigmoid())


def pythae_side(model: VAE, num_samples: int) -> Side:
    """The mean over the batch of Σ w̃ log w, whose gradient is that of the bound though its value is not."""
    pixels = model.decoder[-1].out_features
    config = IWAEConfig(
        input_dim=(pixels,), latent_dim=model.latent, number_samples=num_samples, reconstruction_loss="bce"
    )
    wrapped = PYTHAE_IWAE(config, encoder=_Encoder(model.encoder), decoder=_Decoder(model.decoder))

    def side(x: Tensor) -> float:
        model.zero_grad()
        loss = wrapped({"data": x}).loss
        loss.backward()
        return loss.item()

    return side
