"""What a latent is for: β-VAE, discrete codes, and a decoder so expressive that its latent goes unused.

    python examples/expressivity.py                     # scikit-learn's digits, two minutes of a core
    python examples/expressivity.py --data mnist.npz    # MNIST; --epochs 1 --pairs 60 takes 7 minutes

1. **β-VAE** (Higgins et al., 2017): log p(x | z) is divided by β. More β: fewer nats through the latent (the rate) and
   worse copies (the distortion). β = 1 is the ELBO, and no other β bounds log p(x) as tightly.
2. **Discrete codes** (van den Oord et al., 2017, with a sampled code for VQ-VAE's nearest one): an image is a few
   choices from a codebook. No path leads through a choice: VIMCO trains it. All codes can be summed, so that log p(x)
   is exact here, and the bound can be seen to be one.
3. **An autoregressive decoder** (van den Oord et al., 2016) predicts each pixel from those before it. It can do without
   z, and the ELBO, which charges for z, has it do so. `iw.mutual_information_bounds` says from both sides how many nats
   x and z share under the model; a factorised decoder has no other way to relate its pixels than through z.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from digits import Autoencoder, show_rows
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from torch.nn import functional as F

import iwbounds as iw
from iwbounds.evidence.information import Interval
from iwbounds.plots.style import BLUE, plain

BETAS = (0.25, 0.5, 1.0, 2.0)


class BetaVAE(Autoencoder):
    """β times the ELBO of this log-joint is E log p(x | z) − β KL(q ‖ p); Adam does not mind the factor β."""

    def __init__(self, images: Images, hidden: int, latent: int, beta: float) -> None:
        super().__init__(images, hidden, latent)
        self.beta = beta

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Independent]:
        def log_joint(z: Tensor) -> Tensor:
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + bernoulli_log_prob(self.decoder(z), x) / self.beta

        return log_joint, self.posterior(x)

    @torch.no_grad()
    def rate_and_distortion(self, x: Tensor) -> tuple[float, float]:
        """Nats that the encoder sends, and nats that the decoder lacks: their sum is minus the ELBO, β or not."""
        q = self.posterior(x)
        # the divergence in closed form, as no sample of it is needed
        prior = Independent(Normal(torch.zeros_like(q.mean), 1.0), 1)
        distortion = -bernoulli_log_prob(self.decoder(q.sample((20,))), x).mean()
        return kl_divergence(q, prior).mean().item(), distortion.item()


class Codes(nn.Module):
    """z is ``positions`` choices of ``choices`` each, equally likely beforehand; a codebook turns them into vectors."""

    def __init__(self, images: Images, hidden: int, positions: int, choices: int, width: int = 8) -> None:
        super().__init__()
        pixels = images.train.shape[1]
        self.shape = positions, choices
        self.encoder = mlp(pixels, hidden, hidden, positions * choices)
        self.codebook = nn.Parameter(torch.randn(positions, choices, width))
        self.decoder = mlp(positions * width, hidden, hidden, pixels)
        self.decoder[-1].bias.data = images.mean_logit.cpu()

    def decode(self, z: Tensor) -> Tensor:
        """Logits of the pixels for codes ``(…, positions)``, whole numbers."""
        vectors = self.codebook[torch.arange(self.shape[0], device=z.device), z]
        return self.decoder(vectors.flatten(-2))

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Independent]:
        q = Independent(Categorical(logits=self.encoder(2 * x - 1).unflatten(-1, self.shape)), 1)
        # The prior is uniform: a constant, but without it no bound would be in nats of log p(x).
        prior = -self.shape[0] * torch.tensor(float(self.shape[1])).log()
        return lambda z: prior + bernoulli_log_prob(self.decode(z), x), q

    @torch.no_grad()
    def exact_log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) as the sum over all codes."""
        every = torch.tensor(list(itertools.product(range(self.shape[1]), repeat=self.shape[0])), device=x.device)
        # A uniform prior makes of the sum over codes a mean over codes.
        return torch.cat(
            [iw.log_mean_exp(bernoulli_log_prob(self.decode(every)[:, None], part)) for part in x.split(50)]
        )

    @torch.no_grad()
    def perplexity(self, x: Tensor) -> float:
        """How many choices a position uses over the data, as the exponential of an entropy; at most ``choices``."""
        share = self(x)[1].base_dist.probs.mean(0)  # over data first: each image by itself uses one choice
        return Categorical(share).entropy().exp().mean().item()


