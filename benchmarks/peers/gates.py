"""What the sides must agree on before any of them is timed: value and gradient, per draw or in expectation."""

from __future__ import annotations

import math

import torch
from common import VAE
from peers.sides import Side, hand_written
from torch import Tensor

__all__ = ["check_expectation", "check_same_noise"]

LIMIT = 5.0
"""Standard errors that a mean may be off; a true side exceeds it once in 1.7 million tests, of which each makes 12."""


def gradient(model: VAE) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def check_same_noise(
    model: VAE, x: Tensor, num_samples: int, sides: dict[str, Side], *, batch_first: bool = False
) -> None:
    """Refuse a side whose value or gradient, from the same noise, is not the hand-written one's.

    ``batch_first``: for pythae, which draws (batch, K, latent), averages over the batch and gives another value.
    """
    lead = (len(x), num_samples) if batch_first else (num_samples, len(x))
    torch.manual_seed(0)
    noise = torch.randn(*lead, model.latent)
    value = hand_written(model, num_samples, noise.transpose(0, 1) if batch_first else noise)(x)
    expected = torch.cat([g.flatten() for g in gradient(model)])
    for name, side in sides.items():
        torch.manual_seed(0)
        found_value = side(x)
        found = torch.cat([g.flatten() for g in gradient(model)]) * (len(x) if batch_first else 1)
        error = ((found - expected).norm() / expected.norm()).item()
        if not error < 1e-4:
            raise SystemExit(f"gate: {name} differs from the hand-written gradient by {error:.1e} of its norm")
        if not batch_first and not math.isclose(found_value, value, rel_tol=1e-5):
            raise SystemExit(f"gate: {name} gives the value {found_value}, the hand-written side {value}")


def check_expectation(
    model: VAE, x: Tensor, num_samples: int, sides: dict[str, Side], *, draws: int = 300
) -> dict[str, tuple[float, float]]:
    """Refuse a side whose mean gradient is off, in any parameter, along the mean of the hand-written one.

    Each draw is paired with a hand-written one of the same seed. By side: the largest of the z-scores, and the largest
    standard error as a share of the mean, which says what bias could be seen.
    """
    reference = hand_written(model, num_samples)
    expected = [torch.stack(draw).mean(0) for draw in zip(*_draws(model, x, reference, range(1000, 1100)), strict=True)]
    base = _along(expected, _draws(model, x, reference, range(draws)))
    size = torch.stack([e.norm() for e in expected])
    worst = {}
    for name, side in sides.items():
        differences = _along(expected, _draws(model, x, side, range(draws))) - base
        error = differences.std(0) / math.sqrt(draws)
        z = (differences.mean(0) / error).abs().max().item()
        worst[name] = z, (error / size).max().item()
        if not z < LIMIT:
            raise SystemExit(f"gate: the mean gradient of {name} is {z:.1f} standard errors from the hand-written one")
    return worst


def _draws(model: VAE, x: Tensor, side: Side, seeds: range) -> list[list[Tensor]]:
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        side(x)
        found.append(gradient(model))
    return found


def _along(directions: list[Tensor], draws: list[list[Tensor]]) -> Tensor:
    """Each draw's component along each parameter's direction: (draws, parameters)."""
    return torch.tensor(
        [[((g * d).sum() / d.norm()).item() for g, d in zip(draw, directions, strict=True)] for draw in draws]
    )
