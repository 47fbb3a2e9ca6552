"""torch.compile of a whole step: networks, bound and gradient estimator in one graph, forward and backward."""

import sys
import time

import torch
from torch import nn
from torch.distributions import Independent, Normal

import iwbounds as iw

encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)


def loss(x):
    mean, log_scale = encoder(x).chunk(2, -1)

    def log_joint(z):
        prior, likelihood = Normal(zero, one, validate_args=False), Normal(decoder(z), half, validate_args=False)
        return prior.log_prob(z).sum(-1) + likelihood.log_prob(x).sum(-1)

    # Tensors for numbers, and no validation: the compiler cannot trace a check that reads values.
    zero, one, half = x.new_zeros(()), x.new_ones(()), x.new_full((), 0.5)
    q = Independent(Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)
    return -iw.estimate(log_joint, q, num_samples=16).value.mean()


def gradients(step, x):
    torch.manual_seed(1)
    return torch.autograd.grad(step(x), [*encoder.parameters(), *decoder.parameters()])


def main(quick=False):
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    # aot_eager traces as inductor does, and generates no code: enough to see that there is one graph, and a right one.
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager" if quick else "inductor")
    for ours, plain in zip(gradients(compiled, x), gradients(loss, x), strict=True):
        # Inductor has a random generator of its own: compare numbers where the draws are the same.
        assert ours.shape == plain.shape
        assert not quick or torch.allclose(ours, plain, rtol=1e-4, atol=1e-5)
    for name, step in (("eager", loss), ("compiled", compiled)):
        start = time.perf_counter()
        for _ in range(3 if quick else 200):
            gradients(step, x)
        print(f"{name:<9}{1e3 * (time.perf_counter() - start) / (3 if quick else 200):.2f} ms a step")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
