"""Log-evidence from a quarter of the samples: quasi-random draws against four times as many independent ones.

    python benchmarks/quarter_evidence.py [--quick]

Eight schools (10 dimensions, non-centred; its log-evidence is known by quadrature) with a full-covariance Gaussian that
Controlled has fitted, over repeated estimates; and 200 test images of scikit-learn's digits with a VAE 64-100-100-10,
over repeats of each, against the log-mean weight of 20 000 independent draws (left out by --quick). Both are root mean
squares in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from common import VAE, arguments, table
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

import iwbounds as iw

SCHOOLS = (
    torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64),
    torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64),
)
LOG_EVIDENCE = -31.311347352293
"""By quadrature over the hierarchy's two parameters."""
LogJoint = Callable[[Tensor], Tensor]


def eight_schools(z: Tensor) -> Tensor:
    """θ_j = μ + τ η_j; z is the eight η, μ/5 and log τ, with τ half-Cauchy(5)."""
    y, sigma = SCHOOLS
    eta, mu, log_tau = z[..., :8], 5 * z[..., 8:9], z[..., 9:]
    prior = Normal(0.0, 1.0).log_prob(z[..., :9]).sum(-1)
    half_cauchy = math.log(2 / (5 * math.pi)) - (log_tau.exp() / 5).square().log1p() + log_tau
    return prior + half_cauchy.squeeze(-1) + Normal(mu + log_tau.exp() * eta, sigma).log_prob(y).sum(-1)


def fitted(log_joint: LogJoint, size: int, steps: int) -> Distribution:
    """A full-covariance Gaussian by IWAE of 16 samples."""
    loc = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    factor = torch.zeros(size, size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([loc, factor], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    gradient = iw.Controlled()

    def proposal() -> MultivariateNormal:
        return MultivariateNormal(loc, scale_tril=factor.tril(-1) + factor.diagonal().exp().diag_embed())

    for _ in range(steps):
        optimizer.zero_grad()
        (-iw.estimate(log_joint, proposal(), gradient=gradient, num_samples=16).value).backward()
        optimizer.step()
        schedule.step()
    found = proposal()
    # A little wider: IWAE's proposals cut the tails, and evidence needs them.
    return MultivariateNormal(found.loc.detach(), scale_tril=1.1 * found.scale_tril.detach())


def errors(
    log_joint: LogJoint, over_data: Callable[[int], Distribution], count: int, repeats: int, truth: float | Tensor
) -> tuple[float, float]:
    """Root mean squares of independent draws, 4 ``count`` of them, and of ``count`` quasi-random ones."""
    found = []
    with torch.no_grad():
        for draws, kind in ((4 * count, lambda q: q), (count, iw.QuasiRandom)):
            values = [
                iw.estimate(log_joint, kind(over_data(part)), num_samples=draws).value for part in parts_of(repeats)
            ]
            found.append((torch.cat(values) - truth).square().mean().sqrt().item())
    return found[0], found[1]


def parts_of(repeats: int) -> list[int]:
    """At most 50 repeats at a time."""
    return [min(50, repeats - start) for start in range(0, repeats, 50)]


def schools(repeats: int, steps: int) -> list[list[str]]:
    torch.manual_seed(0)
    q = fitted(eight_schools, 10, steps)
    rows = []
    for count in (16, 64, 256, 1024):
        pair = errors(eight_schools, lambda part: q.expand((part,)), count, repeats, LOG_EVIDENCE)
        rows.append(["eight schools", count, *pair])
    return rows


def digits(repeats: int, steps: int) -> list[list[str]]:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    grey = torch.from_numpy(load_digits().data).float() / 16
    held_out = torch.arange(len(grey)) % 4 == 0
    train, test = grey[~held_out], torch.bernoulli(grey[held_out][:200])
    model, gradient = VAE(64, 100, 10), iw.Controlled()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        x = torch.bernoulli(train[torch.randint(len(train), (100,))])
        optimizer.zero_grad()
        (-iw.estimate(*model(x), gradient=gradient, num_samples=8).value.mean()).backward()
        optimizer.step()
    truth = torch.cat([_long(model, x) for x in test.split(50)])
    rows = []
    for count in (16, 64, 256):
        squares = []
        for rows_of_data in torch.arange(len(test)).split(50):
            x, expected = test[rows_of_data], truth[rows_of_data]
            log_joint, q = model(x)
            many = [errors(log_joint, lambda _, q=q: q, count, 1, expected) for _ in range(repeats)]
            squares.append(torch.tensor(many).square().mean(0) * len(x))
        rows.append(["digits, 200 images", count, *(torch.stack(squares).sum(0) / len(test)).sqrt().tolist()])
    return rows


def _long(model: VAE, x: Tensor) -> Tensor:
    with torch.no_grad():
        return iw.estimate(*model(x), num_samples=20_000, chunk_size=500).value


def gate() -> None:
    """Refuse to compare estimates of another number than the one that is known."""
    q = Independent(Normal(torch.zeros(10, dtype=torch.float64), 2.0), 1)
    torch.manual_seed(0)
    with torch.no_grad():
        value = iw.estimate(eight_schools, q, num_samples=400_000).value
    if abs(value.item() - LOG_EVIDENCE) > 0.2:
        raise SystemExit(f"gate: the log-evidence of eight schools is {LOG_EVIDENCE:.3f}; found {value.item():.3f}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gate()
    repeats, steps = (100, 300) if options.quick else (1000, 3000)
    found = schools(repeats, steps) + ([] if options.quick else digits(10, steps))
    rows = [[name, k, f"{plain:.4f}", f"{even:.4f}", f"{even / plain:.2f}"] for name, k, plain, even in found]
    print(table(["case", "K", "independent, 4 K", "quasi-random, K", "÷"], rows))


if __name__ == "__main__":
    main()
