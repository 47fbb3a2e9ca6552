"""Log-evidence from a quarter of the samples: quasi-random draws against four times as many independent ones.

    python benchmarks/quarter_evidence.py [--quick]

Eight schools (10 dimensions, its log-evidence known by quadrature), from a full-covariance Gaussian and from one that
follows the hierarchy, both fitted with Controlled; over repeated estimates. And all held-out images of scikit-learn's
digits with a VAE 64-100-100-10 and its encoder, against the log-mean weight of 20 000 independent draws (left out by
--quick). Each proposal is used as it is (1) and a tenth wider (1.1). Errors are root mean squares in nats; ± is one
standard error of the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from common import VAE, arguments, table
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, TransformedDistribution
from torch.distributions.constraints import real_vector
from torch.distributions.transforms import Transform
from torch.special import ndtr

import iwbounds as iw

SCHOOLS = (
    torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64),
    torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64),
)
LOG_EVIDENCE = -31.311347352293
"""By quadrature over the hierarchy's two parameters."""
COUNTS = (16, 64, 256, 1024)


def eight_schools(z: Tensor) -> Tensor:
    """θ_j = μ + τ η_j; z is the eight η, μ/5 and the normal quantile of half-Cauchy(5) at τ: N(0, I) a priori.

    By log τ, whose tails are exponential, no Gaussian would have weights of finite variance.
    """
    y, sigma = SCHOOLS
    eta, mu, u = z[..., :8], 5 * z[..., 8:9], z[..., 9:]
    tau = 5 * (math.pi / 2 * ndtr(u)).sin() / (math.pi / 2 * ndtr(-u)).sin()
    return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(mu + tau * eta, sigma).log_prob(y).sum(-1)


