"""The examples of hierarchical proposals in tiny configurations: what their tables say is true."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
pytest.importorskip("sklearn", reason="the examples read scikit-learn's data: pip install 'iwbounds[examples]'")
pytest.importorskip("matplotlib", reason="the examples draw figures: pip install 'iwbounds[examples]'")
pytest.importorskip("tqdm", reason="the examples show progress: pip install 'iwbounds[examples]'")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example's main; the rows of its table by name, after a look at its figure."""
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()

    def rows(name: str, *arguments: str) -> dict[str, str]:
        figure = tmp_path / f"{name}.png"
        with torch.random.fork_rng(devices=[]):
            importlib.import_module(name).main([*arguments, "--out", str(figure)])
        printed = capsys.readouterr().out
        assert f"Figure: {figure}" in printed
        assert figure.read_bytes().startswith(b"\x89PNG")
        lines = printed.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("---"))
        body = lines[start + 1 : lines.index("", start)]
        return (
            {line[:31].strip(): line[31:] for line in body}
            if name == "laplace"
            else {line.split("  ")[0]: line for line in body}
        )

    yield rows
    torch.set_num_threads(threads)


def numbers(row: str) -> list[float]:
    """The estimates of a row, without their errors."""
    cells = [cell for cell in row.split("  ") if cell.strip()]
    return [float(cell.split("±")[0]) for cell in cells if cell.strip()[0] in "-0123456789" and cell.strip() != "-"]


def test_laplace_sivi_has_its_exact_gap_and_both_sides_tighten(run):
    """10.812 is exact at K = 0. Standard errors below 0.08; the steps between these K are above 0.5 for SIVI."""
    options = ["--samples", "2000", "--likelihood-steps", "150", "--bound-steps", "5", "--aux", "0", "4", "30"]
    rows = run("laplace", *options)
    sivi = numbers(rows["SIVI, upper"])
    assert sivi[0] == pytest.approx(10.812, abs=0.5)
    assert sivi == sorted(sivi, reverse=True)
    below = numbers(rows["SIVI, lower"])
    assert below == sorted(below)
    assert below[-1] < 0 < sivi[-1]
    assert numbers(rows["IWHVI, trained at K = 0, upper"])[0] < sivi[0] / 2


def test_logistic_regression_encloses_the_evidence_of_data_whose_posterior_is_nearly_gaussian(run, tmp_path):
    """Many observations of six coefficients: Laplace's approximation is within 0.1 nats of the evidence."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6))
    y = rng.random(400) < 1 / (1 + np.exp(-x @ np.linspace(-0.5, 0.5, 6)))
    np.savez(tmp_path / "tiny.npz", X_train=x, y_train=y)
    options = ["--steps", "100", "--chains", "50", "--repeats", "50", "--samples", "20"]
    row = run("logistic_regression", "--data", str(tmp_path / "tiny.npz"), *options)["semi-implicit"]
    elbo, lower, upper, ratio = numbers(row)
    model = importlib.import_module("logistic_regression").from_file(tmp_path / "tiny.npz", 10.0)
    mode, precision = model.laplace()
    evidence = model.log_joint(mode) + 0.5 * torch.logdet(2 * torch.pi * precision.inverse())
    assert elbo < lower < evidence + 0.1
    assert evidence - 0.1 < upper < lower + 0.3
    assert ratio == pytest.approx(1.0, abs=0.3)


def test_semi_implicit_digits_compares_two_posteriors_of_one_model(run):
    rows = run("semi_implicit_digits", "--seeds", "2", "--epochs", "3", "--evaluation-samples", "50", "--aux", "2")
    for seed in ("seed 0", "seed 1"):
        gaussian, semi_implicit, gain, *sizes = numbers(rows[seed])
        assert 20 < min(gaussian, semi_implicit) <= max(gaussian, semi_implicit) < 44  # 64 fair coins: 44.4 nats
        assert gain == pytest.approx(gaussian - semi_implicit, abs=2e-3)
        assert all(1 < size <= 50 for size in sizes)
