"""Pictures of reports, weights and bounds, in nats and in colours that the colour-blind can tell apart (matplotlib)."""

from iwbounds.plots.bounds import plot_bound
from iwbounds.plots.diagnosis import plot_diagnosis, plot_snr
from iwbounds.plots.report import plot_report
from iwbounds.plots.sandwich import plot_sandwich
from iwbounds.plots.weights import plot_weights

__all__ = ["plot_bound", "plot_diagnosis", "plot_report", "plot_sandwich", "plot_snr", "plot_weights"]
