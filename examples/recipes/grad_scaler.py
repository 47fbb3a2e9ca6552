"""float16 with a GradScaler, part by part of the batch: the loss is scaled, and each part weighed by its share of it.

``iw.accumulate`` runs its backwards itself and takes no scaler; bounds do not couple data, so the loop is short.
"""

import sys

import torch
from torch import nn
from torch.distributions import Independent, Normal

import iwbounds as iw


def pair(x, encoder, decoder):
    mean, log_scale = encoder(x).float().chunk(2, -1)

    def log_joint(z):
        return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(decoder(z).float(), 0.5).log_prob(x).sum(-1)

    return log_joint, Independent(Normal(mean, log_scale.exp()), 1)


def main(quick=False):
    device = "cuda" if torch.cuda.is_available() and not quick else "cpu"
    torch.manual_seed(0)
    x = (torch.randn(200, 2) @ torch.randn(2, 6) + 0.5 * torch.randn(200, 6)).to(device)
    encoder, decoder = nn.Linear(6, 4).to(device), nn.Linear(2, 6).to(device)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer, scaler = torch.optim.Adam(parameters, lr=0.02), torch.amp.GradScaler(device, init_scale=2.0**12)
    history = []
    for _ in range(60 if quick else 1000):
        optimizer.zero_grad()
        total = 0.0
        for part in x.split(64):
            with torch.autocast(device, dtype=torch.float16):
                value = iw.estimate(*pair(part, encoder, decoder), num_samples=8).value
            # The sum over the batch, not the mean of parts' means: the last part is smaller.
            scaler.scale(-value.sum() / len(x)).backward()
            total += value.sum().item() / len(x)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 10.0)
        scaler.step(optimizer)  # skipped where float16 overflowed
        scaler.update()
        history.append(total)
    print(f"bound per datum: {history[0]:.2f} at first, {history[-1]:.2f} in the end; scale {scaler.get_scale():g}")
    assert history[-1] > history[0] + 3


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
