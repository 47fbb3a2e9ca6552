"""A training run and a report that a seed settles, whatever else draws random numbers in the process."""

import sys

import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import DataLoader, TensorDataset

import iwbounds as iw


def train(data, seed, epochs):
    # Torch distributions draw from the global generator: it is seeded inside a fork, and left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

        def model(x):
            mean, log_scale = encoder(x).chunk(2, -1)

            def log_joint(z):
                return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(decoder(z), 0.5).log_prob(x).sum(-1)

            return log_joint, Independent(Normal(mean, log_scale.exp()), 1)

        # The order of the data has a generator of its own: another number of samples does not change it.
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(TensorDataset(data), batch_size=50, shuffle=True, generator=order)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)
        for _ in range(epochs):
            for (x,) in loader:
                optimizer.zero_grad()
                iw.accumulate(model, x, num_samples=8)
                optimizer.step()
    return model


def main(quick=False):
    data = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    reports = []
    for _ in range(2):
        torch.rand(3)  # something else draws in between
        model = train(data, seed=1, epochs=3 if quick else 50)
        before = torch.get_rng_state()
        reports.append(iw.evaluate(model, data, num_samples=100, seed=2, progress=False))
        assert torch.equal(before, torch.get_rng_state()), "evaluate leaves the generator alone"
    print(reports[0])
    assert torch.equal(reports[0].log_evidence, reports[1].log_evidence)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
