"""Missing pixels of handwritten digits, filled in by posterior expectations under importance weights (MIWAE).

Half of the pixels of every image are missing, in training too. The model is fitted to the observed ones: the bound
needs nothing but p(observed, z). What is missing is then imputed by its posterior expectation given what is observed.

Reference: Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets,
arXiv:1812.02633.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from _common import digits, fit, mlp, options_parser, print_table, pyplot, save_figure
from digits import show_rows
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

import iwbounds as iw


@dataclass(frozen=True)
class Incomplete:
    """Binary images of which only some pixels are observed: the same ones whenever an image is seen."""

    x: Tensor
    """``(images, pixels)``; what is not observed is for scoring alone."""
    observed: Tensor
    """1 where a pixel is observed, else 0."""

    @classmethod
    def at_random(cls, x: Tensor, missing: float, seed: int) -> Incomplete:
        generator = torch.Generator().manual_seed(seed)
        return cls(x, (torch.rand(x.shape, generator=generator) >= missing).to(x))

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch, in a new order."""
        for rows in torch.randperm(len(self.x), generator=generator).split(size):
            yield self.x[rows], self.observed[rows]

    def mean(self) -> Tensor:
        """Of each pixel, over the images in which it is observed."""
        return (self.x * self.observed).sum(0) / self.observed.sum(0)


class IncompleteAutoencoder(nn.Module):
    """z ~ N(0, I), pixels ~ Bernoulli(decoder(z)); q(z | observed) a diagonal Gaussian from what is observed."""

    def __init__(self, mean: Tensor, hidden: int, latent: int) -> None:
        super().__init__()
        pixels = len(mean)
        self.encoder = mlp(2 * pixels, hidden, hidden, 2 * latent)
        self.decoder = mlp(latent, hidden, hidden, pixels)
        self.decoder[-1].bias.data = mean.clamp(0.01, 0.99).logit()

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Callable[[Tensor], Tensor], Independent]:
        x, observed = batch
        # A missing pixel is 0, half way between the two colours, and the encoder is told which ones are missing.
        mean, log_scale = self.encoder(torch.cat([(2 * x - 1) * observed, observed], -1)).chunk(2, -1)

        def log_joint(z: Tensor) -> Tensor:
            logits = self.decoder(z)
            log_p = (x * logits - F.softplus(logits)) * observed  # a missing pixel integrates to 1
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + log_p.sum(-1)

        return log_joint, Independent(Normal(mean, log_scale.exp()), 1)

    def probabilities(self, z: Tensor) -> Tensor:
        """Of every pixel being ink: what is averaged over the posterior."""
        return self.decoder(z).sigmoid()


def train(data: Incomplete, num_samples: int, options: argparse.Namespace, label: str) -> IncompleteAutoencoder:
    torch.manual_seed(options.seed)
    model = IncompleteAutoencoder(data.mean(), options.hidden, options.latent).to(options.device)
    gradient = iw.Reparameterized() if num_samples == 1 else iw.DReG()
    fit(
        model,
        data,
        gradient,
        num_samples,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        seed=options.seed,
        label=label,
    )
    return model


@torch.no_grad()
def one_sample(model: IncompleteAutoencoder, data: Incomplete) -> Tensor:
    """The decoder at one draw of the encoder."""
    return model.probabilities(model((data.x, data.observed))[1].sample())


@torch.no_grad()
def weighted(model: IncompleteAutoencoder, data: Incomplete, num_samples: int) -> Tensor:
    """The decoder's mean over the posterior."""
    log_joint, q = model((data.x, data.observed))
    return iw.posterior_expectation(log_joint, q, model.probabilities, num_samples).mean.to(data.x)


def scores(imputed: Tensor, data: Incomplete) -> tuple[float, float]:
    """Root mean square error and cross-entropy in nats, per missing pixel."""
    missing = data.observed == 0
    p, x = imputed[missing].clamp(1e-6, 1 - 1e-6), data.x[missing]
    return (p - x).square().mean().sqrt().item(), F.binary_cross_entropy(p, x).item()


def draw_figure(imputed: dict[str, Tensor], data: Incomplete, options: argparse.Namespace) -> None:
    chosen = slice(None, None, max(1, len(data.x) // 14))
    rows = {"data": data.x, "observed": torch.where(data.observed == 1, data.x, 0.5)}
    for name, p in imputed.items():
        rows[name] = torch.where(data.observed == 1, data.x, p)
    figure, axis = pyplot().subplots(figsize=(11, 0.4 + 0.66 * len(rows)), layout="constrained")
    title = "Half of the pixels are missing (grey), and imputed"
    show_rows(axis, title, {name: images[chosen][:14] for name, images in rows.items()})
    save_figure(figure, options.out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser(__doc__.splitlines()[0], "imputation.png")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="a tenth of the epochs, to see that it runs")
    parser.add_argument("--missing", type=float, default=0.5, help="share of the pixels")
    parser.add_argument("--latent", type=int, default=10, help="dimensions of z")
    parser.add_argument("--hidden", type=int, default=100, help="units in each of two layers")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--train-samples", type=int, default=20, help="K while training MIWAE")
    parser.add_argument("--imputation-samples", type=int, default=1000)
    options = parser.parse_args(argv)
    if options.quick:
        options.epochs = max(1, options.epochs // 10)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    images = digits(options.device)
    binary = torch.rand(images.train.shape, generator=torch.Generator().manual_seed(1)) < images.train.cpu()
    data = Incomplete.at_random(binary.to(images.train), options.missing, seed=2)
    test = Incomplete.at_random(images.test, options.missing, seed=3)
    vae = train(data, 1, options, "VAE")
    miwae = train(data, options.train_samples, options, f"MIWAE, K = {options.train_samples}")
    torch.manual_seed(options.seed)
    imputed = {
        "mean of the pixel": data.mean().expand_as(test.x),
        "VAE, one sample": one_sample(vae, test),
        "VAE, weighted": weighted(vae, test, options.imputation_samples),
        "MIWAE, weighted": weighted(miwae, test, options.imputation_samples),
    }
    rows = [[name, *(f"{score:.4f}" for score in scores(p, test))] for name, p in imputed.items()]
    print_table(["imputation", "RMSE", "nats per missing pixel"], rows)
    print(
        f"\nOf {len(test.x)} test images; weighted: posterior expectations with {options.imputation_samples} samples."
    )
    draw_figure(imputed, test, options)


if __name__ == "__main__":
    main()
