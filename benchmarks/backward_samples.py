"""Backward on a few resampled samples: time and variance of the gradient, on a VAE trained for 600 steps.

    python benchmarks/backward_samples.py                        # scikit-learn's digits at 28×28
    python benchmarks/backward_samples.py --data mnist.npz       # train_images (N, 28, 28) of uint8

The gradient is DReG's, K = 64, batch 100, VAE 784-200-200-50. The variance is that of all parameters' gradients
together, over repeated draws for one batch. Times are ratios to the full backward of the same kind: with the densities
of torch.distributions, with fused ones, or under torch.compile (for which there must be a C++ compiler). Set
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 for steady ones.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import VAE, Fused, Step, arguments, gate, medians, step_of, table
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

import iwbounds as iw

NUM_SAMPLES, BATCH = 64, 100


def grey_images(path: Path | None) -> Tensor:
    """Grey levels in [0, 1], ``(N, 784)``: MNIST's, or the digits' 8×8 pixels drawn as 3×3 with a margin."""
    if path is not None:
        return torch.from_numpy(np.load(path)["train_images"]).flatten(1).float() / 255
    from sklearn.datasets import load_digits

    small = torch.from_numpy(load_digits().images).float()[:, None] / 16
    return F.pad(F.interpolate(small, scale_factor=3), (2, 2, 2, 2)).flatten(1)


def batch_of(grey: Tensor) -> Tensor:
    rows = grey[torch.randint(len(grey), (BATCH,))]
    return (torch.rand_like(rows) < rows).float()


def step(model: VAE, x: Tensor, few: int | None, compiled: bool = False) -> Step:
    """Leaves a fresh gradient in ``.grad``."""

    def loss_of(x: Tensor) -> Tensor:
        options = {"num_samples": NUM_SAMPLES, "backward_samples": few}
        return -iw.estimate(*model(x), gradient=iw.DReG(), **options).value.mean()

    return partial(step_of(model, loss_of, compiled), x)


def train(model: VAE, grey: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in trange(steps, desc="training", leave=False):
        step(model, batch_of(grey), None)()
        optimizer.step()


@dataclass
class Moments:
    """The mean of many gradients, and the squared norm of each."""

    mean: Tensor
    squared_norms: Tensor

    @property
    def spreads(self) -> Tensor:
        """One number per gradient, whose mean is the total variance."""
        count = len(self.squared_norms)
        return (self.squared_norms - self.mean.square().sum()) * count / (count - 1)

    @property
    def variance(self) -> float:
        return self.spreads.mean().item()


def moments(model: VAE, run: Step, draws: int) -> Moments:
    total, squared_norms = torch.zeros(()).double(), []
    for _ in trange(draws, desc="gradients", leave=False):
        run()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        total = total + gradient
        squared_norms.append(gradient.square().sum())
    return Moments(total / draws, torch.stack(squared_norms))


def variance_ratio(few: Moments, full: Moments) -> str:
    """With its standard error."""
    relative = [(m.spreads.std() / len(m.spreads) ** 0.5).item() / m.variance for m in (few, full)]
    ratio = few.variance / full.variance
    return f"{ratio:.3f} ± {ratio * math.hypot(*relative):.3f}"


def bias(few: Moments, full: Moments) -> str:
    """Squared distance of the mean gradients, relative to what chance gives: about 1 where there is no bias."""
    chance = sum(m.variance / len(m.squared_norms) for m in (few, full))
    return f"{(few.mean - full.mean).square().sum().item() / chance:.2f}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="an .npz with train_images; scikit-learn's digits without")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--draws", type=int, default=400, help="of the gradient")
    parser.add_argument("--few", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    grey, model, fused = grey_images(options.data), VAE(), Fused()
    train(model, grey, options.steps)
    fused.load_state_dict(model.state_dict())
    x, counts = batch_of(grey), [None, *options.few]
    ess = iw.estimate(*model(x), num_samples=NUM_SAMPLES).ess
    print(f"effective sample size after {options.steps} steps: {statistics.fmean(ess.tolist()):.2f} of {NUM_SAMPLES}")
    kinds = {"plain": (model, False), "fused": (fused, False), "compiled": (model, True)}
    steps = {f"{kind} {few}": step(m, x, few, compiled) for kind, (m, compiled) in kinds.items() for few in counts}
    gate(model, steps["plain None"], {"compiled": steps["compiled None"]})
    seconds = medians(steps, options.repeats or 20)
    found = {few: moments(model, step(model, x, few), options.draws) for few in counts}
    rows = []
    for few in options.few:
        own = [f"{seconds[f'{kind} {few}'] / seconds[f'{kind} None']:.3f}" for kind in kinds]
        plain = [f"{seconds[f'{kind} {few}'] / seconds['plain None']:.3f}" for kind in list(kinds)[1:]]
        rows.append([few, *own, *plain, variance_ratio(found[few], found[None]), bias(found[few], found[None])])
    header = ["backward_samples", *(f"{kind} ÷ full" for kind in kinds), "fused ÷ plain full", "compiled ÷ plain full"]
    print(table([*header, "variance ÷ full", "bias² ÷ chance"], rows))


if __name__ == "__main__":
    main()
