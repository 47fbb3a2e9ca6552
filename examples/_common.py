"""What the examples share: images, a small network, training, evaluation, a table and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import iwbounds as iw

Model = Callable[[Tensor], tuple[Callable, torch.distributions.Distribution | iw.Proposal]]
"""Data ``(batch, pixels)`` to ``(log_joint, proposal)``, the two arguments of :func:`iwbounds.estimate`."""


@dataclass(frozen=True)
class Images:
    """Grey levels in [0, 1] to train on, and test images binarised once and for all."""

    train: Tensor
    test: Tensor

    @property
    def side(self) -> int:
        return int(self.train.shape[1] ** 0.5)

    @property
    def mean_logit(self) -> Tensor:
        """Logit of the mean training image: a decoder's bias before it has learnt anything."""
        return self.train.mean(0).clamp(0.01, 0.99).logit()

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch of training batches, in a new order, each pixel drawn anew from its grey level."""
        order = torch.randperm(len(self.train), generator=generator)
        for rows in order.split(size):
            grey = self.train[rows.to(self.train.device)]
            yield (torch.rand(grey.shape, generator=generator).to(grey.device) < grey).to(grey.dtype)


def digits(device: str = "cpu") -> Images:
    """Scikit-learn's 1797 handwritten digits of 8×8 pixels and 17 grey levels; every fourth is kept for the test."""
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().data).float() / 16
    held_out = torch.arange(len(grey)) % 4 == 0
    return _split(grey[~held_out], grey[held_out], device)


def mnist(path: Path, test_images: int, device: str = "cpu") -> Images:
    """The ``train_images`` and the first ``test_images`` of an ``.npz`` in the layout of MNIST: (N, 28, 28) uint8."""
    with np.load(path) as data:
        train, test = (torch.from_numpy(data[key]) for key in ("train_images", "test_images"))
    return _from_bytes(train, test[:test_images], device)


def handwriting(path: Path | None, test_images: int, device: str = "cpu") -> Images:
    """MNIST: from the archive at ``path``, else by torchvision, which downloads it to ``data/`` once; else say how."""
    if path is not None:
        return mnist(path, test_images, device)
    try:
        from torchvision.datasets import MNIST
    except ImportError:
        raise SystemExit(
            "MNIST is needed, and is not part of this package. Give an archive by --data PATH (.npz with train_images "
            "and test_images, (N, 28, 28) uint8), or `pip install torchvision`, which downloads it. "
            "--quick needs neither."
        ) from None
    train, test = (MNIST("data", train=train, download=True).data for train in (True, False))
    return _from_bytes(train, test[:test_images], device)


def _from_bytes(train: Tensor, test: Tensor, device: str) -> Images:
    return _split(train.flatten(1).float() / 255, test.flatten(1).float() / 255, device)


def _split(train: Tensor, test: Tensor, device: str) -> Images:
    binary = torch.rand(test.shape, generator=torch.Generator().manual_seed(0)) < test
    return Images(train.to(device), binary.float().to(device))


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with tanh between them."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log-probability of binary ``x``, summed over the event: shapes broadcast, the last axis goes."""
    return (x * logits - F.softplus(logits)).sum(-1)


def fit(
    model: nn.Module,
    images: Images,
    gradient: iw.Gradient,
    num_samples: int,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    label: str,
    batch_size: int = 100,
    track: Callable[[], float] | None = None,
    every: int = 1,
) -> tuple[dict[int, float], dict[int, float]]:
    """Ascend IWAE (the ELBO for one sample). Each epoch's mean bound, and ``track()`` every so many, by epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=learning_rate / 20)
    bounds, tracked = {}, {}
    progress = tqdm(range(1, epochs + 1), desc=f"{label:<24}", unit="epoch", leave=False)
    for epoch in progress:
        values = [step(model, x, gradient, num_samples, optimizer) for x in images.batches(batch_size, generator)]
        schedule.step()
        bounds[epoch] = torch.cat(values).mean().item()
        progress.set_postfix(bound=f"{bounds[epoch]:.2f}")
        if track is not None and epoch % every == 0:
            tracked[epoch] = track()
    return bounds, tracked


def step(model: Model, x: Tensor, gradient: iw.Gradient, num_samples: int, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step of ascent on a batch; its bounds, one per datum."""
    log_joint, proposal = model(x)
    bound = iw.ELBO() if num_samples == 1 else iw.IWAE()
    estimate = iw.estimate(log_joint, proposal, bound, gradient, num_samples=num_samples)
    optimizer.zero_grad()
    (-estimate.value.mean()).backward()
    optimizer.step()
    return estimate.value.detach()


@torch.no_grad()
def evaluate(model: Model, x: Tensor, num_samples: int, batch_size: int = 20) -> tuple[float, float]:
    """Mean over the data of the negative log-likelihood's estimate (never below it in expectation) and of the ESS."""
    estimates = [
        iw.estimate(log_joint, proposal, iw.IWAE(), num_samples=num_samples)
        for log_joint, proposal in map(model, x.split(batch_size))
    ]
    nll = -torch.cat([e.value for e in estimates]).mean().item()
    return nll, torch.cat([e.ess for e in estimates]).mean().item()


def options_parser(description: str, figure: str) -> argparse.ArgumentParser:
    """With the options that every example has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; small networks gain little from more")
    parser.add_argument("--out", type=Path, default=Path("out") / figure, help="where the figure goes")
    return parser


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the numbers to the right, in columns as wide as they need be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files: no display is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure, making its folder, and say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nFigure: {path}")
