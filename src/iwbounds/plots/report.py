"""An evidence report in three pictures: how the data are explained, whether to believe it, and the worst of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iwbounds.plots.style import BLACK, BLUE, K_HAT, VERMILION, axes_for, plain

if TYPE_CHECKING:
    from iwbounds.evidence.report import EvidenceReport

__all__ = ["plot_report"]

_WORST = 10


def plot_report(report: EvidenceReport, axes: Any = None) -> Any:
    """Per-datum NLL with its mean and certificate; ESS against k̂; the worst data.

    Args:
        report: of :func:`iwbounds.evaluate`.
        axes: three matplotlib axes; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: not three axes.
    """
    figure, (left, middle, right) = axes_for(3, axes, (13.5, 4.0))
    _nll(left, report)
    _trust(middle, report)
    _worst(right, report)
    return figure


def _nll(axis: Any, report: EvidenceReport) -> None:
    nll = -report.log_evidence
    # A histogram has no place for infinity; the title says how many are not shown.
    shown = nll[nll.isfinite()]
    axis.hist(shown.numpy(), bins=min(40, max(5, len(shown) // 10)), color=BLUE, alpha=0.65)
    hidden = report.num_data - len(shown)
    title = "Negative log evidence of each datum" + (f" ({hidden} not finite)" if hidden else "")
    if not hidden:
        label = f"mean {report.nll:.3f} ± {report.standard_error:.3f}"
        axis.axvline(report.nll, color=BLACK, label=label)
    # +inf, of a datum without a weight above zero, is a certificate that says nothing.
    if report.certified_nll is not None and report.certified_nll < float("inf"):
        label = f"certified ≤ {report.certified_nll:.3f} ({100 * report.confidence:g} %)"
        axis.axvline(report.certified_nll, color=VERMILION, linestyle="--", label=label)
    else:
        axis.plot([], [], " ", label="nothing certified")
    plain(axis, title, "nats", "data")
    # The legend must not hide the tail on the right, where the worst data are.
    axis.margins(y=0.35)
    axis.legend(fontsize=9, frameon=False, loc="upper right")


def _trust(axis: Any, report: EvidenceReport) -> None:
    shape, ess = report.pareto_k, report.ess
    plain(axis, "Can it be believed?", "effective sample size", f"Pareto {K_HAT} of the largest weights")
    # −inf is the k̂ of weights that are all equal: there is no tail, and nothing to distrust.
    known = shape.isfinite() & (ess > 0)
    if not known.any():
        axis.text(
            0.5, 0.5, f"{K_HAT} unknown: fewer than 25 samples,\nor no tail", ha="center", transform=axis.transAxes
        )
        return
    high = known & (shape > report.pareto_k_threshold)
    for rows, colour, marker, label in (
        (known & ~high, BLUE, "o", "trusted"),
        (high, VERMILION, "^", "not trusted"),
    ):
        text = f"{label}: {int(rows.sum())} data"
        axis.scatter(ess[rows].numpy(), shape[rows].numpy(), s=14, color=colour, marker=marker, alpha=0.6, label=text)
    label = f"threshold {report.pareto_k_threshold:.2f}"
    axis.axhline(report.pareto_k_threshold, color=BLACK, linestyle=":", label=label)
    axis.set_xscale("log")
    # The whole range of ESS, so that reports of the same K can be compared by eye.
    axis.set_xlim(1, report.weights.count)
    axis.legend(fontsize=9, frameon=False)


def _worst(axis: Any, report: EvidenceReport) -> None:
    worst = report.worst(_WORST)
    shape = dict(zip(report.index.tolist(), report.pareto_k.tolist(), strict=True))
    for row, (index, nll) in enumerate(worst):
        high = shape[index] > report.pareto_k_threshold
        # Hatched too: colour alone would be lost in print.
        colour, hatch = (VERMILION, "///") if high else (BLUE, "")
        if abs(nll) < float("inf"):
            axis.barh(row, nll, color=colour, alpha=0.65, hatch=hatch, edgecolor="white")
        note = f" {nll:.1f}" + (f" ({K_HAT} too high)" if high else "")
        # Without a bar, for an infinite NLL, the number stands at the axis.
        axis.text(0 if not abs(nll) < float("inf") else max(nll, 0.0), row, note, va="center", fontsize=9)
    axis.set_yticks(range(len(worst)), [f"#{index}" for index, _ in worst])
    axis.invert_yaxis()
    axis.margins(x=0.3)
    plain(axis, "The worst data", "negative log evidence, nats", "index")
