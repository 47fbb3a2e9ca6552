"""Formulas as MathML: browsers draw it themselves, so that a page needs no script, no font and no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# log, max, softmax, …, and whether a parenthesis follows.
NAMED = re.compile(r'<m([io])>([A-Za-z]{2,})</m\1>(?=(<mo stretchy="false">&#x00028;)?)')


def _spaced(match: re.Match[str]) -> str:
    """As TeX sets the name of a function: a thin space before it, and one behind where no parenthesis stands."""
    behind = "0" if match[3] else "0.17em"
    return f'<mo form="prefix" lspace="0.17em" rspace="{behind}">{match[2]}</mo>'


def to_mathml(node: nodes.Element, display: str) -> str:
    """The formula of a node; one that the converter does not know is a warning, hence an error of `make docs`."""
    latex = node.astext()
    # Sphinx's own rule for a formula of several lines, which LaTeX refuses outside of an environment.
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    try:
        return NAMED.sub(_spaced, convert(latex, display=display))
    except Exception as error:  # whatever it raises, the page and the formula must be named
        logger.warning("no MathML for %r: %r", latex, error, location=node)
        return f"<code>{latex}</code>"


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(to_mathml(node, "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    # A formula wider than a phone scrolls in its own box, instead of widening the page.
    translator.body.append(f'<div class="formula">{to_mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
