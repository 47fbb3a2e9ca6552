r"""The bias of jackknife variational inference against K: Nowozin (2018), Debiasing Evidence Approximations, ICLR.

    PYTHONPATH=benchmarks python -m papers.jackknife                  # LOGN, and a VAE trained on the digits
    PYTHONPATH=benchmarks python -m papers.jackknife --data binarized # on the VAE of papers.table1 (its checkpoint)

A bias of order K^−3 drowns in any Monte Carlo. It need not be sampled: the N log-weights of an image are taken as a
distribution of N equally likely atoms, whose evidence is their mean, and whose expected bound is an integral,

.. math:: E\,\mathrm{IWAE}_K = \int_0^\infty \bigl(e^{-Ks} - \phi(s)^K\bigr)\frac{ds}{s}, \quad \phi(s) = E e^{-sw},

and the expected jackknife a combination of those of K, K − 1, … samples. Slopes are taken between K and 4 K with K from
20 μ3/μ2 of the image's weights on: before that the expansion in 1/K, whose orders the jackknife removes, says nothing.
iw.Jackknife itself is held against the integral, on draws from the same atoms.
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
from papers.training import Settings, geometric_rates, keep, linear_rates, train

import iwbounds as iw

ORDERS = (0, 1, 2)
_LOG_S, _STEP = np.linspace(-40.0, 40.0, 4001, retstep=True)


class Weights:
    """A distribution of finitely many weights of mean 1, with probabilities."""

    def __init__(self, log_w: np.ndarray, probability: np.ndarray | None = None) -> None:
        w = np.exp(log_w - log_w.max())
        p = np.full(len(w), 1 / len(w)) if probability is None else probability / probability.sum()
        w = w / (p @ w)
        self.log_w, self.p = np.log(w), p
        self.variance, self.third = p @ (w - 1) ** 2, p @ (w - 1) ** 3
        s = np.exp(_LOG_S)
        # Coefficients of K²/2 cancel eight digits at K = 10 000. A rounding of φ is that of one distribution, whatever
        # K, and cancels too; a rounding of the sums does not.
        self._s = s.astype(np.longdouble)
        # expm1 and log1p: for small s, φ is 1 but for digits that it could not hold itself.
        less = np.concatenate([np.expm1(-np.outer(block, w)) @ p for block in np.split(s, range(200, len(s), 200))])
        with np.errstate(divide="ignore"):  # a φ that underflows to 0 has the right logarithm, −inf
            self._log_phi = np.log1p(np.maximum(less, -1.0)).astype(np.longdouble)

    def iwae(self, count: int) -> np.longdouble:
        """E IWAE_K, less the log evidence: minus Jensen's gap."""
        return _STEP * np.sum(np.exp(-count * self._s) - np.exp(count * self._log_phi))

    def bias(self, count: int, order: int) -> float:
        """Of the jackknife: an average over all sets of K − j samples has the expectation of IWAE_{K−j}."""
        return float(sum(c * self.iwae(count - j) for j, c in enumerate(coefficients(count, order))))

    def slope(self, counts: Sequence[int], order: int) -> float:
        return float(np.polyfit(np.log(counts), [math.log(abs(self.bias(k, order))) for k in counts], 1)[0])

    def counts(self) -> list[int]:
        """Where the expansion in 1/K holds."""
        first = max(8, math.ceil(20 * self.third / self.variance))
        return [first, 2 * first, 4 * first]


def coefficients(count: int, order: int) -> list[np.longdouble]:
    """c_j = (−1)^j (K − j)^m / ((m − j)! j!), written anew: iw.Jackknife's are what is checked."""
    return [
        np.longdouble((-1) ** j * (count - j) ** order) / (math.factorial(order - j) * math.factorial(j))
        for j in range(order + 1)
    ]


def lognormal(variance: float) -> Weights:
    """LOGN: log w ~ N(−s²/2, s²), by the nodes of a Gauss-Hermite rule."""
    z, weight = np.polynomial.hermite_e.hermegauss(150)
    keep = weight > 1e-300  # the outermost nodes of so large a rule underflow
    return Weights(math.sqrt(variance) * z[keep] - variance / 2, weight[keep])


def monte_carlo_z(weights: Weights, order: int, count: int = 8, draws: int = 100_000) -> float:
    """Standard errors between the mean of iw.Jackknife over draws of the atoms and the integral."""
    generator = torch.Generator().manual_seed(order)
    rows = torch.multinomial(torch.from_numpy(weights.p), count * draws, True, generator=generator)
    values = iw.Jackknife(order)(torch.from_numpy(weights.log_w)[rows].reshape(count, draws))
    error = values.std().item() / math.sqrt(draws)
    return (values.mean().item() - weights.bias(count, order)) / error


