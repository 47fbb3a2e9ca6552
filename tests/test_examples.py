"""The examples, in tiny configurations: they run as commands, their tables are true, and a seed settles them."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "digits": ["--epochs", "3", "--hidden", "40", "--latent", "5", "--evaluation-samples", "300"],
    "sigmoid_belief_net": ["--epochs", "4", "--seeds", "2", "--units", "30", "10", "--evaluation-samples", "100"],
    "snr": ["--samples", "16", "64", "--replications", "2048"],
    "imputation": ["--epochs", "15", "--hidden", "60", "--train-samples", "10", "--imputation-samples", "300"],
}
SHORTER = {
    "digits": ["--epochs", "1", "--hidden", "10", "--latent", "2", "--evaluation-samples", "20"],
    "evaluate": ["--quick", "--epochs", "1", "--hidden", "10", "--latent", "2", "--samples", "50"],
    "sigmoid_belief_net": ["--epochs", "1", "--seeds", "1", "--units", "5", "3", "--evaluation-samples", "20"],
    "snr": ["--samples", "2", "4", "--replications", "64"],
    "imputation": [
        *("--epochs", "1", "--hidden", "10", "--latent", "2", "--train-samples", "2", "--imputation-samples", "50"),
    ],
}
pytest.importorskip("sklearn", reason="the examples read scikit-learn's digits: pip install 'iwbounds[examples]'")
pytest.importorskip("matplotlib", reason="the examples draw figures: pip install 'iwbounds[examples]'")
pytest.importorskip("tqdm", reason="the examples show progress: pip install 'iwbounds[examples]'")


@pytest.fixture
def load(monkeypatch):
    """Import an example by name, and leave torch's threads and random state as they were."""
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def run(load, capsys, tmp_path):
    """Run an example's main with arguments; the rows of its table, by the first column."""

    def rows(name: str, *arguments: str) -> dict[str, list[str]]:
        load(name).main([*arguments, "--out", str(tmp_path / "figure.png")])
        return table(capsys.readouterr().out)

    return rows


def table(printed: str) -> dict[str, list[str]]:
    """Cells of the rows between the rule and the next empty line, keyed by their first column."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("---"))
    body = lines[start + 1 : lines.index("", start)]
    return {first: rest for first, *rest in (re.split(r"\s{2,}", line) for line in body)}


def number(cell: str) -> float:
    """The first number of a cell such as ``23.5 ± 0.1`` or ``4 of 20``."""
    return float(cell.split()[0])


# As `python examples/name.py arguments` would, one after the other: most of a command's time goes into its imports.
COMMANDS = """
import json, runpy, sys
for script, arguments in json.loads(sys.argv[1]):
    print(f"=== {script}")
    sys.argv, sys.path[0] = [script, *arguments], script.rpartition("/")[0]
    runpy.run_path(script, run_name="__main__")
