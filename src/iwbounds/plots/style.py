"""What the pictures share: matplotlib, loaded when a picture is drawn, colours, and axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["BLACK", "BLUE", "GREEN", "K_HAT", "ORANGE", "VERMILION", "axes_for", "plain"]

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in grey by their lightness.
BLUE, ORANGE, GREEN, VERMILION, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222"
K_HAT = r"$\hat{k}$"  # matplotlib's own fonts drop the combining hat of k̂


def axes_for(count: int, axes: Any, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    """The figure, and ``count`` axes side by side: new ones, or those given.

    Raises:
        ImportError: matplotlib is missing; the message says how to install it.
        ValueError: another number of axes is given.
    """
    try:
        from matplotlib import pyplot
    except ImportError as missing:
        raise ImportError("Pictures need matplotlib: pip install 'iwbounds[plots]'.") from missing
    if axes is None:
        figure, grid = pyplot.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
        return figure, list(grid[0])
    # One axis may come by itself; arrays and lists of them have no plot.
    given = [axes] if hasattr(axes, "plot") else list(axes)
    if len(given) != count:
        raise ValueError(f"expected {count} axes to draw on; got {len(given)}. None makes a figure of its own.")
    return given[0].figure, given


def plain(axis: Any, title: str, xlabel: str, ylabel: str) -> None:
    """Labels, a light grid, and no box."""
    axis.set_title(title, fontsize=11)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(True, alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
