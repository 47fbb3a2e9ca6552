"""Every recipe runs in its short form, and ends as it says: each asserts its own ending. None has 60 lines."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

RECIPES = sorted((Path(__file__).parents[1] / "examples" / "recipes").glob("*.py"))
NEEDS = {
    "accelerate_training": ["accelerate"],
    "beta_vae": ["sklearn"],
    "codebook": ["sklearn"],
    "lightning_conv_vae": ["lightning", "sklearn"],
    "pyro_eight_schools": ["pyro"],
    "unbiased_training": ["sklearn"],
    "zuko_posterior": ["zuko"],
}


@pytest.fixture
def _as_it_was():
    """Dynamo, when first used, switches the validation of distributions off; recipes seed the global generator."""
    before, threads = torch.distributions.Distribution._validate_args, torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.distributions.Distribution.set_default_validate_args(before)
    torch.set_num_threads(threads)
    if "pyro" in sys.modules:
        sys.modules["pyro"].clear_param_store()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.filterwarnings("ignore")  # other libraries' own: of deprecations inside them, of missing accelerators
def test_the_short_form_ends_as_it_says(path, capsys):
    for library in NEEDS.get(path.stem, []):
        pytest.importorskip(
            library, reason=f"the recipe shows {library}: pip install 'iwbounds[examples,recipes,pyro]'"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(quick=True)
    assert capsys.readouterr().out, "a recipe shows what it found"


def test_recipes_fit_on_a_screen_or_two():
    assert len(RECIPES) >= 16
    assert {path.stem: n for path in RECIPES if (n := len(path.read_text().splitlines())) >= 60} == {}
    assert set(NEEDS) <= {path.stem for path in RECIPES}
