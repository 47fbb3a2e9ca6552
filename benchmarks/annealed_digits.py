"""The test NLL of a VAE by importance sampling and by AIS on top of its encoder, and BDMC's gap on simulated digits.

python benchmarks/annealed_digits.py                    # a small VAE of scikit-learn's digits, trained on the spot

Simulated digits come with an exact draw of their posterior, so that AIS run backwards bounds log p(x) from above: the
gap between the two directions bounds what is missing on data of the model's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Bernoulli

import iwbounds as iw

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from _common import digits, fit
from digits import Autoencoder


def ais(model: Autoencoder, x: Tensor, steps: int) -> tuple[object, iw.AnnealedProposal]:
    """The log-joint of a batch, and an adapted chain from its encoder."""
    log_joint, encoder = model(x)
    return log_joint, iw.AnnealedProposal(encoder, iw.HMC(0.2, 3), steps).adapted(log_joint, num_samples=16)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    images = digits()
    model = Autoencoder(images, 60, 10)
    rule = {"epochs": options.epochs, "learning_rate": 3e-3, "seed": options.seed, "label": "IWAE, K = 5"}
    with torch.enable_grad():
        fit(model, images, iw.Reparameterized(), 5, **rule)

    x = images.test[: options.images]
    for count in (50, 5000):
        start = time.perf_counter()
        report = iw.evaluate(model, x, num_samples=count, progress=False, seed=options.seed)
        print(f"IWAE-{count}: NLL {report.nll:.3f}, ESS {report.ess.mean():.1f}, {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    annealed = iw.evaluate(
        lambda x: ais(model, x, options.steps), x, num_samples=options.chains, progress=False, seed=options.seed
    )
    paired = annealed.log_evidence - report.log_evidence
    print(
        f"AIS, {options.steps} steps, {options.chains} chains: NLL {annealed.nll:.3f}, ESS {annealed.ess.mean():.1f}, "
        f"{time.perf_counter() - start:.0f} s; below IWAE-5000 by {paired.mean():.4f} ± "
        f"{paired.std() / len(paired) ** 0.5:.4f}, most {paired.max():.3f}"
    )

    z = torch.randn(options.images, model.latent)
    simulated = Bernoulli(logits=model.decoder(z)).sample()
    log_joint, chain = ais(model, simulated, options.steps)
    lower = iw.estimate(log_joint, chain, num_samples=options.chains).value
    upper = iw.upper_bound(log_joint, chain, z, num_samples=0).value
    gap = upper - lower
    print(
        f"BDMC on {options.images} simulated digits: from {lower.mean():.3f} to {upper.mean():.3f} on average, gap "
        f"{gap.mean():.4f} ± {gap.std() / len(gap) ** 0.5:.4f} nats per datum"
    )


if __name__ == "__main__":
    main()
