"""The example of chains in a tiny configuration: what its table says is true."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
pytest.importorskip("sklearn", reason="the example reads scikit-learn's data: pip install 'iwbounds[examples]'")
pytest.importorskip("matplotlib", reason="the example draws a figure: pip install 'iwbounds[examples]'")
pytest.importorskip("tqdm", reason="the example shows progress: pip install 'iwbounds[examples]'")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    with torch.random.fork_rng(devices=[]):
        yield importlib.import_module("annealed")


def gaps(printed: str) -> dict[str, tuple[float, float]]:
    """ELBO and IWAE gaps by chain."""
    rows = re.findall(r"^(\w+, \d+ steps)\s+(-?[\d.]+) ± [\d.]+\s+(-?[\d.]+)", printed, re.MULTILINE)
    return {name: (float(elbo), float(iwae)) for name, elbo, iwae in rows}


def test_chains_are_tighter_than_their_start_and_under_iwae_tighter_still(example, tmp_path, capsys):
    example.main(["--steps", "8", "--iterations", "25", "--chains", "8", "--out", str(tmp_path / "figure.png")])
    printed = capsys.readouterr().out
    start = -float(re.search(r"(-[\d.]+) nats from it", printed)[1])
    found = gaps(printed)
    assert len(found) == 5
    for elbo, iwae in found.values():
        assert -0.05 < iwae < elbo < start
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_archive_of_a_classification_is_standardised_with_an_intercept(example, tmp_path):
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.savez(tmp_path / "tiny.npz", own_X=x, own_y=np.array([0.0, 1.0]))
    target = example.classification(tmp_path / "tiny.npz", "own")
    assert target.dims == 3
    z = torch.tensor([[0.0, 2.0, 7.0]])  # the constant column has become zeros: its coefficient costs the prior alone
    logits = torch.tensor([-2.0, 2.0])
    expected = (
        torch.distributions.Normal(0.0, 1.0).log_prob(z).sum() + torch.nn.functional.logsigmoid(logits.abs()).sum()
    )
    assert target.log_joint(z).item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_longer_chain_goes_on_from_a_trained_one_with_its_start_and_half_its_steps(example):
    torch.manual_seed(0)
    posterior = example.normal(torch.ones(3), 2 * torch.ones(3))
    target = example.Target("normal", 3, posterior.log_prob, 0.0)
    shorter = example.trained(example.Chain("ULA", 3, 4), target, 20, 8, 0.02)
    longer = example.Chain("ULA", 3, 16)
    longer.load_state_dict(shorter.state_dict())
    before, after = shorter.proposal(), longer.proposal()
    # The start moves towards the posterior, from N(0, 1).
    assert before.initial.mean.gt(0).all()
    assert before.initial.stddev.gt(1).all()
    torch.testing.assert_close(after.initial.mean, before.initial.mean)
    torch.testing.assert_close(after.initial.stddev, before.initial.stddev)
    torch.testing.assert_close(after.transition.step_size(0) * 2, before.transition.step_size(0), rtol=0.05, atol=0.0)
