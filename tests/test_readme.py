"""What the README shows runs as written (tests/test_site.py runs the docs), and every link leads somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.slow
def test_every_python_block_of_the_readme_runs_in_order():
    found = blocks("README.md")
    assert found, "README.md shows no code"
    namespace = {"__name__": "readme"}
    for number, block in enumerate(found):
        exec(compile(block, f"README.md block {number}", "exec"), namespace)


def test_links_lead_somewhere():
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    for page in [*pages, "README.md", "CONTRIBUTING.md", "examples/README.md"]:
        here = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            # Folders that `make docs` writes are not there before it has; sphinx refuses what then leads nowhere.
            made = "api/" in target or "gallery/" in target
            if not target.startswith("http") and not made:
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
