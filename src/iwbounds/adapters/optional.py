"""Libraries that an adapter needs and iwbounds does not: imported when the adapter is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["optional"]


def optional(module: str, extra: str) -> Any:
    """The module of another library.

    Raises:
        ImportError: it is not installed; the message says how to install it.

    >>> optional("math", "pyro").inf
    inf
    """
    try:
        return import_module(module)
    except ImportError as missing:
        # A library that is there but broken has a message of its own, which says more than ours.
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ImportError(
            f"expected {module.split('.')[0]}, which this adapter needs, to be installed; it is not: "
            f"pip install 'iwbounds[{extra}]'."
        ) from missing
