"""A diagnosis in two pictures: the bounds against K, and how clear each gradient is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from iwbounds.plots.style import BLACK, BLUE, GREEN, ORANGE, VERMILION, axes_for, plain

if TYPE_CHECKING:
    from iwbounds.evidence.diagnose import Diagnosis

__all__ = ["plot_diagnosis", "plot_snr"]

# Marker and line as well as colour: told apart in print, and by readers who see colours otherwise.
_LOOKS = ((BLUE, "o", "-"), (VERMILION, "s", "--"), (GREEN, "^", "-."), (ORANGE, "D", ":"))


def plot_diagnosis(diagnosis: Diagnosis, axes: Any = None) -> Any:
    """ELBO, IWAE and jackknife against K, and signal-to-noise ratios.

    Args:
        diagnosis: of :func:`iwbounds.diagnose`.
        axes: two matplotlib axes; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: not two axes.
    """
    figure, (left, right) = axes_for(2, axes, (10.5, 4.0))
    _bounds(left, diagnosis)
    plot_snr(diagnosis, right)
    return figure


def plot_snr(diagnosis: Diagnosis, axes: Any = None) -> Any:
    """Signal-to-noise ratio of the gradient against K: the proposal's under each estimator, and the model's.

    Args:
        diagnosis: of :func:`iwbounds.diagnose`; ratios of 0 or infinity are left out, and named in the legend.
        axes: one matplotlib axis; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: more than one axis.
    """
    figure, (axis,) = axes_for(1, axes, (6.5, 4.2))
    rows = [(f"proposal, {name}", row) for name, row in diagnosis.snr.items()]
    # Enough looks: diagnose tries three estimators at most.
    for (name, row), (colour, marker, line) in zip(rows, _LOOKS, strict=False):
        _ratio(axis, row, name, colour, marker, line)
    if diagnosis.model_snr:
        _ratio(axis, diagnosis.model_snr, "model", BLACK, "v", "-")
    plain(axis, "How clear the gradients are", "samples K", "signal / noise")
    axis.set_xscale("log")
    axis.set_yscale("log")
    if diagnosis.snr or diagnosis.model_snr:
        axis.legend(fontsize=9, frameon=False, loc="best")
    else:
        axis.text(0.5, 0.5, "no parameters that require grad", ha="center", transform=axis.transAxes)
    return figure


def _ratio(axis: Any, row: dict[int, float], name: str, colour: str, marker: str, line: str) -> None:
    # A ratio of 0 says that no signal rose above the noise of the repeats; a logarithmic axis has no place for it.
    shown = {k: ratio for k, ratio in row.items() if 0 < ratio < math.inf}
    label = name if len(shown) == len(row) else f"{name} ({len(row) - len(shown)} at 0 or infinity)"
    axis.plot(list(shown), list(shown.values()), line, color=colour, marker=marker, markersize=4, label=label)


def _bounds(axis: Any, diagnosis: Diagnosis) -> None:
    rows = diagnosis.rows
    counts: Sequence[int] = [row.num_samples for row in rows]
    axis.axhline(diagnosis.elbo, color=BLACK, linestyle=":", label="ELBO")
    # A single group of K tells no error: its point stands without a bar.
    iwae, errors = [row.iwae for row in rows], [0.0 if math.isnan(row.error) else 2 * row.error for row in rows]
    axis.errorbar(
        counts, iwae, errors, color=BLUE, marker="o", markersize=4, capsize=3, label="IWAE ± 2 standard errors"
    )
    jackknife = [row.jackknife for row in rows]
    axis.plot(counts, jackknife, "--", color=VERMILION, marker="s", markersize=4, label="jackknife (not a bound)")
    axis.set_xscale("log")
    plain(axis, "Bounds against the number of samples", "samples K", "nats per datum")
    axis.legend(fontsize=9, frameon=False, loc="best")
