"""What autodoc and napoleon do not know: public names of private modules, and docstrings that start with a sentence."""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring


def exists(target: str) -> bool:
    """Whether a dotted name can be imported, so that a reference to it is no slip of the pen."""
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for name in parts[cut:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def resolve(app: Sphinx, env: Any, node: pending_xref, shown: nodes.TextElement) -> nodes.Node | None:
    """A link to the name that users import; plain text for what exists and has no page (torch's, helpers of ours).

    Anything else stays unresolved, which is an error of `make docs`.
    """
    if node.get("refdomain") != "py":
        return None
    target, here = node["reftarget"], node.get("refdoc", "")
    short = target.rpartition(".")[2]
    domain = env.domains["py"]
    for name in (f"iwbounds.{short}", *(full for full in domain.objects if full.endswith(f".{short}"))):
        if name in domain.objects and (target == short or target.startswith("iwbounds.")):
            return domain.resolve_xref(env, here, app.builder, "obj", name, node, shown)
    known = exists(target) or exists(f"torch.{target}") or exists(f"torch.distributions.{target}")
    return shown if known else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", resolve)
    # Napoleon takes "Mean over the data: …" for the type of an attribute; ours are annotated, and say sentences.
    GoogleDocstring._parse_attribute_docstring = lambda self: self._consume_to_end()  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
