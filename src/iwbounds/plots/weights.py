"""The weights of one datum: their histogram, and the tail that decides whether their mean is to be believed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from iwbounds.diagnostics import effective_sample_size, generalized_pareto, pareto_k, pareto_k_threshold, tail_size
from iwbounds.logspace.mean import log_mean_exp_with_weights, promoted
from iwbounds.plots.style import BLACK, BLUE, K_HAT, VERMILION, axes_for, plain

__all__ = ["plot_weights"]


def plot_weights(log_weights: Tensor, axes: Any = None) -> Any:
    """Histogram of the log-weights, and the survival function of the weights with the fitted Pareto tail.

    Args:
        log_weights: ``(K,)`` nats of one datum, K >= 25; −inf are counted and left out.
        axes: two matplotlib axes; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: not one datum, too few living weights, or NaN or +inf among them.
    """
    log_w = promoted(log_weights.detach()).double().cpu()
    if log_w.ndim != 1:
        raise ValueError(
            f"expected log-weights (K,) of one datum; got {tuple(log_w.shape)}. Pick one: log_weights[:, i]."
        )
    alive = log_w[~log_w.isneginf()]
    if len(alive) < 25 or not alive.isfinite().all():
        raise ValueError(f"expected at least 25 finite log-weights to draw; got {len(alive)} above −inf, NaN included.")
    figure, (left, right) = axes_for(2, axes, (10.5, 4.0))
    _histogram(left, log_w, alive)
    _tail(right, log_w)
    return figure


def _histogram(axis: Any, log_w: Tensor, alive: Tensor) -> None:
    evidence = log_mean_exp_with_weights(log_w)[0].item()
    axis.hist(alive.numpy(), bins=60, color=BLUE, alpha=0.65)
    axis.axvline(alive.mean().item(), color=BLACK, linestyle=":", label=f"their mean (ELBO) {alive.mean().item():.2f}")
    axis.axvline(evidence, color=VERMILION, linestyle="--", label=f"log mean weight (IWAE) {evidence:.2f}")
    dead = len(log_w) - len(alive)
    # With a zero weight the mean of the logs is −inf: what is drawn is that of the others.
    plain(axis, f"{len(log_w)} log-weights" + (f", {dead} of them −inf" if dead else ""), "log weight, nats", "samples")
    axis.margins(y=0.3)
    axis.legend(fontsize=9, frameon=False, loc="best")


def _tail(axis: Any, log_w: Tensor) -> None:
    count, size = len(log_w), tail_size(len(log_w))
    centred = log_w - log_mean_exp_with_weights(log_w)[0]
    # Ten times the tail: enough of the body to see where the straight line of a power law begins.
    top = centred.topk(min(count, 10 * size)).values.exp()
    top = top[top > 0]
    # The rank over K is the share of samples that are as large.
    survival = torch.arange(1, len(top) + 1) / count
    axis.loglog(top.numpy(), survival.numpy(), ".", color=BLUE, markersize=4, label="largest weights")
    shape = pareto_k(log_w).item()
    # The tail starts at the largest weight outside it, which a dead one cannot be.
    if math.isfinite(shape) and len(top) > size:
        axis.loglog(*_fitted(top, size, count), color=VERMILION, label=f"generalised Pareto, {K_HAT} = {shape:.2f}")
    trust = "trusted" if shape <= pareto_k_threshold(count) else "not trusted"
    ess = effective_sample_size(log_w).item()
    plain(
        axis,
        f"Tail: ESS {ess:.0f} of {count}; {trust} (threshold {pareto_k_threshold(count):.2f})",
        "weight / mean weight",
        "share of samples with a larger weight",
    )
    axis.legend(fontsize=9, frameon=False, loc="lower left")


def _fitted(top: Tensor, size: int, count: int) -> tuple[Any, Any]:
    """The fitted survival function from where the tail starts to twice the largest weight."""
    start, excess = top[size], (top[:size] - top[size]).flip(0)
    shape, scale = generalized_pareto(excess)
    # Squared, so that most points lie near the start, where the curve bends.
    y = torch.linspace(0, 1, 200, dtype=top.dtype).square() * 2 * excess[-1]
    # P(W > u) times the Pareto survival beyond u; for k < 0 that ends at −σ/k, and is 0 from there on.
    survival = size / count * (1 + shape * y / scale).clamp_min(0) ** (-1 / shape)
    return (start + y).numpy(), survival.numpy()