"""


def test_they_run_as_commands_from_any_folder_and_the_seed_settles_their_tables(run, tmp_path):
    scripts = {str(EXAMPLES / f"{name}.py"): name for name in SHORTER}
    calls = json.dumps([(script, [*SHORTER[name], "--seed", "1"]) for script, name in scripts.items()])
    command = [sys.executable, "-c", COMMANDS, calls]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    outputs = dict(part.split("\n", 1) for part in done.stdout.split("=== ")[1:])
    for script, name in scripts.items():
        figure = tmp_path / "out" / f"{name}.png"
        assert f"Figure: {figure.relative_to(tmp_path)}" in outputs[script]
        assert figure.read_bytes().startswith(b"\x89PNG"), name
        assert figure.stat().st_size < 300_000, name
        assert table(outputs[script]) == run(name, *SHORTER[name], "--seed", "1"), name
        assert table(outputs[script]) != run(name, *SHORTER[name], "--seed", "2"), name


def test_digits_more_samples_fit_better_than_one_and_all_better_than_none(run, load):
    rows = run("digits", *TINY["digits"])
    bound, nll, active, ess = ({name: number(row[i]) for name, row in rows.items()} for i in range(4))
    assert nll["IWAE, K = 50"] < nll["VAE"] - 0.5
    assert nll["DReG-IWAE, K = 50"] < nll["VAE"] - 0.5
    images = load("_common").digits()
    untrained, _ = load("_common").evaluate(load("digits").Autoencoder(images, 40, 5), images.test, 300)
    assert nll.pop("VAE") < untrained
    assert max(nll.values()) < untrained - 1
    assert all(-35 < value < -20 for value in bound.values())
    assert all(0 <= value <= 5 for value in active.values())
    assert all(1 <= value <= 300 for value in ess.values())


def test_evaluate_certifies_above_its_estimate_and_more_samples_do_no_harm(run):
    rows = run("evaluate", "--quick")
    few, many = (rows[name] for name in ("30 samples", "300 samples"))
    for nll, certified, ess, _ in (few, many):
        # log(100) / 450 nats of slack, and three decimals
        assert number(certified) - number(nll) == pytest.approx(0.0102, abs=0.0011)
        assert number(ess) > 1
    assert number(many[2]) > 3 * number(few[2])


def test_digits_reads_an_archive_in_the_layout_of_mnist(run, tmp_path):
    rng = np.random.default_rng(0)
    images = {
        key: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for key, n in (("train_images", 30), ("test_images", 9))
    }
    np.savez(tmp_path / "tiny.npz", **images)
    rows = run("digits", *SHORTER["digits"], "--data", str(tmp_path / "tiny.npz"), "--test-images", "5")
    # Uniform grey levels are fair coins on average: 784 log 2 = 543 nats, more for a decoder fitted to 30 images.
    assert all(540 < number(row[1]) < 600 for row in rows.values())


def test_test_images_are_binary_and_no_seed_changes_them(load):
    first = load("_common").digits()
    torch.manual_seed(5)
    again = load("_common").digits()
    assert torch.equal(first.test, again.test)
    assert set(first.test.unique().tolist()) == {0.0, 1.0}
    assert len(first.train) + len(first.test) == 1797


def test_training_batches_are_fresh_bernoulli_draws_of_the_grey_levels(load):
    images = load("_common").digits()
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.cat(list(images.batches(100, generator))) for _ in range(20)]
    assert not torch.equal(epochs[0].sort(0).values, epochs[1].sort(0).values)
    # 64 means of 20 · 1347 draws, each within 5 standard errors: false-fail rate below 4e-5; detects 0.016.
    errors = torch.cat(epochs).mean(0) - images.train.mean(0)
    assert errors.abs().max() < 5 * 0.5 / (20 * 1347) ** 0.5


def test_sigmoid_belief_net_vimco_and_ovis_beat_reinforce_beyond_seed_noise(run):
    rows = run("sigmoid_belief_net", *TINY["sigmoid_belief_net"])
    nll = {name: [float(part) for part in row[0].split("±")] for name, row in rows.items()}
    for ours in ("VIMCO", "OVIS (γ = 0)", "RWS (wake-φ)"):
        for theirs in ("REINFORCE", "REINFORCE, baseline"):
            assert nll[theirs][0] - nll[ours][0] > 2 * (nll[theirs][1] + nll[ours][1])


def test_imputation_under_the_weights_beats_the_mean_and_a_single_sample(run):
    rows = run("imputation", *TINY["imputation"])
    error, nats = ({name: number(row[i]) for name, row in rows.items()} for i in range(2))
    for other in ("mean of the pixel", "VAE, one sample"):
        assert error["MIWAE, weighted"] < error[other] - 0.005
        assert nats["MIWAE, weighted"] < nats[other] - 0.01


def test_snr_slopes_are_those_of_theory(run):
    for name, row in run("snr", *TINY["snr"]).items():
        *_, slope, theory = map(float, row)
        # Two values of K and 2048 replications leave ±0.1; K = 16 is short of the limit by 0.1 in a variance.
        assert slope == pytest.approx(theory, abs=0.3), name


def test_snr_estimators_of_the_proposal_share_one_mean(load):
    snr = load("snr")
    torch.manual_seed(0)
    problem = snr.Problem.draw(0.3, "cpu")
    means = {}
    for name, rule in snr.ESTIMATORS.items():
        gradients = problem.gradients(rule, 8, 8000)[1]
        means[name] = gradients.mean(0), gradients.var(0) / len(gradients)
    for name, (mean, variance) in means.items():
        # 20 dimensions × 3 estimators within 5 standard errors: false-fail rate 4e-5, were the seed not fixed.
        z = (mean - means["DReG"][0]) / (variance + means["DReG"][1]).sqrt()
        assert z.abs().max() < 5, name
    assert means["DReG"][0].norm() > 20 * means["DReG"][1].sum().sqrt()


def test_snr_moments_take_the_noise_of_the_mean_off_its_square(load):
    gradients = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    moments = load("snr").Moments.of(gradients)
    assert moments.variance == pytest.approx(2.0)
    assert moments.signal**2 == pytest.approx(4.0 - 2.0 / 2)


def test_snr_slope_of_a_power_law_is_its_exponent(load):
    counts = [16, 32, 64, 128]
    assert load("snr").slope(counts, [7 * count**-1.5 for count in counts]) == pytest.approx(-1.5, abs=1e-12)
