"""Names that are loaded when they are first asked for, so that ``import iwbounds`` takes milliseconds (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["lazy_attributes"]


def lazy_attributes(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for ``homes``: from each name to the module below ``package`` that defines it.

    An empty home is a module of its own name.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{homes[name] or name}")
        found = getattr(home, name) if homes[name] else home
        setattr(sys.modules[package], name, found)
        return found

    return load
