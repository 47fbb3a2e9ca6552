"""Links that leave docs/ work on GitHub as they are; on the site they lead to the file in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FILES = "https://github.com/iwbounds/iwbounds/blob/main/"
ROOT = Path(__file__).parents[2]
PATTERN = re.compile(r"[\w/]+\*\n")
LINK = re.compile(r"(\]\()([^):#\s]+)")


def rewritten(text: str, folder: Path) -> str:
    """Relative links of a page in `folder` that lead to a file outside docs/, made absolute."""

    def absolute(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        outside = target.exists() and ROOT in target.parents and (ROOT / "docs") not in target.parents
        return match[1] + FILES + str(target.relative_to(ROOT)) if outside else match[0]

    return LINK.sub(absolute, text)


def without_empty_patterns(text: str, folder: Path) -> str:
    """Without the lines of a toctree whose pattern no page matches, of which Sphinx would complain."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not PATTERN.fullmatch(line) or any(folder.glob(line.strip() + ".md")))


def with_the_rest(text: str, folder: Path) -> str:
    """A line of a toctree that is `*` alone stands for the pages of the folder that no other line names."""
    entries = re.findall(r"^[\w/]+\*?$", text, re.MULTILINE)
    named = {"index"} | {page.stem for entry in entries for page in folder.glob(f"{entry}.md")}
    rest = sorted({page.stem for page in folder.glob("*.md")} - named)
    return re.sub(r"^\*\n", "".join(f"{page}\n" for page in rest), text, flags=re.MULTILINE)


def on_source_read(app: Sphinx, docname: str, content: list[str]) -> None:
    folder = (Path(app.srcdir) / docname).parent
    content[0] = without_empty_patterns(with_the_rest(rewritten(content[0], folder), folder), folder)


def on_include_read(app: Sphinx, path: Path, _parent: str, content: list[str]) -> None:
    """CHANGELOG.md and its like, which lie at the root."""
    content[0] = rewritten(content[0], (Path(app.srcdir) / path).resolve().parent)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", on_source_read)
    app.connect("include-read", on_include_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
