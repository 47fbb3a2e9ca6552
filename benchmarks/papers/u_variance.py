r"""Variance of U-statistics against blocks: Burroni, Takatsu, Domke and Sheldon (2023), arXiv:2302.13918.

    PYTHONPATH=benchmarks python -m papers.u_variance                   # EXP, exact; and a VAE trained on the digits
    PYTHONPATH=benchmarks python -m papers.u_variance --data binarized  # the VAE of papers.table1 (its checkpoint)

From K samples, IWAE of n may be averaged over K/n blocks (iw.MIWAE) or over all sets of n (iw.UStatistic): the same
expectation, less variance, by a factor between n ζ_1/ζ_n and 1. For weights that are exponential (EXP), a sum of c of
them is Gamma(c), so that each of Hoeffding's terms is one integral and the factor is exact:

.. math:: \operatorname{Var} U = \binom Kn^{-1}\sum_{c=1}^n \binom nc\binom{K-n}{n-c}\,\zeta_c, \quad
          \zeta_c = \operatorname{Var} E\bigl[\log \tfrac1n(S_c + S'_{n-c}) \mid S_c\bigr].
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import table
from papers.data import NAMES, load
from papers.expected import Figure, parser, report
from papers.jackknife import settings_of
from papers.training import keep, train
from torch import Tensor

import iwbounds as iw

_NODES = 200


def gamma_rule(shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and probabilities for Gamma(shape): trapezoids in log s, which decay at both ends."""
    log_s, step = np.linspace(-30.0, math.log(shape + 60.0 + 10 * math.sqrt(shape)), 20 * _NODES, retstep=True)
    probability = np.exp(shape * log_s - np.exp(log_s) - math.lgamma(shape)) * step
    return np.exp(log_s), probability


def projection_variance(size: int, c: int) -> float:
    """ζ_c of log mean of ``size`` exponential weights."""
    s, p = gamma_rule(c)
    if c == size:  # all weights are given: nothing is left to average over
        values = np.log(s)
    else:
        rest, weight = gamma_rule(size - c)
        # in parts: the whole table of sums would take 128 MB
        values = np.array([np.log(part[:, None] + rest) @ weight for part in np.split(s, _NODES)]).ravel()
    mean = p @ values
    return float(p @ (values - mean) ** 2)


def exact_ratio(count: int, size: int) -> float:
    """Var U ÷ Var MIWAE of ``count`` exponential weights."""
    zeta = {c: projection_variance(size, c) for c in range(1, size + 1)}
    terms = (math.comb(size, c) * math.comb(count - size, size - c) * zeta[c] for c in zeta)
    return sum(terms) / math.comb(count, size) / (zeta[size] * size / count)


def exponential(count: int, draws: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, draws, dtype=torch.float64, generator=generator).log().neg().log()


def measured_ratio(log_w: Tensor, size: int) -> Tensor:
    """Variances over axis 1 of (K, draws, …), each relative to that of the blocks."""
    # Of the same draws: what their noise has in common leaves the ratio.
    blocks, every = (bound(log_w) for bound in (iw.MIWAE(len(log_w) // size), iw.UStatistic(size)))
    return every.var(0) / blocks.var(0)


def of_images(options: argparse.Namespace) -> Tensor:
    """(K, draws, images)."""
    data = load(options.data, options.folder, options.images)
    state = train(settings_of(options), data, options.checkpoints)
    torch.manual_seed(0)
    total = options.count * options.image_draws
    with torch.no_grad():
        log_w = iw.estimate(*state.model(data.test), num_samples=total, chunk_size=100).log_weights
    # Draws of one image are independent, so that any cut into sets of K is a sample of sets.
    return log_w.double().reshape(options.count, options.image_draws, -1)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    found = parser(__doc__, "u_variance.json")
    found.add_argument("--data", choices=NAMES, default="digits")
    found.add_argument("--epochs", type=int, help="of the network, which is that of papers.jackknife")
    found.add_argument("--count", type=int, default=16, help="K")
    found.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8], help="n")
    found.add_argument("--draws", type=int, default=20_000, help="of EXP")
    found.add_argument("--images", type=int, default=20)
    found.add_argument("--image-draws", type=int, default=400)
    return found.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> bool:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    log_w, images = exponential(options.count, options.draws), of_images(options)
    figures, rows, kept = [], [], {}
    for size in options.sizes:
        exact, measured = exact_ratio(options.count, size), measured_ratio(log_w, size).item()
        typical = measured_ratio(images, size).median().item()
        rows.append([str(size), f"{exact:.4f}", f"{measured:.4f}", f"{typical:.3f}"])
        kept[f"{options.data}, K {options.count}, n {size}"] = {"exact": exact, "EXP": measured, "images": typical}
        # Two variances of the same 20 000 draws, correlated: their ratio is known to about 1 %.
        figures.append(Figure.near(f"EXP, n = {size}, found ÷ exact", measured / exact, 1.0, 0.04))
        figures.append(Figure(f"images, n = {size}, median ratio", typical, 0.0, 1.0))
    print(table(["n", "EXP, exact", "EXP, found", "images, median"], rows))
    keep(kept, Path(options.results))
    return report(figures)


if __name__ == "__main__":
    raise SystemExit(not main())
