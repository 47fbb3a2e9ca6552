"""A VAE, importance-weighted autoencoders, and one with doubly reparameterised gradients, on handwritten digits."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import (
    Images,
    bernoulli_log_prob,
    digits,
    evaluate,
    fit,
    mlp,
    mnist,
    options_parser,
    print_table,
    pyplot,
    save_figure,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import iwbounds as iw

CONTENDERS = {
    "VAE": (1, iw.Reparameterized()),
    "IWAE, K = 5": (5, iw.Reparameterized()),
    "IWAE, K = 50": (50, iw.Reparameterized()),
    "DReG-IWAE, K = 50": (50, iw.DReG()),
}


class Autoencoder(nn.Module):
    """z ~ N(0, I), pixels ~ Bernoulli(decoder(z)); q(z | x) a diagonal Gaussian from the encoder."""

    def __init__(self, images: Images, hidden: int, latent: int) -> None:
        super().__init__()
        pixels = images.train.shape[1]
        self.encoder = mlp(pixels, hidden, hidden, 2 * latent)
        self.decoder = mlp(latent, hidden, hidden, pixels)
        self.decoder[-1].bias.data = images.mean_logit.cpu()
        self.latent = latent

    def posterior(self, x: Tensor) -> Independent:
        mean, log_scale = self.encoder(2 * x - 1).chunk(2, -1)
        return Independent(Normal(mean, log_scale.exp()), 1)

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Independent]:
        def log_joint(z: Tensor) -> Tensor:
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + bernoulli_log_prob(self.decoder(z), x)

        return log_joint, self.posterior(x)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixel probabilities at the encoder's mean."""
        return self.decoder(self.posterior(x).mean).sigmoid()

    @torch.no_grad()
    def imagine(self, z: Tensor) -> Tensor:
        """Pixel probabilities at draws ``z`` of the prior."""
        return self.decoder(z).sigmoid()


@dataclass(frozen=True)
class Outcome:
    """What one contender came to."""

    model: Autoencoder
    bounds: dict[int, float]
    test_curve: dict[int, float]
    nll: float
    active: int
    ess: float


def train(name: str, images: Images, options: argparse.Namespace) -> Outcome:
    torch.manual_seed(options.seed)
    num_samples, gradient = CONTENDERS[name]
    model = Autoencoder(images, options.hidden, options.latent).to(options.device)
    curves = fit(
        model,
        images,
        gradient,
        num_samples,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        seed=options.seed,
        label=name,
        track=lambda: evaluate(model, images.test, 100)[0],
        every=max(1, options.epochs // 20),
    )
    nll, ess = evaluate(model, images.test, options.evaluation_samples)
    with torch.no_grad():
        active = (model.posterior(images.test).mean.var(0) > 0.01).sum().item()
    return Outcome(model, *curves, nll, active, ess)


def draw_figure(outcomes: dict[str, Outcome], images: Images, options: argparse.Namespace) -> None:
    figure, axes = pyplot().subplots(2, 2, figsize=(12, 5.9), layout="constrained", height_ratios=(1.3, 1))
    titles = {
        "bounds": "Training bound, each with its own K",
        "test_curve": "Test negative log-likelihood (100 samples)",
    }
    for axis, (key, title) in zip(axes[0], titles.items(), strict=True):
        for name, outcome in outcomes.items():
            curve = getattr(outcome, key)
            axis.plot(list(curve), list(curve.values()), label=name)
        axis.set(title=title, xlabel="epoch", ylabel="nats")
        axis.grid(True, alpha=0.3)
        axis.legend()
    early = options.epochs // 10 + 1  # the epochs before it would flatten all others
    axes[0, 0].set_ylim(bottom=min(outcome.bounds[early] for outcome in outcomes.values()) - 0.5)

    torch.manual_seed(options.seed)
    x = images.test[:: max(1, len(images.test) // 12)][:12]
    z = torch.randn(12, options.latent, device=images.test.device)
    models = {name: outcome.model for name, outcome in outcomes.items()}
    show_rows(
        axes[1, 0],
        "Test images and their reconstructions",
        {"data": x} | {n: m.reconstruct(x) for n, m in models.items()},
    )
    show_rows(axes[1, 1], "Samples from the prior", {n: m.imagine(z) for n, m in models.items()})
    save_figure(figure, options.out)


def show_rows(axis: Any, title: str, rows: dict[str, Tensor]) -> None:
    """Images ``(columns, pixels)`` side by side, a labelled row of them for each entry."""
    columns, pixels = next(iter(rows.values())).shape
    side, zoom = int(pixels**0.5), 6
    tile = zoom * side + 2
    tiles = torch.stack(list(rows.values())).unflatten(-1, (side, side))
    tiles = nn.functional.pad(tiles.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2), (1, 1, 1, 1), value=0.4)
    axis.imshow(tiles.permute(0, 2, 1, 3).reshape(-1, columns * tile).numpy(force=True), cmap="gray_r", vmin=0, vmax=1)
    axis.set_anchor("N")
    axis.set_yticks([tile * (row + 0.5) for row in range(len(rows))], list(rows))
    axis.set(title=title, xticks=[])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser(__doc__, "digits.png")
    parser.add_argument("--data", type=Path, help="an .npz of MNIST with train_images, test_images: (N, 28, 28) uint8")
    parser.add_argument("--test-images", type=int, default=1000, help="how many of MNIST's test images to use")
    parser.add_argument("--epochs", type=int, help="default: 70, or 3 with --data")
    parser.add_argument("--latent", type=int, default=20, help="dimensions of z")
    parser.add_argument("--hidden", type=int, default=100, help="units in each of two layers")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--evaluation-samples", type=int, default=1000, help="samples for the test NLL")
    options = parser.parse_args(argv)
    if options.epochs is None:
        options.epochs = 70 if options.data is None else 3
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    if options.data is None:
        images = digits(options.device)
    else:
        images = mnist(options.data, options.test_images, options.device)
    outcomes = {name: train(name, images, options) for name in CONTENDERS}
    rows = [
        [name, f"{o.bounds[options.epochs]:.2f}", f"{o.nll:.2f}", f"{o.active} of {options.latent}", f"{o.ess:.0f}"]
        for name, o in outcomes.items()
    ]
    print_table(["model", "training bound", "test NLL", "active units", "ESS"], rows)
    print(f"\nTest NLL in nats and mean effective sample size, both with {options.evaluation_samples} samples.")
    draw_figure(outcomes, images, options)


if __name__ == "__main__":
    main()
