"""The lab: its short form on real digits through the code that loads MNIST, and its lines held against the formulas."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import iwbounds as iw

EXAMPLES = Path(__file__).parents[1] / "examples"
pytest.importorskip("sklearn", reason="the lab's short form reads scikit-learn's digits")
pytest.importorskip("matplotlib", reason="the lab draws figures: pip install 'iwbounds[examples]'")
pytest.importorskip("tqdm", reason="the lab shows progress: pip install 'iwbounds[examples]'")


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield importlib.import_module
    torch.set_num_threads(threads)


def archive_of_digits(path: Path) -> Path:
    """Scikit-learn's digits in the layout of MNIST: (N, 28, 28) uint8, each pixel three wide, a border of two."""
    from sklearn.datasets import load_digits

    grey = (load_digits().images * 15.9).astype(np.uint8).repeat(3, 1).repeat(3, 2)
    images = np.pad(grey, ((0, 0), (2, 2), (2, 2)))
    np.savez(path, train_images=images[300:], test_images=images[:300])
    return path


@pytest.mark.slow
def test_short_form_on_an_archive_ends_with_iwae_ahead_of_vae(load, tmp_path, capsys):
    """The lab asserts its ending itself: bounds, NLL at one K, the pitfall, Jensen's gap and our own lines."""
    data = archive_of_digits(tmp_path / "digits.npz")
    sizes = ["--epochs", "4", "--hidden", "50", "--evaluation-samples", "50", "--gap-samples", "400"]
    load("lab").main(["--quick", "--data", str(data), "--out", str(tmp_path / "lab"), "--threads", "1", *sizes])
    printed = capsys.readouterr().out
    for name in ("1_autoencoder", "2_vae", "3_iwae", "4_jensen_gap"):
        figure = tmp_path / "lab" / f"{name}.png"
        assert f"Figure: {figure}" in printed
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert figure.stat().st_size < 300_000
    parts = [float(line.split()[0]) for line in printed.splitlines() if line.startswith(("  +", "  -"))]
    apart = float(printed.split("(K = 10) are ")[1].split()[0])
    assert sum(parts) == pytest.approx(apart, abs=0.02)


def test_the_ending_is_refused_where_the_iwae_is_no_better(load):
    lab = load("lab")
    good = {"VAE": [-100.0, -99.0, 98.0], "IWAE": [-103.0, -97.0, 96.0], "IWAE, DReG": [-103.0, -96.0, 95.0]}
    lab.explain(good, 10)
    for name, worse in (("IWAE", [-103.0, -97.0, 98.5]), ("IWAE, DReG", [-103.0, -100.5, 95.0])):
        with pytest.raises(AssertionError):
            lab.explain(good | {name: worse}, 10)


def test_jensen_gap_of_known_weights_is_as_predicted(load):
    """LOGN(0.25), one image: the variance of w is e^0.25 − 1, and the gap at K = 1 is 0.125 exactly."""
    generator = torch.Generator().manual_seed(0)
    log_w = 0.5 * torch.randn(200_000, 1, dtype=torch.float64, generator=generator) - 0.125
    counts, gaps, predicted = load("lab").jensen_gaps(log_w)
    # Standard error of the gap at K = 1: 0.5/√200 000 = 0.0011.
    assert gaps[0].item() == pytest.approx(0.125, abs=0.006)
    assert predicted[0].item() == pytest.approx((np.exp(0.25) - 1) / 2, rel=0.03)
    assert gaps[counts.index(100)].item() == pytest.approx(predicted[counts.index(100)].item(), rel=0.1)


def test_the_pitfall_is_one(load):
    lab = load("lab")
    log_w = torch.tensor([-300.0, -200.0])
    value, gradient = lab.value_and_gradient(iw.log_mean_exp, log_w)
    assert value.item() == pytest.approx(-200 - np.log(2))
    assert gradient.sum().item() == pytest.approx(1.0)
    assert lab.value_and_gradient(lab.naive, log_w)[1].isnan().all()


def test_without_data_and_torchvision_it_says_what_to_do(load, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(SystemExit, match=r"--data PATH.*pip install torchvision"):
        load("lab").main(["--out", str(tmp_path)])


def test_torchvision_is_asked_to_download_and_gives_the_images_of_an_archive(load, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    images = {True: rng.integers(0, 256, (7, 28, 28), np.uint8), False: rng.integers(0, 256, (5, 28, 28), np.uint8)}
    asked = []

    def fake(root, *, train, download):
        asked.append((root, train, download))
        return argparse.Namespace(data=torch.from_numpy(images[train]))

    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    package.datasets, datasets.MNIST = datasets, fake
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    np.savez(tmp_path / "mnist.npz", train_images=images[True], test_images=images[False])
    common = load("_common")
    ours, theirs = common.handwriting(tmp_path / "mnist.npz", 3), common.handwriting(None, 3)
    assert asked == [("data", True, True), ("data", False, True)]
    assert torch.equal(ours.train, theirs.train)
    assert torch.equal(ours.test, theirs.test)
    assert ours.train.shape == (7, 784)
    assert ours.test.shape == (3, 784)


def test_the_page_of_the_lab_runs_as_written_and_shows_what_exists():
    page = (EXAMPLES.parent / "docs" / "lab.md").read_text()
    namespace = {"__name__": "lab page"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/lab.md", "exec"), namespace)
    for name in ("lab.md", "papers.md"):
        text = (EXAMPLES.parent / "docs" / name).read_text()
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            assert target.startswith("http") or (EXAMPLES.parent / "docs" / target).exists(), (name, target)
