"""bfloat16 networks under autocast: log-densities are summed, and the bound computed, in float32."""

import sys

import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn.functional import softplus

import iwbounds as iw


def pair(x, encoder, decoder):
    mean, log_scale = encoder(x).chunk(2, -1)
    # A density that is a difference of large numbers is not for 8 bits: what the networks give is made float32.
    q = Independent(Normal(mean.float(), log_scale.float().exp()), 1)

    def log_joint(z):
        logits = decoder(z).float()
        return Normal(0.0, 1.0).log_prob(z).sum(-1) + (x * logits - softplus(logits)).sum(-1)

    return log_joint, q


def main(quick=False):
    device = "cuda" if torch.cuda.is_available() and not quick else "cpu"
    torch.manual_seed(0)
    x = (torch.rand(100, 64, device=device) < torch.rand(100, 1, device=device)).float()
    encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).to(device)
    decoder = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64)).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-3)
    history = []
    for _ in range(60 if quick else 1000):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            value = iw.estimate(*pair(x, encoder, decoder), num_samples=16).value
        (-value.mean()).backward()  # outside, as PyTorch advises: the backward runs in the types of the forward
        optimizer.step()
        history.append(value.mean().item())
    assert value.dtype is torch.float32
    print(f"bound per datum: {history[0]:.2f} at first, {history[-1]:.2f} in the end")
    assert history[-1] > history[0] + 3
    full = iw.evaluate(lambda x: pair(x, encoder, decoder), x, num_samples=100, progress=False, seed=0).nll
    with torch.autocast(device, dtype=torch.bfloat16):
        half = iw.evaluate(lambda x: pair(x, encoder, decoder), x, num_samples=100, progress=False, seed=0).nll
    print(f"NLL in float32 {full:.3f}, under autocast {half:.3f}")
    assert abs(full - half) < 0.1  # report the first: rounding is a bias that more samples do not lower


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
