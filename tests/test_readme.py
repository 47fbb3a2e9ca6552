"""What the README and the docs show runs as written."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/annealed.md",
    "docs/architecture.md",
    "docs/bounds.md",
    "docs/controlled.md",
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
    for page in [*PAGES, "docs/atlas.md", "CONTRIBUTING.md", "examples/README.md"]:
        here = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            if not target.startswith("http"):
                assert (here / target).exists(), f"{page} links to {target}, which does not exist"


def test_the_readme_links_work_where_it_is_shown_alone():
    """On PyPI there are no files beside it: every link is absolute, and those into the repository lead to a file."""
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    prefixes = (
        "https://github.com/iwbounds/iwbounds/blob/main/",
        "https://raw.githubusercontent.com/iwbounds/iwbounds/main/",
    )
    assert targets
    for target in targets:
        prefix = next((each for each in prefixes if target.startswith(each)), None)
        assert prefix, f"README.md links to {target}, which is not in the repository"
        assert (ROOT / target.removeprefix(prefix).partition("#")[0]).exists(), target
