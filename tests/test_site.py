"""The site: every page runs as written, every public name is in the reference, every example in the gallery."""

import contextlib
import doctest
import importlib.util
import io
import re
from pathlib import Path

import pytest

import iwbounds as iw

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = {"api", "gallery"}
"""Folders that `make docs` writes."""
ELSEWHERE = {"adapters.md", "testing.md"}
"""Pages that test_howto.py and the kit's own tests run, section by section."""
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if path.relative_to(DOCS).parts[0] not in MADE | ELSEWHERE and "```python" in path.read_text()
)


def extension(name):
    """A module of docs/_ext, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_numbers(text):
    """The words of an output: another build of torch rounds otherwise, so that digits are not compared."""
    return re.sub(r"[-−+]?[\d.]+(e[-+]?\d+)?|\binf\b|\bnan\b|–", "#", text).split()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_in_order_and_prints_what_the_page_says(page):
    text = (DOCS / page).read_text()
    if "\n>>> " in text:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert (
            doctest.testfile(str(DOCS / page), module_relative=False, optionflags=flags, encoding="utf-8").failed == 0
        )
        return
    namespace = {"__name__": "page"}
    for number, (code, shown) in enumerate(BLOCK.findall(text)):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page} block {number}", "exec"), namespace)
        if shown:
            assert without_numbers(printed.getvalue()) == without_numbers(shown), f"{page} block {number}"


def test_every_public_name_is_in_the_reference_once():
    pages = extension("api_pages").documented()
    listed = [name for names in pages.values() for name in names]
    assert len(listed) == len(set(listed))
    modules = {name for name in iw.__all__ if type(getattr(iw, name)).__name__ == "module"}
    assert {f"iwbounds.{name}" for name in iw.__all__ if name not in modules} <= set(listed)
    for module in modules:
        assert {f"iwbounds.{module}.{name}" for name in getattr(iw, module).__all__} <= set(listed)


def test_the_index_of_the_reference_has_a_sentence_for_each_name():
    api = extension("api_pages")
    text = api.index_text(api.documented())
    assert not re.search(r"     - *\n", text)


def test_every_example_has_a_page_in_the_gallery():
    scripts = {path.stem for path in (ROOT / "examples").glob("[a-z]*.py")}
    pages = extension("gallery").pages()
    assert scripts == pages.keys() - {"index", "recipes"}
    recipes = {path.name for path in (ROOT / "examples" / "recipes").glob("*.py")}
    assert recipes == set(
        re.findall(r"^```\{literalinclude\} \.\./\.\./examples/recipes/(\S+)", pages["recipes"], re.M)
    )


def test_links_that_leave_the_docs_are_made_absolute():
    links = extension("repository_links")
    text = "[a](../examples/evaluate.py) [b](bounds.md) [c](https://example.org) [d](../no/such.py)"
    assert links.rewritten(text, DOCS) == text.replace("../examples", links.FILES + "examples")
