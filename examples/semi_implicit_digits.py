r"""VAEs with a semi-implicit posterior against the same with a Gaussian one, on scikit-learn's digits.

The Gaussian encoder predicts a mean m(x) and scales s(x). The semi-implicit one does the same, and sees noise psi too:

    z = m + s (A(x) psi + g(x, psi) + exp(c(x, psi)) eps),    psi, eps ~ N(0, I),

so that its marginal over psi is a mixture of infinitely many Gaussians, with correlations, bends and skewness. It is
trained by its IWHVI bound with a learned reverse model psi | x, z, the Gaussian one by the ELBO; all else is alike. The
test NLL is the importance-weighted bound's. For the semi-implicit posterior an upper bound of log q stands in it, so
that its gain is, if anything, understated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from _common import (
    Images,
    bernoulli_log_prob,
    digits,
    evaluate,
    mlp,
    options_parser,
    print_table,
    pyplot,
    save_figure,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from tqdm import tqdm

import iwbounds as iw


def gaussian(mean: Tensor, log_scale: Tensor) -> Independent:
    return Independent(Normal(mean, log_scale.clamp(-6, 3).exp(), validate_args=False), 1)


class GaussianVAE(nn.Module):
    """z ~ N(0, I), pixels ~ Bernoulli(a linear map of max(z, 0)); q(z | x) a diagonal Gaussian."""

    def __init__(self, images: Images, latent: int, hidden: int) -> None:
        super().__init__()
        pixels = images.train.shape[1]
        self.decoder = nn.Sequential(nn.ReLU(), nn.Linear(latent, pixels))
        self.decoder[-1].bias.data = images.mean_logit.cpu()
        self.features = nn.Sequential(mlp(pixels, hidden, hidden), nn.Tanh())
        self.moments = nn.Linear(hidden, 2 * latent)

    def log_joint(self, x: Tensor, z: Tensor, temperature: float = 1.0) -> Tensor:
        """Of a likelihood to the power 1/temperature."""
        return Normal(0.0, 1.0).log_prob(z).sum(-1) + bernoulli_log_prob(self.decoder(z), x) / temperature

    def posterior(self, x: Tensor) -> Distribution | iw.HierarchicalProposal:
        return gaussian(*self.moments(self.features(2 * x - 1)).chunk(2, -1))

    def forward(self, x: Tensor, temperature: float = 1.0) -> tuple[Callable, Distribution | iw.Proposal]:
        return partial(self.log_joint, x, temperature=temperature), self.posterior(x)

    def weigh(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Draws of the posterior for each image and their log-weights."""
        q = self.posterior(x)
        z = q.rsample((count,))
        return z, self.log_joint(x, z) - q.log_prob(z)


