r"""A VAE whose posterior is semi-implicit against the same VAE with a Gaussian posterior, on scikit-learn's digits.

Both encoders see the image and predict a Gaussian; the semi-implicit one sees noise psi as well, so that its marginal
over psi is a mixture of infinitely many Gaussians, which may bend and have several modes. Both are trained by the ELBO,
the semi-implicit one by its IWHVI bound with a learned reverse model, and both are tested by the importance-weighted
bound with many samples.

Do not expect a winner on these small images: where the likelihood is cold at first, so that no latent is given up
before it is of use, the two agree within the noise of seeds. Without that start (--coldest 1) both are worse, and the
sign of their difference changes with the seeds.

    python examples/semi_implicit_digits.py [--seeds 3] [--out out/semi_implicit_digits.png]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F
from tqdm import tqdm

import iwbounds as iw

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PIXELS = 64


def digits() -> tuple[Tensor, Tensor]:
    """8×8 images of 0 and 1 to train on and to test with."""
    from sklearn.datasets import load_digits

    images = (torch.from_numpy(load_digits().data) >= 8).float()
    held_out = torch.arange(len(images)) % 4 == 0
    return images[~held_out], images[held_out]


def network(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    )


def gaussian(parameters: Tensor) -> Distribution:
    mean, log_scale = parameters.chunk(2, -1)
    return Independent(Normal(mean, log_scale.clamp(-6, 3).exp(), validate_args=False), 1)


def beside(features: Tensor, noise: Tensor) -> Tensor:
    """Image features ``(batch, f)`` beside latents or noise ``(…, batch, d)``."""
    return torch.cat([features.expand(*noise.shape[:-1], features.shape[-1]), noise], -1)


class GaussianVAE(nn.Module):
    """Bernoulli pixels, a standard normal prior, a diagonal Gaussian posterior."""

    def __init__(self, latents: int, hidden: int) -> None:
        super().__init__()
        self.latents = latents
        self.decoder = network(latents, PIXELS, hidden)
        self.encoder = network(PIXELS, 2 * latents, hidden)

    def log_joint(self, x: Tensor, z: Tensor, temperature: float = 1.0) -> Tensor:
        logits = self.decoder(z)
        prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        return prior + (x * logits - F.softplus(logits)).sum(-1) / temperature

    def proposal(self, x: Tensor) -> Distribution | iw.Proposal:
        return gaussian(self.encoder(x))


class SemiImplicitVAE(GaussianVAE):
    """The same, with noise beside the image: q(z | x) = ∫ N(z; encoder(x, psi)) N(psi; 0, I) dpsi."""

    def __init__(self, latents: int, hidden: int, noise: int, num_aux: int) -> None:
        super().__init__(latents, hidden)
        self.noise, self.num_aux = noise, num_aux
        self.encoder = network(PIXELS + noise, 2 * latents, hidden)
        self.reverse = network(PIXELS + latents, 2 * noise, hidden)

    def proposal(self, x: Tensor) -> iw.HierarchicalProposal:
        return iw.HierarchicalProposal(
            Independent(Normal(x.new_zeros(len(x), self.noise), 1.0, validate_args=False), 1),
            lambda psi: gaussian(self.encoder(beside(x, psi))),
            lambda z: gaussian(self.reverse(beside(x, z))),
            self.num_aux,
        )


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    for rows in torch.randperm(len(images)).split(size):
        yield images[rows]


def train(model: GaussianVAE, images: Tensor, args: argparse.Namespace, progress: tqdm) -> None:
    """By the ELBO; at first with a colder likelihood, so that no latent is given up before it is of use."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for epoch in range(args.epochs):
        temperature = min(1.0, args.coldest + 2 * epoch / args.epochs)
        for x in batches(images, 100):
            log_joint = partial(model.log_joint, x, temperature=temperature)
            estimate = iw.estimate(log_joint, model.proposal(x), iw.ELBO(), num_samples=args.samples)
            optimizer.zero_grad()
            (-temperature * estimate.value.mean()).backward()
            optimizer.step()
        schedule.step()
        progress.update()
        progress.set_postfix(elbo=f"{estimate.value.mean():.2f}")


