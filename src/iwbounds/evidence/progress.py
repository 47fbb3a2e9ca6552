"""A line on standard error that says how far an evaluation is."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress"]

_EVERY = 5.0  # seconds between plain lines


class Progress:
    """A tqdm bar where tqdm is installed, else a plain line every few seconds, with a note such as the running NLL.

    >>> with Progress("evaluate", 10, "data", shown=False) as progress:
    ...     progress.advance(3, "NLL 12.3")
    """

    def __init__(self, label: str, total: float | None, unit: str, shown: bool) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self._printed = time.monotonic()
        self._bar = _tqdm(label, total, unit) if shown else None
        self._plain = shown and self._bar is None

    def advance(self, amount: float, note: str = "") -> None:
        """So much more is done."""
        if self.total is not None:
            # Fractions of a datum add up to a little above the whole, of which tqdm would warn.
            amount = min(amount, self.total - self.done)
        self.done += amount
        if self._bar is not None:
            # update draws the bar anyway: once for both.
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif self._plain and time.monotonic() - self._printed > _EVERY:
            self._print(note)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _print(self, note: str) -> None:
        self._printed = time.monotonic()
        total = "" if self.total is None else f" of {self.total:.0f}"
        print(f"{self.label}: {self.done:.0f}{total} {self.unit}, {note}", file=sys.stderr, flush=True)


def _tqdm(label: str, total: float | None, unit: str) -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    # Data are done in fractions, as samples come in: one decimal would be noise on the bar.
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} " + unit + " [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=total, desc=label, unit=unit, leave=False, bar_format=form if total else None)