class MaskedConvolution(nn.Conv2d):
    """Sees the pixels above and to the left, in the order of reading; and, past the first layer, the same place."""

    def __init__(self, channels_in: int, channels_out: int, size: int, sees_itself: bool) -> None:
        super().__init__(channels_in, channels_out, size, padding="same")
        order = torch.arange(size * size).reshape(size, size)
        middle = size * size // 2
        # not a parameter, but it moves with the module from device to device
        self.register_buffer("mask", (order < middle + sees_itself).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding="same")


class AutoregressiveDecoder(nn.Module):
    """Logits of each pixel from z and the pixels before it; z is a bias of each channel, as in conditional PixelCNN."""

    def __init__(self, images: Images, latent: int, channels: int = 24, layers: int = 3) -> None:
        super().__init__()
        self.side = images.side
        self.first = MaskedConvolution(1, channels, 5, sees_itself=False)
        self.later = nn.ModuleList(MaskedConvolution(channels, channels, 3, sees_itself=True) for _ in range(layers))
        self.last = nn.Conv2d(channels, 1, 1)
        self.from_latent = nn.Linear(latent, channels)
        self.bias = nn.Parameter(images.mean_logit.cpu())  # by pixel: a convolution does not know where it is

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        # Either may have more sample axes: K draws of z for one x, or many x for one z.
        lead = torch.broadcast_shapes(z.shape[:-1], x.shape[:-1])
        image = (2 * x - 1).expand(*lead, -1).reshape(-1, 1, self.side, self.side)
        hidden = self.from_latent(z).expand(*lead, -1).reshape(len(image), -1, 1, 1)
        hidden = hidden + self.first(image)
        for layer in self.later:
            # residual: a signal of z that is small at first is not lost on the way
            hidden = hidden + layer(F.relu(hidden))
        return self.last(F.relu(hidden)).reshape(*lead, -1) + self.bias


@dataclass(frozen=True)
class Autoregressive:
    """p(x | z) as `iw.HierarchicalProposal` asks for a conditional: ``sample`` and ``log_prob``."""

    decoder: AutoregressiveDecoder
    z: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        return bernoulli_log_prob(self.decoder(self.z, x), x)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Pixel by pixel: each one's logits need those before it."""
        x = self.z.new_zeros(*sample_shape, *self.z.shape[:-1], self.decoder.side**2)
        for pixel in range(x.shape[-1]):
            x[..., pixel] = torch.bernoulli(self.decoder(self.z, x)[..., pixel].sigmoid())
        return x


class AutoregressiveVAE(Autoencoder):
    """The same encoder and prior; another p(x | z)."""

    def __init__(self, images: Images, hidden: int, latent: int) -> None:
        super().__init__(images, hidden, latent)
        self.decoder = AutoregressiveDecoder(images, latent)

    def conditional(self, z: Tensor) -> Autoregressive:
        return Autoregressive(self.decoder, z)

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Independent]:
        def log_joint(z: Tensor) -> Tensor:
            return Normal(0.0, 1.0).log_prob(z).sum(-1) + self.conditional(z).log_prob(x)

        return log_joint, self.posterior(x)


class FactorisedVAE(Autoencoder):
    """Pixels independent of each other given z."""

    def conditional(self, z: Tensor) -> Independent:
        return Independent(Bernoulli(logits=self.decoder(z)), 1)


def shared_nats(model: AutoregressiveVAE | FactorisedVAE, options: argparse.Namespace) -> Interval:
    """I(x; z) of the model p(z) p(x | z), from both sides, by images that it draws itself."""
    device = next(model.parameters()).device
    prior = Independent(Normal(torch.zeros(model.latent, device=device), 1.0), 1)
    halves = Categorical(torch.ones(2, device=device))

    def reverse(x: Tensor) -> MixtureSameFamily:
        """Half the encoder, half the prior: what a model draws may look like nothing that its encoder has seen."""
        q = model.posterior(x).base_dist
        mean = torch.stack([q.mean, torch.zeros_like(q.mean)], -2)
        scale = torch.stack([q.stddev, torch.ones_like(q.stddev)], -2)
        return MixtureSameFamily(halves.expand(x.shape[:-1]), Independent(Normal(mean, scale), 1))

    # In the words of the hierarchy: x is the variable whose density is an integral over z.
    pairs = iw.HierarchicalProposal(
        prior,
        model.conditional,
        reverse,
        options.auxiliary_samples,
        reparameterized=False,  # x is binary
    )
    return iw.mutual_information_bounds(pairs, options.pairs, chunk_size=100)