class Hierarchy(Transform):
    """Normals to (η, m, u): u first, m given u, and the eight η given both, each by location and scale.

    These are quadratic in Φ(u), which is bounded, the locations of η linear in m besides. ``weights`` is (10, 9).
    """

    domain = codomain = real_vector
    bijective = True

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def _of_m(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log-scale of m."""
        row, p = self.weights[8:9], _powers(u)
        return p @ row[:, :3].T, p @ row[:, 3:6].T

    def _of_eta(self, u: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        rows, p = self.weights[:8], _powers(u)
        return torch.cat([p, m * p], -1) @ rows[:, :6].T, p @ rows[:, 6:].T

    def _call(self, e: Tensor) -> Tensor:
        u = self.weights[9, 0] + self.weights[9, 1].exp() * e[..., 9:]
        loc, log_scale = self._of_m(u)
        m = loc + log_scale.exp() * e[..., 8:9]
        loc, log_scale = self._of_eta(u, m)
        return torch.cat([loc + log_scale.exp() * e[..., :8], m, u], -1)

    def _inverse(self, z: Tensor) -> Tensor:
        eta, m, u = z[..., :8], z[..., 8:9], z[..., 9:]
        of_eta, of_m, of_u = self._of_eta(u, m), self._of_m(u), self.weights[9, :2]
        parts = ((eta, of_eta), (m, of_m), (u, of_u))
        return torch.cat([(part - loc) * (-log_scale).exp() for part, (loc, log_scale) in parts], -1)

    def log_abs_det_jacobian(self, _e: Tensor, z: Tensor) -> Tensor:
        m, u = z[..., 8:9], z[..., 9:]
        return self._of_eta(u, m)[1].sum(-1) + self._of_m(u)[1].squeeze(-1) + self.weights[9, 1]


def _powers(u: Tensor) -> Tensor:
    p = ndtr(u)
    return torch.cat([torch.ones_like(p), p, p.square()], -1)


Family = Callable[[Tensor, float, tuple[int, ...]], Distribution]
"""From weights, a factor of the spread and a batch shape."""


def full_gaussian(weights: Tensor, spread: float = 1.0, batch: tuple[int, ...] = ()) -> Distribution:
    """Weights (10, 11): the factor, whose diagonal is by its logarithm, and the location."""
    factor = weights[:, :10].tril(-1) + weights[:, :10].diagonal().exp().diag_embed()
    return MultivariateNormal(weights[:, 10], scale_tril=spread * factor).expand(batch)


def hierarchical(weights: Tensor, spread: float = 1.0, batch: tuple[int, ...] = ()) -> Distribution:
    base = Independent(Normal(torch.zeros(*batch, 10, dtype=torch.float64), spread), 1)
    return TransformedDistribution(base, [Hierarchy(weights)])


def fitted(family: Family, columns: int, steps: int) -> Tensor:
    """Weights by IWAE of 16 samples."""
    torch.manual_seed(0)
    weights = torch.zeros(10, columns, dtype=torch.float64, requires_grad=True)
    optimizer, gradient = torch.optim.Adam([weights], lr=0.01), iw.Controlled()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        q = family(weights, 1.0, ())
        (-iw.estimate(eight_schools, q, gradient=gradient, num_samples=16).value).backward()
        optimizer.step()
        schedule.step()
    return weights.detach()


KINDS: dict[str, Callable[[Distribution], object]] = {"independent": lambda q: q, "quasi-random": iw.QuasiRandom}


def compared(name: str, count: int, squares: dict[str, Tensor]) -> list[str]:
    """A row, from squared errors ``(parts,)`` that are independent between parts, by kind of draws."""
    plain, even = squares["independent"], squares["quasi-random"]
    ratio = (even.mean() / plain.mean()).sqrt().item()
    # The root's derivative is half; what the two kinds share of a part cancels.
    error = ratio / 2 * (even / even.mean() - plain / plain.mean()).std().item() / len(plain) ** 0.5
    return [name, str(count), *(f"{s.mean().sqrt():.4f}" for s in (plain, even)), f"{ratio:.2f} ± {error:.2f}"]


def schools(repeats: int, steps: int) -> Iterator[list[str]]:
    for name, family, columns in (("Gaussian", full_gaussian, 11), ("hierarchy", hierarchical, 9)):
        weights = fitted(family, columns, steps)
        for spread in (1.0, 1.1):
            for count in COUNTS:
                squares = {kind: _schools_squares(family, weights, spread, count, repeats, kind) for kind in KINDS}
                yield compared(f"eight schools, {name}, {spread:g}", count, squares)


@torch.no_grad()
def _schools_squares(family: Family, weights: Tensor, spread: float, count: int, repeats: int, kind: str) -> Tensor:
    draws = 4 * count if kind == "independent" else count
    values = [
        iw.estimate(eight_schools, KINDS[kind](family(weights, spread, (50,))), num_samples=draws).value
        for _ in range(repeats // 50)
    ]
    return (torch.cat(values) - LOG_EVIDENCE).square()


def digits(steps: int) -> Iterator[list[str]]:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    grey = torch.from_numpy(load_digits().data).float() / 16
    held_out = torch.arange(len(grey)) % 4 == 0
    train, test = grey[~held_out], torch.bernoulli(grey[held_out])
    model, gradient = VAE(64, 100, 10), iw.Controlled()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        x = torch.bernoulli(train[torch.randint(len(train), (100,))])
        optimizer.zero_grad()
        (-iw.estimate(*model(x), gradient=gradient, num_samples=8).value.mean()).backward()
        optimizer.step()
    parts = test.split(50)
    with torch.no_grad():
        truth = [iw.estimate(*model(x), num_samples=20_000, chunk_size=500).value for x in parts]
        for spread in (1.0, 1.1):
            for count in COUNTS:
                squares = {kind: _images_squares(model, parts, truth, spread, count, kind) for kind in KINDS}
                yield compared(f"digits, {len(test)} images, {spread:g}", count, squares)


def _images_squares(
    model: VAE, parts: tuple[Tensor, ...], truth: list[Tensor], spread: float, count: int, kind: str
) -> Tensor:
    """``(images)``: the mean over as many repeats as take 640 samples in all, but at least two."""
    draws, found = 4 * count if kind == "independent" else count, []
    for x, expected in zip(parts, truth, strict=True):
        log_joint, q = model(x)
        wider = Independent(Normal(q.base_dist.loc, spread * q.base_dist.scale, validate_args=False), 1)
        values = [
            iw.estimate(log_joint, KINDS[kind](wider), num_samples=draws).value for _ in range(max(2, 640 // count))
        ]
        found.append((torch.stack(values) - expected).square().mean(0))
    return torch.cat(found)


def gate() -> None:
    """Refuse to compare estimates of another number than the one that is known."""
    torch.manual_seed(0)
    for family, columns in ((full_gaussian, 11), (hierarchical, 9)):
        q = family(0.1 * torch.randn(10, columns, dtype=torch.float64), 1.0, ())
        with torch.no_grad():
            value = iw.estimate(eight_schools, q, num_samples=200_000).value
        if abs(value.item() - LOG_EVIDENCE) > 0.1:
            raise SystemExit(f"gate: the log-evidence of eight schools is {LOG_EVIDENCE:.3f}; found {value.item():.3f}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["schools", "digits"], default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gate()
    repeats, steps = (100, 300) if options.quick else (options.repeats or 3000, 3000)
    parts = {"schools": lambda: schools(repeats, steps), "digits": lambda: digits(steps)}
    if options.quick:
        del parts["digits"]
    rows = []
    for row in (row for name, part in parts.items() if options.only in name for row in part()):
        rows.append(row)
        print("  ".join(row), flush=True)
    print(table(["case", "K", "independent, 4 K", "quasi-random, K", "÷"], rows))


if __name__ == "__main__":
    main()
