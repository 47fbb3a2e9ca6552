"""Total variance of the proposal's gradient: Reparameterized, DReG, and Controlled with the strengths it has learned.

    python benchmarks/gradient_variance.py [--quick] [--targets targets.npz] [--figure out/variance.png]

Gaussians: N(0, I) from N(m, s²), with respect to m and s, over many data. A posterior: logistic regression on the sonar
data (60 features and a constant, N(0, 1) prior; left out where the file is absent) from a full-covariance Gaussian, as
training goes on. A VAE 64-100-100-10 of scikit-learn's digits: its encoder, for 100 images, as training goes on.

The strengths are those that training leaves: after steps of 100 data for the Gaussians, of one datum for the posterior
(at fixed parameters, over which the variance is averaged), along the training for the VAE. All estimators see the same
noise; ± is one standard error of the last column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import VAE, arguments, binary_images, gate, gradients, medians, pyplot, save_figure, table
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.nn import functional as F

import iwbounds as iw

DECADES = [(20, 0.0, 0.6), (20, 0.0, 1.5), (5, 1.0, 0.6), (20, 0.5, 1.2), (20, 0.1, 1.05)]
"""Dimensions, mean and scale, at K = 8."""
FEW = [(1, 0.5, 0.7, 2), (2, 0.5, 0.7, 64), (1, 1.0, 1.5, 64), (2, 1.0, 0.5, 2), (1, 0.0, 0.8, 64)]
"""Dimensions, mean, scale and K."""
PLAIN, DOUBLY, MINE = "Reparameterized", "DReG", "Controlled"


@dataclass(frozen=True)
class Row:
    """Squared distances of repeated gradients from their mean, by estimator."""

    name: str
    count: int
    squares: dict[str, Tensor]
    strengths: tuple[float, ...]

    @property
    def variances(self) -> dict[str, float]:
        return {name: squares.mean().item() for name, squares in self.squares.items()}

    @property
    def ratio(self) -> tuple[float, float]:
        """Controlled's variance to the least of the other two, and its standard error; the noise is shared."""
        least = min((PLAIN, DOUBLY), key=self.variances.__getitem__)
        mine, other = self.squares[MINE], self.squares[least]
        ratio = (mine.mean() / other.mean()).item()
        error = ((mine - ratio * other) / other.mean()).std() / len(mine) ** 0.5
        return ratio, error.item()

    def cells(self) -> list[str]:
        values = [f"{self.variances[name]:.3g}" for name in (PLAIN, DOUBLY, MINE)]
        shown = "(" + ", ".join(f"{s:.2f}" for s in self.strengths) + ")"
        return [self.name, str(self.count), *values, shown, "{:.3f} ± {:.3f}".format(*self.ratio)]


def squares_of(draw: Callable[[iw.Gradient], Tensor], learned: list[tuple[float, ...]]) -> dict[str, Tensor]:
    """From gradients ``(repeats, parameters)``; those of several learned strengths are averaged."""

    def squares(gradient: iw.Gradient) -> Tensor:
        torch.manual_seed(1)
        found = draw(gradient).double()
        return (found - found.mean(0)).square().sum(1) * len(found) / (len(found) - 1)

    mine = torch.stack([squares(iw.Controlled(strengths=strengths)) for strengths in learned]).mean(0)
    return {PLAIN: squares(iw.Reparameterized()), DOUBLY: squares(iw.DReG()), MINE: mine}