@torch.no_grad()
def active_units(model: Autoencoder, x: Tensor) -> int:
    return (model.posterior(x).mean.var(0) > 0.01).sum().item()


def fitted(model: nn.Module, images: Images, options: argparse.Namespace, label: str, samples: int = 1) -> nn.Module:
    """By DReG; a discrete latent by VIMCO."""
    # A choice has no derivative: DReG would be refused.
    gradient = iw.VIMCO() if isinstance(model, Codes) else iw.DReG()
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "seed": options.seed, "label": label}
    fit(model.to(options.device), images, gradient, samples, **settings)
    return model


def without_latent(images: Images) -> float:
    """NLL of independent pixels that have the training images' mean: what no latent at all comes to."""
    return -bernoulli_log_prob(images.mean_logit, images.test).mean().item()


def compare_betas(images: Images, options: argparse.Namespace) -> dict[float, BetaVAE]:
    models, rates, rows = {}, [], []
    for beta in BETAS:
        torch.manual_seed(options.seed)
        models[beta] = fitted(BetaVAE(images, options.hidden, options.latent, beta), images, options, f"β = {beta:g}")
        rate, distortion = models[beta].rate_and_distortion(images.test)
        rates.append(rate)
        units = f"{active_units(models[beta], images.test)} of {options.latent}"
        rows.append([f"β = {beta:g}", f"{rate:.2f}", f"{distortion:.2f}", f"{-rate - distortion:.2f}", units])
    print_table(["β-VAE", "rate", "distortion", "ELBO", "active units"], rows)
    assert all(a > b for a, b in itertools.pairwise(rates)), "more β must cost rate"
    return models


def use_codes(images: Images, options: argparse.Namespace) -> Codes:
    torch.manual_seed(options.seed)
    model = fitted(Codes(images, options.hidden, options.positions, options.choices), images, options, "codes", 10)
    exact = -model.exact_log_likelihood(images.test).mean().item()
    bound, _ = evaluate(model, images.test, 10)
    better, _ = evaluate(model, images.test, 500)
    without = without_latent(images)
    print_table(
        ["discrete codes", "NLL, exact", "by K = 10", "by K = 500", "without codes", "choices in use"],
        [
            [
                f"{options.positions} of {options.choices}",
                *(f"{value:.2f}" for value in (exact, bound, better, without)),
                f"{model.perplexity(images.test):.1f} of {options.choices}",
            ]
        ],
    )
    # Bounds of the same data: below log p(x) on average over draws, and the tighter the more of them.
    assert exact < better + 0.02 < bound + 0.04
    assert exact < without - 1, "the codes must say something of the image"
    return model


def compare_decoders(images: Images, options: argparse.Namespace) -> dict[str, AutoregressiveVAE | FactorisedVAE]:
    models, rows, found = {}, [], {}
    for name, kind in (("factorised", FactorisedVAE), ("autoregressive", AutoregressiveVAE)):
        torch.manual_seed(options.seed)
        models[name] = fitted(kind(images, options.hidden, options.latent), images, options, name)
        nll, _ = evaluate(models[name], images.test, 100)  # on real images; the nats below on the model's own
        found[name] = nats = shared_nats(models[name], options)
        sides = [f"{nats.lower:.2f} ± {nats.lower_error:.2f}", f"{nats.upper:.2f} ± {nats.upper_error:.2f}"]
        rows.append([name, f"{nll:.2f}", *sides, f"{active_units(models[name], images.test)} of {options.latent}"])
    print_table(["decoder", "test NLL", "I(x; z) at least", "at most", "active units"], rows)
    # The intervals lie apart wherever this was run. That hardly anything is shared was found on the digits alone:
    # MNIST's epochs are few, and its autoregressive decoder ends them with a nat or two.
    most = 1.0 if options.data is None else found["factorised"].lower
    assert found["autoregressive"].upper < most
    assert options.least < found["factorised"].lower
    # It makes little use of its latent, and still explains the images far better than independent pixels do.
    assert float(rows[1][1]) < without_latent(images) - 1
    return models


