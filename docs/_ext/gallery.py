"""The gallery: a page for each example, with its text from examples/README.md, its committed figure and its source.

The examples train models for minutes, so that building the site does not run them; tests/test_examples.py does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Where the name of the script is not what a reader looks for.
TITLES = {
    "digits": "Handwritten digits",
    "annealed": "Annealed chains",
    "distributed": "Several processes",
    "evaluate": "An evidence report",
    "expressivity": "What latents are for",
    "imputation": "Missing pixels",
    "lab": "A lesson on MNIST",
    "laplace": "Laplace as a mixture",
    "semi_implicit_digits": "Semi-implicit posterior",
    "sigmoid_belief_net": "Binary latents",
    "snr": "Signal-to-noise ratios",
}
RECIPES = """:::{grid-item-card} Recipes
:link: recipes
:link-type: doc

One thing each, in fewer than 60 lines: other libraries, compiled and mixed-precision training, models of several kinds.
:::
"""


def summaries(readme: str) -> dict[str, str]:
    """Script to the sentence that the table of examples/README.md has on it."""
    return dict(re.findall(r"^\| \[`(\w+\.py)`\]\(\w+\.py\) \| (.*) \|$", readme, re.MULTILINE))


def sections(readme: str) -> dict[str, str]:
    """Script to the text under its own heading."""
    parts = re.split(r"^## `(\w+\.py)`\n", readme, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def sentence(text: str) -> str:
    """With a capital, unless a formula begins it: β stays β."""
    return text[0].upper() + text[1:] if text[0].isascii() else text


def title_of(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def example_page(script: str, summary: str, text: str) -> str:
    """What the README says of the script, then the script."""
    title = title_of(script.removesuffix(".py"))
    page = (
        f"# {title}\n\n{sentence(summary)}.\n\n{text.strip()}\n\n## The script\n\n"
        f"`python examples/{script}`\n\n```{{literalinclude}} ../../examples/{script}\n:language: python\n```\n"
    )
    return page.replace("](../docs/", "](../")


def card(script: str, summary: str, text: str) -> str:
    """A picture that leads to the page; the first figure of the section, if there is one."""
    name = script.removesuffix(".py")
    figure = re.search(r"\]\((\.\./docs/figures/[\w.-]+\.png)\)", text)
    image = f":img-top: {figure[1].replace('../docs/', '../')}\n" if figure else ""
    told = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", sentence(summary))  # the card is a link itself
    return f":::{{grid-item-card}} {title_of(name)}\n:link: {name}\n:link-type: doc\n{image}\n{told}.\n:::\n"


def index_page(cards: str, names: list[str]) -> str:
    listed = "\n".join(names)
    return (
        "# Gallery\n\nScripts to run, each with a table and a figure; the figures are what they wrote.\n\n"
        f"::::{{grid}} 1 2 2 3\n:gutter: 3\n\n{cards}\n::::\n\n"
        f"```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    )


def recipes_page() -> str:
    """The recipes on one page: what the README says of them, then each program under its own heading."""
    readme = (EXAMPLES / "recipes" / "README.md").read_text()
    names = re.findall(r"^\| \[`(\w+)\.py`\]", readme, re.MULTILINE)
    # The README's links to the programs lead to their headings here, and the one to an example to its page.
    readme = re.sub(r"\]\((\w+)\.py\)", lambda found: f"](#{found[1].replace('_', '-')})", readme)
    readme = readme.replace("](../imputation.py)", "](imputation.md)")
    shown = "## {title}\n\n```{{literalinclude}} ../../examples/recipes/{name}.py\n:language: python\n```\n"
    programs = [shown.format(title=name.replace("_", " ").capitalize(), name=name) for name in names]
    return readme + "\n" + "\n".join(programs)


def pages() -> dict[str, str]:
    """Name of a page to its text: an index, and one page for each script that the README has in its table."""
    readme = (EXAMPLES / "README.md").read_text()
    told, texts = summaries(readme), sections(readme)
    found = {
        script.removesuffix(".py"): example_page(script, about, texts.get(script, "")) for script, about in told.items()
    }
    cards = "\n".join(card(script, about, texts.get(script, "")) for script, about in told.items())
    cards += f"\n{RECIPES}"
    return {"index": index_page(cards, [*found, "recipes"]), "recipes": recipes_page()} | found


def write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "gallery"
    folder.mkdir(exist_ok=True)
    wanted = pages()
    for stale in {path.stem for path in folder.glob("*.md")} - wanted.keys():
        (folder / f"{stale}.md").unlink()
    for name, text in wanted.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
