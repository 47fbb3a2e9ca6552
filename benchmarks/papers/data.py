"""The data of the papers: MNIST with pixels drawn anew or fixed, OMNIGLOT, and digits for a machine without them.

The folder of the archives is --folder, else the environment variable IWBOUNDS_DATA. What each holds:

* ``mnist.npz``: ``train_images``, ``test_images`` (N, 28, 28) uint8, binarised at random in each epoch;
* ``binarized_mnist.npz``: ``train``, ``test`` (N, 98) uint8, 784 packed bits per row, whose test rows lie by class;
* ``omniglot28.npz``: ``train``, ``test``, packed in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = ("binarized", "mnist", "omniglot", "digits")
ARCHIVES = {"binarized": "binarized_mnist.npz", "mnist": "mnist.npz", "omniglot": "omniglot28.npz"}


@dataclass(frozen=True)
class Data:
    """Training images in [0, 1] (each pixel the probability of a 1) and binary test images, (N, pixels) each."""

    train: Tensor
    test: Tensor

    def batches(self, size: int) -> Iterator[Tensor]:
        """One epoch in a new order, from torch's global generator. Pixels that are 0 or 1 stay what they are."""
        for rows in torch.randperm(len(self.train)).split(size):
            yield torch.bernoulli(self.train[rows])


def load(name: str, folder: Path | None = None, test_images: int = 1000) -> Data:
    """``test_images`` of the test set, evenly spaced: where the rows lie by class, every class is among them."""
    train, test = _digits() if name == "digits" else _archive(name, folder)
    # whole-number arithmetic: linspace in float32 would repeat and skip rows
    rows = torch.arange(min(test_images, len(test))) * len(test) // min(test_images, len(test))
    grey = test[rows]
    # One binarisation of the test set for all runs, whatever their seeds.
    return Data(train, (torch.rand(grey.shape, generator=torch.Generator().manual_seed(0)) < grey).float())


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().data).float() / 16
    held_out = torch.arange(len(grey)) % 4 == 0  # as in the examples
    return grey[~held_out], grey[held_out]


def _archive(name: str, folder: Path | None) -> tuple[Tensor, Tensor]:
    folder = Path(os.environ.get("IWBOUNDS_DATA", ".")) if folder is None else folder
    path = folder / ARCHIVES[name]
    if not path.exists():
        raise SystemExit(f"{path.name} is not in {folder}: give its folder by --folder or IWBOUNDS_DATA.")
    with np.load(path) as archive:
        if name == "mnist":
            return tuple(torch.from_numpy(archive[key]).flatten(1).float() / 255 for key in _MNIST)
        return tuple(torch.from_numpy(np.unpackbits(archive[key], axis=1)).float() for key in ("train", "test"))


_MNIST = ("train_images", "test_images")