@torch.no_grad()
def draw_figure(
    betas: dict[float, BetaVAE],
    codes: Codes,
    decoders: dict[str, AutoregressiveVAE | FactorisedVAE],
    images: Images,
    options: argparse.Namespace,
) -> None:
    figure, axes = pyplot().subplots(2, 2, figsize=(12, 5.6), layout="constrained", height_ratios=(1.25, 1))
    points = [model.rate_and_distortion(images.test) for model in betas.values()]
    rates, distortions = zip(*points, strict=True)
    axes[0, 0].plot(rates, distortions, "o-", color=BLUE)
    for beta, point in zip(betas, points, strict=True):
        axes[0, 0].annotate(f"  β = {beta:g}", point, va="bottom")
    axes[0, 0].margins(x=0.15)  # room for the last label
    plain(axes[0, 0], "β-VAE: what the latent carries, and what is lost", "rate, nats", "distortion, nats")
    x = images.test[:: max(1, len(images.test) // 12)][:12]
    copies = {f"β = {beta:g}": model.reconstruct(x) for beta, model in betas.items()}
    show_rows(axes[0, 1], "Test images and their reconstructions", {"data": x} | copies)
    likely = codes(x)[1].base_dist.logits.argmax(-1)
    rows = {"data": x, "likeliest code": codes.decode(likely).sigmoid()}
    for position in range(codes.shape[0]):
        # One choice of the first image's code exchanged: what that position of the codebook is for.
        changed = likely[:1].repeat(codes.shape[1], 1)
        changed[:, position] = torch.arange(codes.shape[1])
        padded = torch.cat([codes.decode(changed).sigmoid(), x.new_zeros(12, x.shape[1])])[:12]
        rows[f"choice {position + 1}"] = padded
    show_rows(axes[1, 0], "Discrete codes", rows)
    torch.manual_seed(options.seed)
    z = torch.randn(6, options.latent, device=x.device)
    # The same z twice, side by side: a latent that is used shows, one that is not does not.
    twice = z.repeat_interleave(2, 0)
    drawn = {name: model.conditional(twice).sample() for name, model in decoders.items()}
    show_rows(axes[1, 1], "Two images drawn for each of six z", drawn)
    save_figure(figure, options.out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser(__doc__.splitlines()[0], "expressivity.png")
    parser.add_argument("--data", type=Path, help="an .npz of MNIST with train_images, test_images: (N, 28, 28) uint8")
    parser.add_argument("--test-images", type=int, default=500, help="how many of MNIST's test images to use")
    parser.add_argument("--epochs", type=int, help="of each training; default: 80, or 5 with --data")
    parser.add_argument("--hidden", type=int, default=100, help="units in each of two layers")
    parser.add_argument("--latent", type=int, default=10, help="dimensions of a continuous z")
    parser.add_argument("--positions", type=int, default=3, help="of a discrete z")
    parser.add_argument("--choices", type=int, default=8, help="for each position")
    parser.add_argument("--learning-rate", type=float, help="default: 8e-3, or 1e-3 with --data")
    parser.add_argument("--pairs", type=int, default=400, help="(x, z) to average the mutual information over")
    parser.add_argument("--auxiliary-samples", type=int, default=32, help="of z, to bound each log p(x) by")
    parser.add_argument("--least", type=float, default=4.0, help="nats that the factorised decoder must share with z")
    options = parser.parse_args(argv)
    if options.epochs is None:
        options.epochs = 80 if options.data is None else 5
    if options.learning_rate is None:
        options.learning_rate = 8e-3 if options.data is None else 1e-3
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    images = (
        digits(options.device) if options.data is None else mnist(options.data, options.test_images, options.device)
    )
    betas = compare_betas(images, options)
    print()
    codes = use_codes(images, options)
    print()
    decoders = compare_decoders(images, options)
    draw_figure(betas, codes, decoders, images, options)


if __name__ == "__main__":
    main()