class Linked(nn.Module):
    """A Gaussian given image features and a vector: its mean is linear in the vector, plus a network of both."""

    def __init__(self, features: int, size: int, hidden: int) -> None:
        super().__init__()
        self.slopes = nn.Linear(features, size * size)
        self.slopes.weight.data *= 0.2
        self.slopes.bias.data = torch.eye(size).flatten() / 2
        self.of_features, self.of_vector = nn.Linear(features, hidden), nn.Linear(size, hidden)
        self.rest = nn.Linear(hidden, 2 * size)

    def forward(self, features: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the scale, each ``(…, batch, size)`` like ``vector``."""
        slopes = self.slopes(features).unflatten(-1, (vector.shape[-1], -1))
        rest, log_scale = self.rest(torch.tanh(self.of_features(features) + self.of_vector(vector))).chunk(2, -1)
        return rest + torch.einsum("bij,...bj->...bi", slopes, vector), log_scale


class SemiImplicitVAE(GaussianVAE):
    """The same with q(z | x) = ∫ q(z | x, psi) N(psi; 0, I) dpsi, where psi has the size of z."""

    def __init__(self, images: Images, latent: int, hidden: int, num_aux: int) -> None:
        super().__init__(images, latent, hidden)
        self.num_aux = num_aux
        self.conditional = Linked(hidden, latent, hidden)
        self.reverse = Linked(hidden, latent, hidden)

    def posterior(self, x: Tensor) -> iw.HierarchicalProposal:
        features = self.features(2 * x - 1)
        centre, log_scale = self.moments(features).chunk(2, -1)
        log_scale = log_scale.clamp(-6, 3)

        def conditional(psi: Tensor) -> Distribution:
            shift, log_width = self.conditional(features, psi)
            return gaussian(centre + log_scale.exp() * shift, log_scale + log_width)

        def reverse(z: Tensor) -> Distribution:
            return gaussian(*self.reverse(features, (z - centre) / log_scale.exp()))

        zeros = torch.zeros_like(centre)
        return iw.HierarchicalProposal(gaussian(zeros, zeros), conditional, reverse, self.num_aux)

    def weigh(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        q = self.posterior(x)
        z, psi = q.rsample((count,))
        return z, self.log_joint(x, z) - q.log_prob_upper(z, psi)


def fit(model: GaussianVAE, images: Images, seed: int, options: argparse.Namespace, progress: tqdm) -> None:
    """Ascend the ELBO. At first the likelihood is cold, so that no latent is given up before it is of use."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs, options.learning_rate / 20)
    for epoch in range(options.epochs):
        temperature = min(1.0, options.coldest + (1 - options.coldest) * epoch / (0.4 * options.epochs))
        for x in images.batches(100, generator):
            log_joint, proposal = model(x, temperature)
            bound = iw.estimate(log_joint, proposal, iw.ELBO(), iw.DReG(), num_samples=1).value.mean()
            optimizer.zero_grad()
            (-temperature * bound).backward()
            optimizer.step()
        schedule.step()
        progress.update()
        progress.set_postfix(bound=f"{bound:.2f}")


@dataclass(frozen=True)
class Run:
    """One seed's pair of models, Gaussian first: their test NLL and effective sample sizes."""

    models: Sequence[GaussianVAE]
    nll: Sequence[float]
    ess: Sequence[float]

    @property
    def row(self) -> tuple[float, ...]:
        return *self.nll, self.nll[0] - self.nll[1], *self.ess


def compare(images: Images, seed: int, options: argparse.Namespace, progress: tqdm) -> Run:
    sizes = options.latent, options.hidden
    makers = {
        "Gaussian": partial(GaussianVAE, images, *sizes),
        "semi-implicit": partial(SemiImplicitVAE, images, *sizes, options.aux),
    }
    models, found = [], []
    for name, make in makers.items():
        progress.set_description(f"{name}, seed {seed}")
        torch.manual_seed(seed)
        models.append(make().to(options.device))
        fit(models[-1], images, seed, options, progress)
        found.append(evaluate(models[-1], images.test, options.evaluation_samples, batch_size=4))
    return Run(models, *zip(*found, strict=True))


def table(runs: dict[int, Run]) -> list[list[str]]:
    """A row for each seed, and their mean and standard deviation."""
    rows = []
    for label, group in ({f"seed {seed}": [run] for seed, run in runs.items()} | {"mean": [*runs.values()]}).items():
        columns = list(zip(*[run.row for run in group], strict=True))
        rows.append([label, *map(with_spread, columns[:3]), *(f"{mean(column):.0f}" for column in columns[3:])])
    return rows


def with_spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def draw_nll(axis: Any, runs: dict[int, Run]) -> None:
    """A pair of bars for each seed."""
    for side, name in enumerate(("Gaussian", "semi-implicit")):
        places = [index + 0.4 * side - 0.2 for index in range(len(runs))]
        axis.bar(places, [run.nll[side] for run in runs.values()], 0.38, color=f"C{side}", label=name)
    values = [value for run in runs.values() for value in run.nll]
    axis.set(ylim=(min(values) - 0.1, max(values) + 0.1), xlabel="seed", ylabel="nats", title="test NLL")
    axis.set_xticks(range(len(runs)), list(runs))
    axis.legend(loc="upper right", fontsize="small", ncols=2)


@torch.no_grad()
def draw_posteriors(axes: Sequence[Any], model: GaussianVAE, x: Tensor, color: str) -> None:
    """q, and in grey its draws resampled by their weights, in the two latents that are most correlated given x."""
    z, log_w = model.weigh(x, 20000)
    for column, axis in enumerate(axes):
        chosen = torch.multinomial(log_w[:, column].softmax(0), 1500, replacement=True)
        exact = z[chosen, column]
        correlation = exact.T.corrcoef().fill_diagonal_(0).abs()
        pair = list(divmod(correlation.argmax().item(), len(correlation)))
        axis.plot(*exact[:, pair].T.cpu(), ".", color="0.45", markersize=3, alpha=0.6)
        axis.plot(*z[:1500, column][:, pair].T.cpu(), ".", color=color, markersize=1.2, alpha=0.6)
        axis.set(title=f"image {column + 1}", xlabel=f"latent {pair[0] + 1}", ylabel=f"latent {pair[1] + 1}")


def draw_figure(runs: dict[int, Run], images: Images, options: argparse.Namespace) -> None:
    layout = [["nll", *(f"{row}{column}" for column in range(4))] for row in range(2)]
    figure, axes = pyplot().subplot_mosaic(
        layout, figsize=(13, 5.4), layout="constrained", width_ratios=[1.4, 1, 1, 1, 1]
    )
    draw_nll(axes["nll"], runs)
    torch.manual_seed(options.seed)
    for row, model in enumerate(runs[options.seed].models):
        panels = [axes[name] for name in layout[row][1:]]
        draw_posteriors(panels, model, images.test[[3, 57, 200, 311]], f"C{row}")
    figure.suptitle("Coloured: draws of the posterior (above Gaussian, below semi-implicit). Grey: of the exact one")
    save_figure(figure, options.out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser(__doc__, "semi_implicit_digits.png")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--latent", type=int, default=16, help="dimensions of z")
    parser.add_argument("--hidden", type=int, default=100, help="units of a layer of the encoders")
    parser.add_argument("--aux", type=int, default=10, help="auxiliary draws K of psi")
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    parser.add_argument("--coldest", type=float, default=0.1, help="temperature of the likelihood at the start")
    parser.add_argument("--evaluation-samples", type=int, default=1000, help="samples for the test NLL")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    images = digits(options.device)
    seeds = range(options.seed, options.seed + options.seeds)
    with tqdm(total=2 * len(seeds) * options.epochs, unit="epoch", leave=False) as progress:
        runs = {seed: compare(images, seed, options, progress) for seed in seeds}
    header = ["", "NLL, Gaussian", "NLL, semi-implicit", "gain", "ESS, Gaussian", "ESS, semi-implicit"]
    print_table(header, table(runs))
    print(f"\nTest NLL in nats and mean effective sample size, both with {options.evaluation_samples} samples.")
    draw_figure(runs, images, options)


if __name__ == "__main__":
    main()
