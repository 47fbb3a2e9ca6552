"""What the fused densities save: a training step of iw.estimate with them against torch.distributions.

python benchmarks/densities.py                 # 784-200-200-50, batch 100, K = 50, DReG
python benchmarks/densities.py --num-samples 5

Times are paired: the variants take turns, and the ratio's median over the turns is reported. Peak memory is that of a
fresh process, above what it holds before the first step; it is measured with the allocator as it comes, since
MALLOC_MMAP_MAX_=0 (set it for the times) keeps freed memory.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
from common import VAE, Fused, arguments, binary_images, gate, step_of, table
from torch.distributions import Bernoulli, Independent, Normal

import iwbounds as iw
from iwbounds.densities import bernoulli_logits


class BernoulliOnly(VAE):
    """torch.distributions but for the likelihood."""

    def log_joint(self, x, z):
        return Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1) + bernoulli_logits(self.decoder(z), x)


class Validated(VAE):
    """torch.distributions as it comes, with its checks of values on."""

    def forward(self, x):
        mean, log_scale = self.encoder(x).chunk(2, -1)
        return lambda z: self.log_joint(x, z), Independent(Normal(mean, log_scale.exp()), 1)

    def log_joint(self, x, z):
        prior, likelihood = Normal(torch.zeros(()), torch.ones(())), Bernoulli(logits=self.decoder(z))
        return prior.log_prob(z).sum(-1) + likelihood.log_prob(x).sum(-1)


VARIANTS = {
    "torch.distributions": VAE,
    "the same, validated": Validated,
    "fused Bernoulli": BernoulliOnly,
    "fused": Fused,
}


def variant_step(variant, batch, num_samples):
    """The variant's model, the same for all, and a step that leaves its gradient in ``.grad``."""
    torch.manual_seed(0)
    model, x = VARIANTS[variant](), binary_images(batch)

    def loss_of(x):
        return -iw.estimate(*model(x), gradient=iw.DReG(), num_samples=num_samples).value.mean()

    return model, partial(step_of(model, loss_of), x)


def paired_ratios(steps, repeats):
    """Median seconds of each step, and the median over the turns of its ratio to the first."""
    times = {name: [] for name in steps}
    for turn in range(repeats + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    ratios = {n: statistics.median(t / b for t, b in zip(ts, first, strict=True)) for n, ts in times.items()}
    return {n: statistics.median(ts) for n, ts in times.items()}, ratios


def peak_megabytes(variant, options):
    """Peak memory of three steps in a fresh process, above its memory before them."""
    command = [sys.executable, __file__, "--memory-of", variant, "--num-samples", str(options.num_samples)]
    command += ["--threads", str(options.threads)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    return float(done.stdout)


def high_water_megabytes():
    """The process's own peak (getrusage's would include its parent's before the exec)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def print_memory(variant, num_samples):
    """What the fresh process does: one small step to load every library, then the ones that count."""
    variant_step(variant, 100, 1)[1]()
    before = high_water_megabytes()
    _, step = variant_step(variant, 100, num_samples)
    for _ in range(3):
        step()
    print(high_water_megabytes() - before)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--num-samples", type=int, default=50)
    parser.add_argument("--memory-of", choices=VARIANTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_memory(options.memory_of, options.num_samples)
        return
    models = {name: variant_step(name, 100, options.num_samples) for name in VARIANTS}
    steps = {name: step for name, (_, step) in models.items()}
    check_gradients(models)
    seconds, ratios = paired_ratios(steps, options.repeats or 40)
    memory = {name: peak_megabytes(name, options) for name in VARIANTS}
    base = memory["torch.distributions"]
    rows = [
        [name, f"{1e3 * seconds[name]:.1f}", f"{ratios[name]:.3f}", f"{memory[name]:.0f}", f"{memory[name] / base:.2f}"]
        for name in VARIANTS
    ]
    print(table(["densities", "ms per step", "time ÷", "peak MB", "memory ÷"], rows))


def check_gradients(models):
    """Refuse to time variants whose gradients differ: all of them draw the same noise from the same seed."""
    reference_model, reference = models["torch.distributions"]
    for name, (model, step) in models.items():

        def copied(model=model, step=step):
            step()
            for p, g in zip(reference_model.parameters(), model.parameters(), strict=True):
                p.grad = g.grad.clone()

        gate(reference_model, reference, {name: copied}, tolerance=1e-4)


if __name__ == "__main__":
    main()
