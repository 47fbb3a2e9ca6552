"""What the benchmarks share: a VAE, hand-written steps, and medians of interleaved timings.

Ratios are taken within one run, between steps that are timed in turn. A benchmark refuses to time what does not first
give the same gradient. Set ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`` in the environment for steady
figures: the default allocator gives large buffers back after every step and faults them in again.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.profiler import ProfilerActivity, profile

import iwbounds as iw
from iwbounds.densities import bernoulli_logits, diagonal_gaussian

Step = Callable[[], object]


class VAE(nn.Module):
    """Encoder and decoder of two tanh layers: 784-200-200-50 by default."""

    def __init__(self, pixels: int = 784, hidden: int = 200, latent: int = 50) -> None:
        super().__init__()
        self.latent = latent

        def layers(sizes: Sequence[int]) -> list[nn.Module]:
            return [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]

        self.encoder = nn.Sequential(*layers([pixels, hidden, hidden]), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(*layers([latent, hidden, hidden]), nn.Linear(hidden, pixels))

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Independent]:
        """The log-joint and the proposal of a batch."""
        mean, log_scale = self.encoder(x).chunk(2, -1)
        q = Independent(Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)
        return lambda z: self.log_joint(x, z), q

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        prior = Normal(z.new_zeros(()), z.new_ones(()), validate_args=False)
        likelihood = Bernoulli(logits=self.decoder(z), validate_args=False)
        return prior.log_prob(z).sum(-1) + likelihood.log_prob(x).sum(-1)


class Fused(VAE):
    """The same model with the fused densities of the library."""

    def forward(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], iw.Proposal]:
        mean, log_scale = self.encoder(x).chunk(2, -1)
        scale = log_scale.exp()

        def sample(shape: tuple[int]) -> Tensor:
            return mean + scale * torch.randn(*shape, *mean.shape)

        return lambda z: self.log_joint(x, z), iw.Proposal(sample, lambda z: diagonal_gaussian(z, mean, log_scale))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return diagonal_gaussian(z, 0.0, 0.0) + bernoulli_logits(self.decoder(z), x)


def binary_images(count: int, pixels: int = 784, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, pixels, generator=generator) < 0.3).float()


def hand_written_iwae(model: VAE, x: Tensor, num_samples: int) -> Tensor:
    """The shortest PyTorch that trains an IWAE, with the same densities as the library is given."""
    log_joint, q = model(x)
    z = q.rsample((num_samples,))
    return -(log_joint(z) - q.log_prob(z)).logsumexp(0).mean()


def step_of(
    model: nn.Module, loss_of: Callable[[Tensor], Tensor], compiled: bool = False
) -> Callable[[Tensor], Tensor]:
    """From data to their loss, leaving a fresh gradient in ``.grad``; perhaps under torch.compile."""
    chosen = torch.compile(loss_of, dynamic=False, fullgraph=True) if compiled else loss_of

    def step(x: Tensor) -> Tensor:
        model.zero_grad()
        loss = chosen(x)
        loss.backward()
        return loss

    return step


def gradients(model: nn.Module, step: Callable[[], object], seed: int = 0) -> list[Tensor]:
    """The gradient that ``step`` leaves, from a fixed seed."""
    model.zero_grad()
    torch.manual_seed(seed)
    step()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def gate(model: nn.Module, reference: Step, candidates: dict[str, Step], tolerance: float = 1e-4) -> None:
    """Refuse to go on unless every candidate gives the reference's gradient, relative to its norm.

    The default limit is that of a hand-written float32 logsumexp, whose weights are off by 1e-7 |log w|.
    """
    expected = gradients(model, reference)
    size = sum(g.square().sum() for g in expected).sqrt()
    for name, candidate in candidates.items():
        found = gradients(model, candidate)
        error = sum((a - b).square().sum() for a, b in zip(found, expected, strict=True)).sqrt() / size
        if not error < tolerance:
            raise SystemExit(f"gate: {name} differs from the reference gradient by {error:.1e} (limit {tolerance:.0e})")


def medians(steps: dict[str, Step], repeats: int, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of each step, the steps timed in turn so that a drifting machine slows all alike."""
    for step in steps.values():
        for _ in range(warm_up):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_of_live_tensors(step: Step) -> float:
    """MB that tensors hold at most during ``step``, above what they held before it, whatever the allocator keeps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes)) / 1e6


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files: no display is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain columns."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=None, help="timed runs of each step (default: by size)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser
