"""A bound against the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Direction
from iwbounds.bounds.iwae import IWAE
from iwbounds.logspace.mean import promoted
from iwbounds.plots.style import BLACK, BLUE, GREEN, ORANGE, VERMILION, axes_for, plain

__all__ = ["plot_bound"]

_GROUPS = 500  # at most, for one mean
_FEWEST = 8


def plot_bound(
    log_weights: Tensor,
    bounds: Bound | Sequence[Bound] = IWAE(),
    truth: float | None = None,
    axes: Any = None,
) -> Any:
    """Each bound's mean against K, with a band of two standard errors, from one set of log-weights.

    For each K the samples are cut into groups of K, the bound is taken of every group and averaged over the data. The
    band is over the groups, so it says how well the curve is known for these data; it ends at the largest K of which
    there are eight groups, as a band from fewer would be a guess.

    Args:
        log_weights: ``(K, *batch)`` nats; independent along axis 0.
        bounds: one or several.
        truth: the log evidence (mean over the data) where it is known: a line.
        axes: one matplotlib axis; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: too few samples for a bound, or more than one axis.
    """
    # float64: at large K the differences between bounds are small beside their values.
    log_w = promoted(log_weights.detach()).double().cpu()
    figure, (axis,) = axes_for(1, axes, (6.5, 4.2))
    many = [bounds] if isinstance(bounds, Bound) else list(bounds)
    looks = zip((BLUE, VERMILION, GREEN, ORANGE), ("o", "s", "^", "D"), ("-", "--", "-.", ":"), strict=True)
    # From the fifth bound on the looks repeat; their names in the legend do not.
    for bound, (colour, marker, line) in zip(many, list(looks) * (1 + len(many) // 4), strict=False):
        counts, mean, error = _curve(log_w, bound)
        side = "not a bound" if bound.direction is Direction.NONE else bound.direction.value
        axis.plot(counts, mean, line, color=colour, marker=marker, markersize=4, label=f"{bound!r}, {side}")
        axis.fill_between(counts, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.2, linewidth=0)
    if truth is not None:
        axis.axhline(truth, color=BLACK, linestyle=":", label=f"log evidence {truth:.3f}")
    axis.set_xscale("log")
    plain(axis, "Bound against the number of samples", "samples K", "nats per datum")
    axis.legend(fontsize=9, frameon=False, loc="best")
    return figure


def _curve(log_w: Tensor, bound: Bound) -> tuple[Any, Any, Any]:
    """Numbers of samples, means, and standard errors."""
    counts = [n for n in _counts(len(log_w)) if n >= bound.min_samples]
    if not counts:
        raise ValueError(
            f"expected at least {_FEWEST * bound.min_samples} samples to draw {bound!r}; got {len(log_w)}."
        )
    means, errors = [], []
    for n in counts:
        groups = min(_GROUPS, len(log_w) // n)
        # Consecutive samples make a group; the group axis becomes part of the batch.
        values = bound(log_w[: n * groups].reshape(groups, n, *log_w.shape[1:]).transpose(0, 1))
        values = values.reshape(groups, -1).mean(1)
        means.append(values.mean())
        # Groups are disjoint, hence independent.
        errors.append(values.std() / groups**0.5)
    return torch.tensor(counts).numpy(), torch.stack(means).numpy(), torch.stack(errors).numpy()


def _counts(largest: int) -> list[int]:
    """1, 2, 4, …, as long as there are enough groups."""
    return [2**i for i in range((largest // _FEWEST).bit_length())]
