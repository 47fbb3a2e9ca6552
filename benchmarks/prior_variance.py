"""Variance of a learned prior's gradient: GDReG against DReG, in a VAE of two stochastic layers.

    python benchmarks/prior_variance.py [--quick] [--figure out/prior_variance.png]

Scikit-learn's digits, x of 64 pixels, z1 of 10 and z2 of 5 numbers: p(z2) p(z1 | z2) p(x | z1) against q(z1 | x)
q(z2 | z1), all Gaussian but the pixels, with networks of 100 units. The total variance, for 100 images, of the gradient
of the network in p(z1 | z2) and of all other parameters, as training by GDReG goes on; both see the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from common import arguments, gate, pyplot, save_figure, table
from gradient_variance import digits
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal

import iwbounds as iw

STAGES = (20, 200, 1000)


def network(size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 100), nn.Tanh(), nn.Linear(100, out))


def normal(parameters: Tensor) -> Independent:
    mean, log_scale = parameters.chunk(2, -1)
    return Independent(Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = network(64, 20), network(10, 10)
        self.prior, self.decoder = network(5, 20), network(10, 64)

    def forward(self, x: Tensor) -> tuple[iw.PriorAndLikelihood, iw.Proposal]:
        q1 = normal(self.first(x))
        top = Independent(Normal(torch.zeros(5), 1.0, validate_args=False), 1, validate_args=False)

        def log_likelihood(z: tuple[Tensor, Tensor]) -> Tensor:
            return Bernoulli(logits=self.decoder(z[0]), validate_args=False).log_prob(x).sum(-1)

        def sample(shape: tuple[int]) -> tuple[Tensor, Tensor]:
            z1 = q1.rsample(shape)
            return z1, normal(self.second(z1)).rsample()

        def log_prob(z: tuple[Tensor, Tensor]) -> Tensor:
            return q1.log_prob(z[0]) + normal(self.second(z[0])).log_prob(z[1])

        joint = iw.PriorAndLikelihood((lambda z: normal(self.prior(z[1])), top), log_likelihood)
        return joint, iw.Proposal(sample, log_prob)


def loss(model: TwoLayers, x: Tensor, count: int, gradient: iw.Gradient) -> Tensor:
    return -iw.estimate(*model(x), gradient=gradient, num_samples=count).value.mean()


def variances(model: TwoLayers, x: Tensor, count: int, repeats: int, gradient: iw.Gradient) -> tuple[float, float]:
    """Of the prior's network, and of all else."""
    torch.manual_seed(1)
    prior = list(model.prior.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("prior")]
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(repeats):
        slopes = torch.autograd.grad(loss(model, x, count, gradient), [*prior, *rest])
        for part, kept in zip((slopes[: len(prior)], slopes[len(prior) :]), found, strict=True):
            kept.append(torch.cat([slope.flatten() for slope in part]))
    return tuple(torch.stack(kept).var(0).sum().item() for kept in found)


def measure(count: int, stages: tuple[int, ...], repeats: int) -> Iterator[tuple[int, int, list[float]]]:
    """K, the step, and the variances: of the prior by DReG and GDReG, of the rest by both."""
    torch.manual_seed(0)
    model, grey = TwoLayers(), digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    fixed = torch.bernoulli(grey[:100])
    for step in range(1, max(stages) + 1):
        x = torch.bernoulli(grey[torch.randint(len(grey), (100,))])
        optimizer.zero_grad()
        loss(model, x, count, iw.GDReG()).backward()
        optimizer.step()
        if step in stages:
            with torch.random.fork_rng():
                pairs = [variances(model, fixed, count, repeats, g) for g in (iw.DReG(), iw.GDReG())]
            yield count, step, [*(pair[0] for pair in pairs), *(pair[1] for pair in pairs)]


def check() -> None:
    """The mean gradients over many samples of one image agree; and those of all but the prior in every step."""
    torch.manual_seed(0)
    model, x = TwoLayers(), torch.bernoulli(digits()[:20])
    model.prior.requires_grad_(False)
    steps = [lambda g=g: loss(model, x, 5, g).backward() for g in (iw.DReG(), iw.GDReG())]
    gate(model, steps[0], {"GDReG": steps[1]})
    model.prior.requires_grad_(True)
    means = []
    for g in (iw.DReG(), iw.GDReG()):
        torch.manual_seed(2)
        found = torch.autograd.grad(loss(model, x[:1].expand(20_000, 64), 5, g), list(model.prior.parameters()))
        means.append(torch.cat([slope.flatten() for slope in found]))
    # Their standard errors are 5 and 3 % of its norm.
    if (means[0] - means[1]).norm() > 0.15 * means[0].norm():
        raise SystemExit("gate: GDReG and DReG do not have one expectation")


def plot(rows: list[tuple[int, int, list[float]]], path: Path) -> None:
    from iwbounds.plots.style import BLUE, VERMILION, plain

    figure, axis = pyplot().subplots(figsize=(6, 3.6), layout="constrained")
    for count, style in ((8, "-"), (64, "--")):
        mine = [(step, found) for k, step, found in rows if k == count]
        for place, name, colour in ((0, "DReG", BLUE), (1, "GDReG", VERMILION)):
            steps, values = zip(*((step, found[place]) for step, found in mine), strict=True)
            axis.plot(steps, values, style, color=colour, marker="o", markersize=4, label=f"{name}, K = {count}")
    plain(axis, "Gradient of the prior of the lower layer", "step of training", "total variance")
    axis.set(xscale="log", yscale="log")
    axis.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    check()
    stages, repeats = (STAGES[:2], 30) if options.quick else (STAGES, 100)
    rows = []
    for row in (row for count in (8, 64) for row in measure(count, stages, repeats)):
        rows.append(row)
        print(row[0], row[1], *(f"{value:.3g}" for value in row[2]), flush=True)
    shown = [[k, step, *(f"{v:.3g}" for v in f), f"{f[1] / f[0]:.3f}", f"{f[3] / f[2]:.3f}"] for k, step, f in rows]
    names = ["K", "step", "prior: DReG", "GDReG", "the rest: DReG", "GDReG", "prior ÷", "the rest ÷"]
    print(table(names, shown))
    if options.figure:
        plot(rows, options.figure)


if __name__ == "__main__":
    main()
