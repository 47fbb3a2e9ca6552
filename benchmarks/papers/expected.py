"""What a figure should be, and a table that says which are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import table

RESULTS = Path(__file__).parents[1] / "results" / "papers"


@dataclass(frozen=True)
class Figure:
    """A measured number, and the interval where it is expected."""

    name: str
    found: float
    low: float
    high: float

    @classmethod
    def near(cls, name: str, found: float, expected: float, tolerance: float) -> Figure:
        return cls(name, found, expected - tolerance, expected + tolerance)

    @property
    def ok(self) -> bool:
        """False for NaN."""
        return self.low <= self.found <= self.high  # comparisons with NaN are False


def report(figures: Sequence[Figure]) -> bool:
    """Print them; whether all are as expected."""
    rows = [[f.name, f"{f.found:.4g}", f"{f.low:.4g} … {f.high:.4g}", "yes" if f.ok else "NO"] for f in figures]
    print("\n" + table(["figure", "found", "expected", "as expected"], rows))
    return all(f.ok for f in figures)


def parser(description: str, results: str) -> argparse.ArgumentParser:
    """With the options that every reproduction has."""
    # The description is a script's docstring, whose lines are commands; and an abbreviation that is one today may not
    # be one tomorrow, in a command that someone keeps beside a result.
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("--folder", type=Path, help="of the archives; default: the environment's IWBOUNDS_DATA")
    found.add_argument("--checkpoints", type=Path, default=Path("out") / "papers")
    found.add_argument("--results", type=Path, default=RESULTS / results)
    found.add_argument("--threads", type=int, default=torch.get_num_threads())
    return found
