"""The pages of the API reference, written from ``__all__``: no public name can be left out, none is listed by hand."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

TOP = "iwbounds"
# Floor of the package, title, what the page is about. A floor that is not named here gets a page of its own.
PAGES = {
    "engine": ("The everyday call", "Estimate a bound and its gradient, of one batch or of one that does not fit."),
    "bounds": ("Bounds", "Functions of K log-weights with a gradient, a curvature and a direction."),
    "gradients": ("Gradient estimators", "Three coefficients per sample, made from a bound's derivatives."),
    "proposals": ("Proposals", "How latents are drawn, and what an estimator may assume of them."),
    "evidence": ("Evidence", "Reports, certificates, both sides, posterior expectations, health."),
    "diagnostics": ("Reading the weights", "Effective sample size and the shape of the tail."),
    "logspace": ("Log-space reductions", "Precise at any magnitude, differentiable to any order."),
    "densities": ("Fused log-densities", "Summed over the event, without temporaries of its size."),
    "plots": ("Plots", "Pictures of reports, weights and bounds; needs matplotlib."),
    "testing": ("The test kit", "Tests of your own models that need no tolerances."),
    "adapters": ("Adapters", "Models of other libraries, each with its own extra."),
    "lab": ("The bound laboratory", "Bounds of your own, judged."),
}
# Beside the names of ``iwbounds`` itself: packages whose own ``__all__`` is meant for users.
USER_PACKAGES = ("densities", "plots", "testing", "testing.strategies", "evidence", "adapters", "lab")


def documented() -> dict[str, list[str]]:
    """Page to the full names on it, in the order of the lists that they come from."""
    found: dict[str, list[str]] = {}
    top = importlib.import_module(TOP)
    for name in top.__all__:
        value = getattr(top, name)
        if not isinstance(value, ModuleType):
            found.setdefault(_page_of(value), []).append(f"{TOP}.{name}")
    seen = {id(getattr(top, name)) for name in top.__all__}
    for module in _user_modules():
        page = module.__name__.split(".")[1]
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if id(value) not in seen and not isinstance(value, ModuleType):
                seen.add(id(value))
                found.setdefault(page, []).append(f"{module.__name__}.{name}")
    return {page: found[page] for page in [*PAGES, *sorted(found.keys() - PAGES.keys())] if page in found}


def _page_of(value: object) -> str:
    floor = value.__module__.split(".")[1]
    # One function of the kernels is public, and certificates are read beside the evidence that they belong to.
    return {"kernels": "densities", "certificates": "evidence", "posterior": "evidence"}.get(floor, floor)


def _user_modules() -> list[ModuleType]:
    """Those that exist and can be imported; an adapter whose other library is absent may still be."""
    modules = []
    for name in USER_PACKAGES:
        try:
            module = importlib.import_module(f"{TOP}.{name}")
        except ModuleNotFoundError:
            continue
        modules.append(module)
        if name == "adapters":
            inner = [m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_")]
            modules += [importlib.import_module(f"{module.__name__}.{each}") for each in inner]
    return modules


def page_text(page: str, names: list[str]) -> str:
    """One reStructuredText page: a contents line, then every name in full."""
    title, about = PAGES.get(page, (page.capitalize(), f"Public names of ``{TOP}.{page}``."))
    entries = "".join(_entry(name) for name in names)
    contents = ", ".join(f":py:obj:`~{name}`" for name in names)
    return f"{title}\n{'=' * len(title)}\n\n{about}\n\n{contents}\n\n{entries}"


def _entry(name: str) -> str:
    module, _, short = name.rpartition(".")
    value = getattr(importlib.import_module(module), short)
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:\n   :special-members: __call__\n\n"
    return f".. auto{'function' if callable(value) else 'data'}:: {name}\n\n"


def index_text(pages: dict[str, list[str]]) -> str:
    """A table of every name with its first sentence, and the list of pages."""
    lines = [
        "API reference",
        "=============",
        "",
        "Every public name, by what it is for.",
        "",
        ".. toctree::",
        "   :hidden:",
        "",
    ]
    lines += [f"   {page}" for page in pages]
    for page, names in pages.items():
        title = PAGES.get(page, (page.capitalize(), ""))[0]
        lines += ["", title, "-" * len(title), "", ".. list-table::", "   :widths: 35 65", ""]
        for name in names:
            module, _, short = name.rpartition(".")
            about = inspect.getdoc(getattr(importlib.import_module(module), short)) or ""
            first = about.partition("\n\n")[0].replace("\n", " ")
            lines += [f"   * - :py:obj:`~{name}`", f"     - {first}"]
    return "\n".join(lines) + "\n"


def write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages = documented()
    wanted = {"index": index_text(pages)} | {page: page_text(page, names) for page, names in pages.items()}
    for stale in {path.stem for path in folder.glob("*.rst")} - wanted.keys():
        (folder / f"{stale}.rst").unlink()
    for page, text in wanted.items():
        path = folder / f"{page}.rst"
        # Left alone where nothing changed, so that a second build reads only what did.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
