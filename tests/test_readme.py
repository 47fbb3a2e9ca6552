"""What the README and the docs show runs as written."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/architecture.md",
    "docs/bounds.md",
    "docs/distributed.md",
    "docs/evidence.md",
    "docs/large_k.md",
]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_runs_in_order(page):
    found = blocks(page)
    assert found, f"{page} shows no code"
    namespace = {"__name__": "readme"}
    for number, block in enumerate(found):
        exec(compile(block, f"{page} block {number}", "exec"), namespace)


def test_links_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md", "examples/README.md"]:
        here = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            if not target.startswith("http"):
                assert (here / target).exists(), f"{page} links to {target}, which does not exist"
