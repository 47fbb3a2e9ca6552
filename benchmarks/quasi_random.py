"""What quasi-random draws cost and save: time against Normal.rsample, and the gap of IWAE at equal K.

python benchmarks/quasi_random.py                    # draws of (1024, 100, 20), then a table of gaps
python benchmarks/quasi_random.py --device cuda

The target of the gaps is N(0, I), the proposal N(s, 1.2²) with |s| = 1; both gaps are means of w − 1 − log w with w the
mean weight, whose expectation is one, over 2 000 data.
"""

from __future__ import annotations

import time

import torch
from common import arguments, medians, table
from torch.distributions import Independent, Normal

import iwbounds as iw

SHAPE = (1024, 100, 20)
CASES = [(2, 16), (5, 16), (5, 64), (10, 64), (20, 64), (20, 256), (50, 64)]


def gate() -> None:
    """Refuse to time draws that are not evenly spread normals: one of 64 in each of 64 equal parts."""
    z = iw.QuasiRandom(Normal(torch.zeros(100, dtype=torch.float64), 1.0)).rsample((64,))
    cells = (torch.special.ndtr(z) * 64).long().sort(0).values
    if not (cells == torch.arange(64).unsqueeze(1)).all():
        raise SystemExit("gate: quasi-random normals are not one in each of 64 equal parts")


def draws(device: str, dtype: torch.dtype, repeats: int) -> list[list[str]]:
    """Milliseconds of a draw with a graph, and the ratio to Normal.rsample."""
    loc = torch.zeros(SHAPE[1:], device=device, dtype=dtype, requires_grad=True)
    q = Normal(loc, torch.ones_like(loc), validate_args=False)
    candidates = {
        "Normal.rsample": q.rsample,
        "loc + scale * randn": lambda shape: (
            loc + q.scale * torch.randn(*shape, *loc.shape, device=device, dtype=dtype)
        ),
        "QuasiRandom.rsample": iw.QuasiRandom(Independent(q, 1)).rsample,
    }

    def step(sample):
        def run():
            sample(SHAPE[:1])
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    seconds = medians({name: step(sample) for name, sample in candidates.items()}, repeats)
    first = seconds["Normal.rsample"]
    return [[str(dtype)[6:], name, f"{1e3 * s:.2f}", f"{s / first:.2f}"] for name, s in seconds.items()]


def gaps(dimensions: int, count: int, data: int = 2_000) -> tuple[float, float]:
    """Independent and quasi-random."""
    q = Independent(Normal(torch.full((data, dimensions), dimensions**-0.5), 1.2, validate_args=False), 1)

    def log_joint(z):
        return Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1)

    with torch.no_grad():
        values = [iw.estimate(log_joint, p, num_samples=count).value for p in (q, iw.QuasiRandom(q))]
    return tuple((value.expm1() - value).mean().item() for value in values)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gate()
    repeats = options.repeats or 20
    rows = [row for dtype in (torch.float32, torch.float64) for row in draws(options.device, dtype, repeats)]
    print(table(["dtype", f"draws of {SHAPE}", "ms", "÷"], rows))
    start = time.perf_counter()
    found = [(d, k, *gaps(d, k)) for d, k in CASES]
    rows = [[d, k, f"{plain:.5f}", f"{even:.5f}", f"{even / plain:.2f}"] for d, k, plain, even in found]
    print(table(["d", "K", "independent", "quasi-random", "÷"], rows), f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