def learned_along(step: Callable[[iw.Gradient], object], count: int, steps: int, last: int) -> list[tuple[float, ...]]:
    """The strengths of IWAE after each of ten of the ``last`` of some steps."""
    gradient = iw.Controlled()
    found = []
    for i in range(1, steps + 1):
        step(gradient)
        if i > steps - last and (steps - i) % (last // 10) == 0:
            found.append(tuple(gradient.strengths_for(iw.IWAE(), count).tolist()))
    return found


def mean_of(learned: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(np.mean(learned, 0).tolist())


# Gaussians.


def gaussian_gradients(dimensions: int, mean: float, scale: float, count: int, data: int, gradient: iw.Gradient):
    """``(data, 2 dimensions)``: each datum has parameters of its own."""
    loc, std = (torch.full((data, dimensions), value, requires_grad=True) for value in (mean, scale))
    target = Independent(Normal(torch.zeros(dimensions), 1.0), 1)
    value = iw.estimate(target.log_prob, Independent(Normal(loc, std), 1), gradient=gradient, num_samples=count).value
    value.sum().backward()
    return torch.cat([loc.grad, std.grad], 1)


def gaussian(dimensions: int, mean: float, scale: float, count: int, data: int) -> Row:
    torch.manual_seed(0)
    learned = learned_along(partial(gaussian_gradients, dimensions, mean, scale, count, 100), count, 60, 20)
    squares = squares_of(partial(gaussian_gradients, dimensions, mean, scale, count, data), learned)
    return Row(f"Gaussian, d = {dimensions}, m = {mean:g}, s = {scale:g}", count, squares, mean_of(learned))


# A posterior.


@dataclass
class Posterior:
    """Logistic regression with a full-covariance Gaussian; the factor's diagonal by its logarithm."""

    x: Tensor
    y: Tensor
    loc: Tensor
    factor: Tensor

    @classmethod
    def sonar(cls, path: Path) -> Posterior:
        with np.load(path) as data:
            raw, y = (torch.from_numpy(data[key].astype(np.float32)) for key in ("sonar_X", "sonar_y"))
        x = torch.cat([torch.ones(len(raw), 1), (raw - raw.mean(0)) / raw.std(0, correction=0)], 1)
        size = x.shape[1]
        return cls(x, y.flatten(), torch.zeros(size), float(np.log(0.3)) * torch.eye(size))

    def log_joint(self, w: Tensor) -> Tensor:
        logits = w @ self.x.T
        return -0.5 * (w.square() + np.log(2 * np.pi)).sum(-1) + (self.y * logits - F.softplus(logits)).sum(-1)

    def proposal(self, loc: Tensor, factor: Tensor) -> MultivariateNormal:
        diagonal = factor.diagonal(dim1=-2, dim2=-1).exp()
        return MultivariateNormal(loc, scale_tril=factor.tril(-1) + diagonal.diag_embed(), validate_args=False)

    def gradients(self, count: int, repeats: int, gradient: iw.Gradient) -> Tensor:
        """``(repeats, parameters)``; repeats are data with copies of the parameters, 50 at a time."""
        return torch.cat([self._gradients(count, min(50, repeats - i), gradient) for i in range(0, repeats, 50)])

    def _gradients(self, count: int, repeats: int, gradient: iw.Gradient) -> Tensor:
        loc, factor = (t.expand(repeats, *t.shape).clone().requires_grad_() for t in (self.loc, self.factor))
        q = self.proposal(loc, factor)
        iw.estimate(self.log_joint, q, gradient=gradient, num_samples=count).value.sum().backward()
        return torch.cat([loc.grad, factor.grad.flatten(1)], 1)

    def train(self, count: int, steps: int, gradient: iw.Gradient) -> None:
        loc, factor = (t.clone().requires_grad_() for t in (self.loc, self.factor))
        optimizer = torch.optim.Adam([loc, factor], lr=0.001)
        for _ in range(steps):
            optimizer.zero_grad()
            q = self.proposal(loc, factor)
            (-iw.estimate(self.log_joint, q, gradient=gradient, num_samples=count).value).backward()
            optimizer.step()
        self.loc, self.factor = loc.detach(), factor.detach()


def posterior(path: Path, count: int, stages: list[int], repeats: int) -> Iterator[Row]:
    """One datum a step, as such a posterior is fitted."""
    torch.manual_seed(0)
    model, done = Posterior.sonar(path), 0
    for stage in stages:
        model.train(count, stage - done, iw.Controlled())
        done = stage
        learned = learned_along(partial(model.gradients, count, 1), count, 400, 200)
        squares = squares_of(partial(model.gradients, count, repeats), learned)
        yield Row(f"sonar posterior, step {stage}", count, squares, mean_of(learned))


# A VAE.


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data).float() / 16


def vae(count: int, stages: list[int], repeats: int) -> Iterator[Row]:
    """Trained with Controlled, whose strengths at each stage are those of its training so far."""
    torch.manual_seed(0)
    model, grey, gradient = VAE(64, 100, 10), digits(), iw.Controlled()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    fixed = torch.bernoulli(grey[:100])
    for step in range(1, max(stages) + 1):
        x = torch.bernoulli(grey[torch.randint(len(grey), (100,))])
        optimizer.zero_grad()
        (-iw.estimate(*model(x), gradient=gradient, num_samples=count).value.mean()).backward()
        optimizer.step()
        if step in stages:
            learned = [tuple(gradient.strengths_for(iw.IWAE(), count).tolist())]
            with torch.random.fork_rng():  # the measurement leaves the training as it is
                squares = squares_of(partial(encoder_gradients, model, fixed, count, repeats), learned)
            yield Row(f"digits VAE, step {step}", count, squares, learned[0])


def encoder_gradients(model: VAE, x: Tensor, count: int, repeats: int, gradient: iw.Gradient) -> Tensor:
    parameters, found = list(model.encoder.parameters()), []
    for _ in range(repeats):
        value = iw.estimate(*model(x), gradient=gradient, num_samples=count).value.mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    return torch.stack(found)


# All of it.


def check() -> None:
    """Refuse to measure what is not, on average, the gradient of one bound; and strengths that are not DReG's at 1."""
    found = {
        gradient: gaussian_gradients(2, 0.5, 0.8, 4, 50_000, gradient).mean(0)
        for gradient in (iw.Reparameterized(), iw.DReG(), iw.Controlled(strengths=(0.7, -0.4)))
    }
    first, *others = found.values()
    if any((first - other).abs().max() > 0.02 for other in others):
        raise SystemExit("gate: the estimators do not have one expectation")
    model, x = VAE(16, 8, 2), binary_images(20, 16)
    step = lambda gradient: (-iw.estimate(*model(x), gradient=gradient, num_samples=5).value.mean()).backward()  # noqa: E731
    gate(model, partial(step, iw.DReG()), {MINE: partial(step, iw.Controlled())})


def step_time(repeats: int) -> str:
    """A step of Controlled against one of DReG: 784-200-200-50, batch 100, K = 50, in turn."""
    torch.manual_seed(0)
    model, x = VAE(), binary_images(100)

    def step(gradient: iw.Gradient) -> Callable[[], object]:
        loss = lambda: (-iw.estimate(*model(x), gradient=gradient, num_samples=50).value.mean()).backward()  # noqa: E731
        return partial(gradients, model, loss)

    found = medians({MINE: step(iw.Controlled()), DOUBLY: step(iw.DReG())}, repeats)
    return f"a step: Controlled {1e3 * found[MINE]:.1f} ms, DReG {1e3 * found[DOUBLY]:.1f} ms, ratio " + (
        f"{found[MINE] / found[DOUBLY]:.3f}"
    )


def rows_of(quick: bool, only: str, targets: Path) -> Iterator[Row]:
    data, repeats, stages = (1_000, 40, [20, 200]) if quick else (8_000, 200, [20, 200, 1000, 3000])
    for case in [(*case, 8) for case in DECADES] + FEW:
        if only in "gaussians":
            yield gaussian(*case, data)
    for count in (8, 64):
        if only not in "posterior":
            pass
        elif targets.exists():
            yield from posterior(targets, count, [0, 200] if quick else [0, 200, 1000, 3000], 2 * repeats)
        elif count == 8:
            print(f"sonar posterior left out: {targets} is absent (--targets)")
        if only in "vae":
            yield from vae(count, stages, repeats)


def plot(rows: list[Row], path: Path) -> None:
    """Every variance ÷ the lesser of Reparameterized's and DReG's, a line for each case."""
    from iwbounds.plots.style import BLUE, ORANGE, VERMILION, plain

    figure, axis = pyplot().subplots(figsize=(8, 0.8 + 0.24 * len(rows)), layout="constrained")
    names = [f"{row.name}, K = {row.count}" for row in rows]
    for name, colour, marker in ((PLAIN, ORANGE, "s"), (DOUBLY, BLUE, "o"), (MINE, VERMILION, "D")):
        ratios = [row.variances[name] / min(row.variances[PLAIN], row.variances[DOUBLY]) for row in rows]
        axis.scatter(ratios, range(len(rows)), color=colour, marker=marker, label=name, zorder=3, s=26)
    axis.axvline(1, color="0.4", linewidth=0.8)
    plain(axis, "Variance of the proposal's gradient", "÷ the lesser of Reparameterized and DReG", "")
    axis.set(xscale="log", yticks=range(len(rows)), yticklabels=names)
    axis.invert_yaxis()
    axis.legend(loc="upper right", frameon=False)
    save_figure(figure, path)


HEADER = ["case", "K", PLAIN, DOUBLY, MINE, "λ", "÷ the lesser"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer data, repeats and steps: about a minute")
    parser.add_argument("--only", choices=["gaussians", "posterior", "vae"], default="")
    parser.add_argument("--targets", type=Path, default=Path("shared/data/targets.npz"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    check()
    rows = []
    for row in rows_of(options.quick, options.only, options.targets):
        rows.append(row)
        print("  ".join(row.cells()), flush=True)
    said = step_time(options.repeats or (5 if options.quick else 25))
    print(table(HEADER, [row.cells() for row in rows]), said, sep="\n")
    if options.figure:
        plot(rows, options.figure)


if __name__ == "__main__":
    main()