def draw_figure(sides: dict[str, Weights], path: Path) -> None:
    """|bias| against K, an axis for each distribution of weights."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from iwbounds.plots.style import BLUE, GREEN, VERMILION, plain

    figure, axes = pyplot.subplots(1, len(sides), figsize=(11, 4.2), layout="constrained")
    for axis, (name, weights) in zip(axes, sides.items(), strict=True):
        counts = np.unique(np.geomspace(4, 4 * weights.counts()[0], 30).astype(int)).tolist()
        for order, colour, marker in zip(ORDERS, (BLUE, VERMILION, GREEN), "os^", strict=True):
            bias = [abs(weights.bias(k, order)) for k in counts]
            label = f"order {order}: slope {weights.slope(weights.counts(), order):.2f} at the end"
            axis.loglog(counts, bias, marker + "-", color=colour, markersize=4, label=label)
        plain(axis, f"Bias of the jackknife: {name}", "samples K", "|bias|, nats")
        axis.xaxis.set_minor_formatter("")  # powers of ten alone: the others overlap
        axis.legend(fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    print(f"Figure: {path}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    found = parser(__doc__, "jackknife.json")
    found.add_argument("--data", choices=NAMES, default="digits")
    found.add_argument("--epochs", type=int, help="default: 60 for the digits, else 20: the VAE of papers.table1")
    found.add_argument("--images", type=int, default=40)
    found.add_argument("--draws", type=int, default=100_000, help="to hold iw.Jackknife against the integral")
    found.add_argument("--atoms", type=int, default=4000, help="log-weights of each image")
    found.add_argument("--out", type=Path, default=Path("out") / "jackknife.png", help="where the figure goes")
    return found.parse_args(argv)


def settings_of(options: argparse.Namespace) -> Settings:
    if options.data == "digits":
        rates = geometric_rates(options.epochs or 60, 8e-3, 4e-4)
        return Settings("digits", "VAE", 1, rates=rates, hidden=100, latent=20)
    return Settings(options.data, "VAE", 1, rates=linear_rates(options.epochs or 20, 1e-3, 1e-4))


def of_images(options: argparse.Namespace) -> list[Weights]:
    """The weights of test images under the trained VAE, in float64."""
    data = load(options.data, options.folder, options.images)
    state = train(settings_of(options), data, options.checkpoints)
    torch.manual_seed(0)
    with torch.no_grad():
        log_w = iw.estimate(*state.model(data.test), num_samples=options.atoms, chunk_size=100).log_weights
    return [Weights(column) for column in log_w.double().T.numpy()]


def show(logn: Weights, images: list[Weights]) -> dict[str, dict[str, float | list[float]]]:
    """Print what was found, and give it back to be kept."""
    slopes = {m: [w.slope(w.counts(), m) for w in images] for m in ORDERS}
    quantiles = {m: [round(float(q), 4) for q in np.quantile(slopes[m], [0.1, 0.5, 0.9])] for m in ORDERS}
    local = {m: float(np.median([w.slope((16, 32, 64), m) for w in images])) for m in ORDERS}
    exact = {m: logn.slope((16, 32, 64), m) for m in ORDERS}
    rows = [[str(m), f"{exact[m]:.3f}", *(f"{q:.3f}" for q in quantiles[m])] for m in ORDERS]
    print(table(["order", "LOGN(.25)", "images: 10 %", "median", "90 %"], rows))
    starts = np.quantile([w.counts()[0] for w in images], [0, 0.5, 1])
    print(f"20 μ3/μ2, the first K: {starts.round()} (least, median, most of {len(images)} images)")
    print("median slope between K = 16 and 64: " + ", ".join(f"order {m}: {s:.2f}" for m, s in local.items()))
    # The absolute bias: orders above 0 have either sign.
    practical = {m: float(np.median([abs(w.bias(64, m)) for w in images])) for m in ORDERS}
    print("median |bias| at K = 64: " + ", ".join(f"order {m}: {b:.2e}" for m, b in practical.items()))
    return {
        "LOGN": {str(m): round(exact[m], 4) for m in ORDERS},
        "slopes_10_50_90_percent": {str(m): quantiles[m] for m in ORDERS},
        "median_slopes_16_to_64": {str(m): local[m] for m in ORDERS},
        "median_absolute_bias_at_64": {str(m): practical[m] for m in ORDERS},
        "first_K": {"least, median, most": [float(k) for k in starts]},
    }


def expected(logn: Sequence[float], medians: Sequence[float], z: Sequence[float]) -> list[Figure]:
    """The slopes by order, and how far iw.Jackknife is from the integral."""
    figures = [Figure.near(f"slope, LOGN(.25), order {m}", s, -1 - m, 0.15) for m, s in enumerate(logn)]
    figures += [Figure.near(f"slope, median image, order {m}", s, -1 - m, 0.15) for m, s in enumerate(medians)]
    # The largest of six normal variables is above 4.5 once in 25 000 runs.
    return [*figures, Figure("iw.Jackknife: largest |z| of six means", max(map(abs, z)), 0.0, 4.5)]


def main(argv: Sequence[str] | None = None) -> bool:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    logn, images = lognormal(0.25), of_images(options)
    found = show(logn, images)
    keep({options.data: found | {"images": len(images), "atoms": options.atoms}}, options.results)
    # the image in the middle of how soon the expansion holds
    middle = sorted(images, key=lambda w: w.third / w.variance)[len(images) // 2]
    draw_figure({"lognormal weights, s² = 0.25": logn, f"a VAE's weights, {options.data}": middle}, options.out)
    medians = [quantiles[1] for quantiles in found["slopes_10_50_90_percent"].values()]
    z = [monte_carlo_z(w, m, draws=options.draws) for w in (logn, images[0]) for m in ORDERS]
    return report(expected(list(found["LOGN"].values()), medians, z))


if __name__ == "__main__":
    raise SystemExit(not main())
