"""VIMCO's and OVIS's coefficients against an IWAE reduction (value and gradient): time and memory, at K = 500.

python benchmarks/vimco.py
"""

from __future__ import annotations

import torch
from common import arguments, medians, table

import iwbounds as iw


def reduction(log_w: torch.Tensor) -> None:
    """IWAE, forward and backward, by torch's own logsumexp."""
    leaf = log_w.detach().requires_grad_()
    leaf.logsumexp(0).sum().backward()


def gate(log_w: torch.Tensor) -> None:
    """VIMCO of the first data against one evaluation for each sample left out, in float64."""
    few = log_w[:, :3].double()
    left = torch.stack([torch.cat([few[:k], few[k + 1 :]]).logsumexp(0) for k in range(len(few))])
    value = few.logsumexp(0) - torch.log(torch.tensor(len(few), dtype=torch.float64))
    expected = value - left + torch.log(torch.tensor(len(few) - 1.0, dtype=torch.float64)) - few.softmax(0)
    found = iw.VIMCO().coefficients(iw.IWAE(), log_w[:, :3]).score
    if not torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6):
        raise SystemExit("gate: VIMCO's coefficients differ from brute force")


def most_live(step) -> float:
    """Peak of the bytes that a step allocates, in MB."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / 1e6


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--batch", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    log_w = 3 * torch.randn(options.samples, options.batch, generator=torch.Generator().manual_seed(0))
    gate(log_w)
    steps = {"IWAE reduction": lambda: reduction(log_w)} | {
        repr(gradient): lambda gradient=gradient: gradient.coefficients(iw.IWAE(), log_w)
        for gradient in (iw.VIMCO(), iw.VIMCO(geometric=True), iw.OVIS(0.0), iw.OVIS(1.0))
    }
    seconds = medians(steps, options.repeats or 30)
    size = log_w.nbytes / 1e6
    rows = [
        [name, f"{1e3 * t:.2f}", f"{t / seconds['IWAE reduction']:.2f}", f"{most_live(steps[name]) / size:.1f}"]
        for name, t in seconds.items()
    ]
    print(table(["coefficients", "ms", "÷ reduction", "peak ÷ log-weights"], rows))


if __name__ == "__main__":
    main()