@torch.no_grad()
def test(model: GaussianVAE, images: Tensor, samples: int) -> tuple[float, float]:
    """Mean ELBO and mean importance-weighted bound, in nats per image."""
    sums = torch.zeros(2)
    for x in images.split(50):
        log_w = iw.estimate(partial(model.log_joint, x), model.proposal(x), num_samples=samples).log_weights
        sums += torch.stack([iw.ELBO()(log_w).sum(), iw.IWAE()(log_w).sum()])
    elbo, log_evidence = (sums / len(images)).tolist()
    return elbo, log_evidence


@dataclass
class Result:
    elbo: float
    nll: float
    seconds: float


def compare(args: argparse.Namespace) -> tuple[dict[str, list[Result]], dict[str, GaussianVAE]]:
    train_images, test_images = digits()
    results: dict[str, list[Result]] = {"Gaussian": [], "semi-implicit": []}
    models: dict[str, GaussianVAE] = {}
    with tqdm(total=2 * args.seeds * args.epochs) as progress:
        for seed in range(args.seeds):
            for name in results:
                torch.manual_seed(args.seed + seed)
                make = {
                    "Gaussian": lambda: GaussianVAE(args.latents, args.hidden),
                    "semi-implicit": lambda: SemiImplicitVAE(args.latents, args.hidden, args.noise, args.aux),
                }
                models[name] = make[name]()
                progress.set_description(f"{name}, seed {args.seed + seed}")
                start = time.perf_counter()
                train(models[name], train_images, args, progress)
                seconds = time.perf_counter() - start
                elbo, log_evidence = test(models[name], test_images, args.test_samples)
                results[name].append(Result(elbo, -log_evidence, seconds))
    return results, models


def table(results: dict[str, list[Result]], first: int) -> str:
    lines = [f"{'posterior':<16}{'seed':>6}{'test ELBO':>12}{'test NLL':>12}{'seconds':>10}"]
    lines.append("-" * len(lines[0]))
    for name, rows in results.items():
        for seed, row in enumerate(rows, start=first):
            lines.append(f"{name:<16}{seed:>6}{row.elbo:>12.3f}{row.nll:>12.3f}{row.seconds:>10.1f}")
    lines.append("")
    columns = {name: [row.nll for row in rows] for name, rows in results.items()}
    columns["gain"] = [a - b for a, b in zip(*columns.values(), strict=True)]
    for name, values in columns.items():
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        lines.append(f"{name:<16}mean {statistics.fmean(values):.3f} nats, over seeds ± {spread:.3f}")
    return "\n".join(lines)


@torch.no_grad()
def draws(model: GaussianVAE, images: Tensor, count: int) -> Tensor:
    z = model.proposal(images).rsample((count,))
    return z[0] if isinstance(z, tuple) else z


@torch.no_grad()
def plot(models: dict[str, GaussianVAE], results: dict[str, list[Result]], path: Path) -> None:
    """Test NLL by seed, and four images' posteriors in the two latents that tell most about images."""
    images = digits()[1]
    nll = [row.nll for rows in results.values() for row in rows]
    figure, axes = plt.subplots(2, 5, figsize=(12, 5), width_ratios=[1.2, 1, 1, 1, 1], layout="constrained")
    for row, (name, model) in enumerate(models.items()):
        axes[row, 0].bar(range(len(results[name])), [r.nll for r in results[name]], color=f"C{row}")
        axes[row, 0].set(ylim=(min(nll) - 0.3, max(nll) + 0.1), title=f"{name}: test NLL", xlabel="seed")
        axes[row, 0].set_xticks(range(len(results[name])))
        shown = draws(model, images, 100).mean(0).var(0).argsort(descending=True)[:2]
        z = draws(model, images[[3, 57, 200, 311]], 1500)[..., shown]
        for column, axis in enumerate(axes[row, 1:]):
            axis.plot(*z[:, column].T, ".", color=f"C{row}", markersize=1.5, alpha=0.5)
            axis.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), title=f"q(z | image {column + 1})", aspect="equal")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, default=Path("out/semi_implicit_digits.png"), help="where the figure goes")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--latents", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--noise", type=int, default=8, help="dimensions of psi")
    parser.add_argument("--aux", type=int, default=5, help="auxiliary draws K")
    parser.add_argument("--samples", type=int, default=1, help="samples of z in training")
    parser.add_argument("--coldest", type=float, default=0.1, help="temperature of the likelihood at the start")
    parser.add_argument("--test-samples", type=int, default=1000)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results, models = compare(args)
    print(table(results, args.seed))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot(models, results, args.out)
    print(f"\nFigure: {args.out}")


if __name__ == "__main__":
    main()
