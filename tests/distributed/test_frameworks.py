"""What users run on many machines: torchrun, FSDP2, Lightning."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import fully_sharded
from tests.distributed.processes import results

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_fully_sharded_parameters_get_the_gradient_of_one_process(tmp_path):
    assert results(2, fully_sharded.gradients, tmp_path) == [4, 4]


@pytest.mark.slow
def test_the_example_runs_under_torchrun(tmp_path):
    pytest.importorskip("sklearn", reason="the example reads scikit-learn's digits: pip install 'iwbounds[examples]'")
    pytest.importorskip("matplotlib", reason="the example draws a figure: pip install 'iwbounds[examples]'")
    pytest.importorskip("tqdm", reason="the example shows progress: pip install 'iwbounds[examples]'")
    short = ["--epochs", "1", "--hidden", "10", "--latent", "2", "--evaluation-samples", "20"]
    command = [*TORCHRUN, str(ROOT / "examples" / "distributed.py"), *short]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "\n2 processes." in done.stdout
    for way in ("samples shared", "data shared"):
        assert done.stdout.count(f"\n{way}") == 1, "one process prints"
    assert (tmp_path / "out" / "distributed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_lightning_steps_are_those_of_one_process():
    pytest.importorskip("lightning", reason="pip install lightning")
    command = [*TORCHRUN, "-m", "tests.distributed.lightning_steps"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
