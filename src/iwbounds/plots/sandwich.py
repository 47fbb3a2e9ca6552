"""A sandwich: lower, upper and bridge estimate with their errors and certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iwbounds.plots.style import BLACK, BLUE, VERMILION, axes_for, plain

if TYPE_CHECKING:
    from iwbounds.evidence.sandwich import Sandwich

__all__ = ["plot_sandwich"]


def plot_sandwich(sandwich: Sandwich, axes: Any = None, truth: float | None = None) -> Any:
    """Each side with two standard errors, one column per datum; triangles point from a certificate to the truth.

    Args:
        sandwich: of :func:`iwbounds.sandwich`; a batch is drawn in its flattened order.
        axes: one matplotlib axis; None makes a figure.
        truth: log p(x) where it is known and the same for all: a line.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: more than one axis.
    """
    figure, (axis,) = axes_for(1, axes, (6.5, 4.8))
    # Set apart sideways: the bars of one datum would cover each other.
    looks = (("lower", BLUE, "^", -0.12), ("bridge", BLACK, "D", 0.0), ("upper", VERMILION, "v", 0.12))
    for name, colour, certified, offset in looks:
        side = getattr(sandwich, name)
        columns = [index + offset for index in range(side.value.numel())]
        values = side.value.flatten().numpy(force=True)
        # An unknown error has no bar, rather than an infinite one.
        errors = 2 * side.standard_error.nan_to_num(0.0).flatten().numpy(force=True)
        label = f"{name} ± 2 standard errors" + ("" if name != "bridge" else " (not a bound)")
        axis.errorbar(columns, values, errors, fmt="o", color=colour, capsize=4, label=label)
        if side.certificate is not None:
            ends = side.certificate.flatten().numpy(force=True)
            label = f"{name}, certified ({100 * sandwich.confidence:g} %)"
            axis.plot(columns, ends, certified, color=colour, markerfacecolor="none", markersize=9, label=label)
    if truth is not None:
        axis.axhline(truth, color=BLACK, linestyle=":", label=f"log evidence {truth:.3f}")
    count = sandwich.lower.value.numel()
    plain(axis, "Log evidence from both sides", "datum" if count > 1 else "", "nats")
    axis.set_xticks(range(count) if 1 < count <= 20 else [])
    axis.set_xlim(-0.6, count - 0.4)
    # Below the axis: anywhere inside it may cover a certificate.
    axis.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure
