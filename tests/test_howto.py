"""The page on adapters runs section by section, where its library is; the programs that how-to pages name are there."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "howto").glob("*.md"))
NEEDS = {"Pyro": "pyro", "JAX: NumPyro, blackjax, PyMC": "jax", "zuko": "zuko"}
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (DOCS / "adapters.md").read_text(), re.DOTALL | re.MULTILINE)
)


def run(name, text):
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert found, f"{name} shows no code"
    namespace = {"__name__": "page"}
    for number, block in enumerate(found):
        exec(compile(block, f"{name} block {number}", "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_on_an_adapter_runs(section):
    if section in NEEDS:
        pytest.importorskip(NEEDS[section])
    with torch.random.fork_rng(devices=[]):
        run(section, SECTIONS[section])
    if section == "Pyro":
        pytest.importorskip("pyro").clear_param_store()


@pytest.mark.parametrize("page", [*PAGES, DOCS / "adapters.md"], ids=lambda page: page.stem)
def test_named_programs_exist(page):
    targets = [DOCS.parent / name for name in re.findall(r"`(examples/[\w/]+\.py)`", page.read_text())]
    assert [target for target in targets if not target.exists()] == []
