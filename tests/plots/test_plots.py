"""The pictures show the numbers of the report, refuse what they cannot show, and ask for matplotlib by name."""

import math
import sys

import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw

pyplot = pytest.importorskip("matplotlib.pyplot", reason="pictures need matplotlib: pip install 'iwbounds[plots]'")

from iwbounds.diagnostics import generalized_pareto  # noqa: E402
from iwbounds.evidence import Diagnosis  # noqa: E402
from iwbounds.evidence.diagnose import Row  # noqa: E402
from iwbounds.plots import plot_bound, plot_report, plot_snr, plot_weights  # noqa: E402
from tests.oracles.known_weights import exponential_iwae, exponential_log_weights  # noqa: E402


@pytest.fixture(autouse=True)
def _closed():
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


def model(x):
    return lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x), Normal(x / 2, 0.6)


def report(model=model, **options):
    return iw.evaluate(model, torch.linspace(-3, 3, 60), seed=0, progress=False, **{"num_samples": 400} | options)


def texts(axis):
    legend = axis.get_legend()
    return [t.get_text() for t in [*axis.texts, *([] if legend is None else legend.get_texts()), axis.title]]


def test_a_report_is_drawn_with_every_datum_and_its_numbers():
    found = report()
    left, middle, right = found.plot().axes
    assert sum(patch.get_height() for patch in left.patches) == 60
    assert f"mean {found.nll:.3f} ± {found.standard_error:.3f}" in texts(left)
    assert f"certified ≤ {found.certified_nll:.3f} (99 %)" in texts(left)
    assert sum(len(points.get_offsets()) for points in middle.collections) == 60
    (threshold,) = middle.lines
    assert threshold.get_ydata()[0] == found.pareto_k_threshold
    assert [tick.get_text() for tick in right.get_yticklabels()] == [f"#{index}" for index, _ in found.worst(10)]
    assert [bar.get_width() for bar in right.patches] == pytest.approx([nll for _, nll in found.worst(10)])
    assert all("nats" in axis.get_xlabel() for axis in (left, right))


def test_what_is_not_certified_is_not_drawn_as_if_it_were():
    left = report(bound=iw.Jackknife(1)).plot().axes[0]
    assert "nothing certified" in texts(left)
    assert len([line for line in left.lines if len(line.get_xdata())]) == 1


def test_broken_data_are_counted_and_left_out():
    def broken(x):
        log_joint, q = model(x)
        return lambda z: log_joint(z).where(torch.arange(60) != 4, torch.nan), q

    left, middle, right = report(broken, num_samples=10).plot().axes
    assert sum(patch.get_height() for patch in left.patches) == 59
    assert "(1 not finite)" in left.get_title()
    assert "fewer than 25 samples" in texts(middle)[0]
    assert "nan" in right.texts[0].get_text()


def test_axes_may_be_given():
    figure, axes = pyplot.subplots(2, 3)
    assert plot_report(report(), axes[0]) is figure
    assert not axes[1, 0].has_data()
    with pytest.raises(ValueError, match="expected 3 axes to draw on; got 2"):
        plot_report(report(), axes[0, :2])


def test_the_fitted_tail_passes_through_a_pareto_sample():
    """w = U^(-0.6): the survival function is w^(-1/0.6). Of 20 000, the fit is within 25 % down to 1e-4."""
    u = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, right = plot_weights(-0.6 * u.log()).axes
    curve = right.lines[1]
    scale = 1 / (1 - 0.6)  # the mean weight, nearly: the sample's own mean has a heavy tail
    x, survival = torch.tensor(curve.get_xdata()), torch.tensor(curve.get_ydata())
    shown = survival > 1e-4
    ratio = survival[shown] / (x[shown] * scale) ** (-1 / 0.6)
    assert ((ratio > 0.75) & (ratio < 1.25)).all()
    excess = (u ** (-0.6)).sort().values[-300:] - (u ** (-0.6)).sort().values[-301]
    assert generalized_pareto(excess)[1] > 0


def test_dead_weights_are_counted_and_broken_ones_refused():
    log_w = torch.randn(200)
    log_w[:30] = -torch.inf
    left, _ = plot_weights(log_w).axes
    assert left.get_title() == "200 log-weights, 30 of them −inf"
    assert sum(patch.get_height() for patch in left.patches) == 170
    for wrong, message in (
        (torch.zeros(30, 2), "Pick one"),
        (torch.zeros(9), "at least 25"),
        (log_w * math.nan, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_weights(wrong)


def test_the_curve_of_a_bound_is_its_expectation_within_its_band():
    """EXP: E IWAE_K = digamma(K) − log K. Each of 9 points lies within 4 standard errors: false-fail rate 6e-4."""
    log_w = exponential_log_weights((4000, 10), torch.Generator().manual_seed(0))
    (axis,) = plot_bound(log_w, [iw.IWAE(), iw.Jackknife(1)], truth=0.0).axes
    counts, means = axis.lines[0].get_data()
    band = axis.collections[0].get_paths()[0].vertices
    for count, mean in zip(counts, means, strict=True):
        at = band[band[:, 0] == count, 1]
        assert abs(mean - exponential_iwae(int(count))[0]) < 2 * (at.max() - mean), count
    assert list(counts) == [2**i for i in range(9)]
    assert "Jackknife(order=1), not a bound" in texts(axis)
    with pytest.raises(ValueError, match="at least 16 samples"):
        plot_bound(log_w[:10], iw.Jackknife(1))


def test_a_missing_matplotlib_is_asked_for(monkeypatch):
    found = report()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'iwbounds\[plots\]'"):
        found.plot()


def test_a_diagnosis_shows_bounds_and_every_ratio():
    rows = tuple(Row(k, -1.0 - 1 / k, 0.1, math.nan if k == 1 else -1.0, k / 2, 0.3, 1 / k) for k in (1, 10, 100))
    snr = {"DReG()": {1: 0.5, 10: 1.5}, "VIMCO()": {10: 0.0}}
    found = Diagnosis(-2.0, rows, snr, 5, 0, {1: 2.0, 10: 6.0})
    left, right = found.plot().axes
    assert list(left.lines[1].get_ydata()) == [-2.0, -1.1, -1.01]
    assert [line.get_label() for line in right.lines] == [
        "proposal, DReG()",
        "proposal, VIMCO() (1 at 0 or infinity)",
        "model",
    ]
    assert list(right.lines[2].get_ydata()) == [2.0, 6.0]
    (axis,) = plot_snr(Diagnosis(-2.0, rows, {}, 5, 0)).axes
    assert "no parameters" in texts(axis)[0]
