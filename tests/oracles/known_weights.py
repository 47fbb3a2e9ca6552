"""The two models of log-weights whose expected bounds are known: EXP and LOGN.

EXP: log w = log(-log z), z ~ U(0, 1), so w is standard exponential and log p(x) = 0:
    E IWAE_K = digamma(K) - log K, Var IWAE_K = trigamma(K).
LOGN(s²): log w ~ N(-s²/2, s²), log p(x) = 0; E IWAE_K by one-dimensional quadrature of Frullani's integral,
    E log mean w = ∫ (e^{-t} - φ(t/K)^K) dt/t, φ the Laplace transform of w.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def exponential_log_weights(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator).log().neg().log()


def exponential_iwae(count: int) -> tuple[float, float]:
    """Mean and variance of IWAE_K."""
    k = torch.tensor(float(count), dtype=torch.float64)
    return (torch.digamma(k) - k.log()).item(), torch.special.polygamma(1, k).item()


def lognormal_log_weights(variance: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    return math.sqrt(variance) * noise - variance / 2


def lognormal_iwae(variance: float, count: int, nodes: int = 150) -> float:
    """E IWAE_K: trapezoids in log t (spectrally accurate, as both ends decay) around an exact normal quadrature."""
    z, weight = np.polynomial.hermite_e.hermegauss(nodes)
    keep = weight > 0
    w = np.exp(math.sqrt(variance) * z[keep] - variance / 2)
    weight = weight[keep] / math.sqrt(2 * math.pi)
    log_t, step = np.linspace(-40.0, 12.0, 5201, retstep=True)
    t = np.exp(log_t)
    # 1 - φ is small for small t: expm1 keeps what φ itself would round away.
    log_phi = np.log1p(np.expm1(-np.outer(t / count, w)) @ weight)
    return float(step * np.sum(np.exp(-t) - np.exp(count * log_phi)))
