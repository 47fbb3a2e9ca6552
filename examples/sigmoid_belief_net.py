"""A sigmoid belief network, all of whose latents are binary, trained by estimators that need no reparameterisation."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import torch
from _common import Images, bernoulli_log_prob, digits, evaluate, fit, options_parser, print_table, pyplot, save_figure
from torch import Tensor, nn

import iwbounds as iw

CONTENDERS: dict[str, Callable[[], iw.Gradient]] = {
    "VIMCO": iw.VIMCO,
    "OVIS (γ = 0)": iw.OVIS,
    "RWS (wake-φ)": iw.Wake,
    "REINFORCE, baseline": lambda: iw.ScoreFunction(iw.RunningMean()),
    "REINFORCE": iw.ScoreFunction,
}
"""Made anew for every run: a running mean remembers."""


class SigmoidBeliefNet(nn.Module):
    """Pixels, h1 above them, h2 on top: each Bernoulli given a linear map of the layer above. q climbs back up."""

    def __init__(self, images: Images, first: int, second: int) -> None:
        super().__init__()
        pixels = images.train.shape[1]
        self.top = nn.Parameter(torch.zeros(second))
        self.down = nn.ModuleList([nn.Linear(second, first), nn.Linear(first, pixels)])
        self.up = nn.ModuleList([nn.Linear(pixels, first), nn.Linear(first, second)])
        self.down[1].bias.data = images.mean_logit.cpu()

    def forward(self, x: Tensor) -> tuple[Callable[..., Tensor], iw.Proposal]:
        first_logits = self.up[0](2 * x - 1)

        def sample(shape: tuple[int]) -> tuple[Tensor, Tensor]:
            h1 = torch.bernoulli(first_logits.sigmoid().expand(*shape, *first_logits.shape))
            return h1, torch.bernoulli(self.up[1](h1).sigmoid())

        def log_q(latents: tuple[Tensor, Tensor]) -> Tensor:
            h1, h2 = latents
            return bernoulli_log_prob(first_logits, h1) + bernoulli_log_prob(self.up[1](h1), h2)

        def log_joint(latents: tuple[Tensor, Tensor]) -> Tensor:
            h1, h2 = latents
            prior = bernoulli_log_prob(self.top, h2) + bernoulli_log_prob(self.down[0](h2), h1)
            return prior + bernoulli_log_prob(self.down[1](h1), x)

        return log_joint, iw.Proposal(sample, log_q, reparameterized=False, name="the recognition network")


@dataclass(frozen=True)
class Run:
    """One training from one seed."""

    nll: float
    ess: float
    test_curve: dict[int, float]


def train(name: str, images: Images, seed: int, options: argparse.Namespace) -> Run:
    torch.manual_seed(seed)
    model = SigmoidBeliefNet(images, *options.units).to(options.device)
    _, test_curve = fit(
        model,
        images,
        CONTENDERS[name](),
        options.samples,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        seed=seed,
        label=f"{name}, seed {seed}",
        track=lambda: evaluate(model, images.test, 100)[0],
        every=max(1, options.epochs // 10),
    )
    return Run(*evaluate(model, images.test, options.evaluation_samples), test_curve)


def with_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds; of one seed, the value."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def table(runs: dict[str, list[Run]]) -> list[list[str]]:
    """Mean and spread over the seeds, of the NLL and of its gain over the better REINFORCE, seed by seed."""
    nlls = {name: [run.nll for run in found] for name, found in runs.items()}
    reference = min((name for name in nlls if name.startswith("REINFORCE")), key=lambda name: mean(nlls[name]))
    rows = []
    for name, values in nlls.items():
        gains = [theirs - ours for theirs, ours in zip(nlls[reference], values, strict=True)]
        gain = "—" if name == reference else with_spread(gains)
        rows.append([name, with_spread(values), gain, f"{mean(run.ess for run in runs[name]):.0f}"])
    return rows


def draw_figure(runs: dict[str, list[Run]], options: argparse.Namespace) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(1.4, 1))
    for row, (name, found) in enumerate(runs.items()):
        epochs = list(found[0].test_curve)
        curves = np.array([list(run.test_curve.values()) for run in found])
        left.plot(epochs, curves.mean(0), label=name, color=f"C{row}")
        left.fill_between(epochs, curves.min(0), curves.max(0), color=f"C{row}", alpha=0.25, linewidth=0)
        right.plot([run.nll for run in found], [row] * len(found), "o", color=f"C{row}", alpha=0.7)
    left.set(title="Test negative log-likelihood in training (100 samples)", xlabel="epoch", ylabel="nats")
    left.legend()
    right.set(title=f"At the end ({options.evaluation_samples} samples), a dot for each seed", xlabel="nats")
    right.set_yticks(range(len(runs)), list(runs))
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(True, alpha=0.3)
    figure.suptitle(f"Sigmoid belief network, K = {options.samples}")
    save_figure(figure, options.out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_parser(__doc__, "sigmoid_belief_net.png")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--samples", type=int, default=10, help="K, at least 2")
    parser.add_argument("--units", type=int, nargs=2, default=[40, 20], help="binary units in h1 and in h2")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--evaluation-samples", type=int, default=1000, help="samples for the test NLL")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    images = digits(options.device)
    seeds = range(options.seed, options.seed + options.seeds)
    runs = {name: [train(name, images, seed, options) for seed in seeds] for name in CONTENDERS}
    print_table(["gradient", "test NLL", "gain over REINFORCE", "ESS"], table(runs))
    print(f"\nMean ± standard deviation of {options.seeds} seeds; gain over the better REINFORCE, seed by seed.")
    print(f"Test NLL in nats and mean effective sample size, both with {options.evaluation_samples} samples.")
    draw_figure(runs, options)


if __name__ == "__main__":
    main()
