"""How far an evaluation is, on standard error."""

import warnings

import pytest

from iwbounds.evidence.progress import Progress


def test_fractions_that_add_up_to_more_than_the_whole_do_not_pass_it():
    """Of a datum's samples each part is a fraction; tqdm warns where their sum is a rounding above the total."""
    parts = [0.7, 0.1, 0.2000000000000003]
    assert sum(parts) > 1
    with Progress("evaluate", 1.0, "data", shown=False) as progress:
        for part in parts:
            progress.advance(part)
    assert progress.done == 1.0


def test_the_bar_is_drawn_without_a_warning():
    tqdm = pytest.importorskip("tqdm")
    with warnings.catch_warnings(), Progress("evaluate", 1.0, "data", shown=True) as progress:
        warnings.simplefilter("error", tqdm.TqdmWarning)
        progress._bar.mininterval = 0
        for _ in range(3):
            progress.advance(0.4, "NLL 1.0")
        assert progress._bar.n == progress.done == 1.0
