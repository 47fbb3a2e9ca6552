"""The page on testing shows code that runs, and output that is what it says."""

import doctest
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.mark.parametrize("seed", range(3))
def test_the_page_runs_as_it_is_printed_whatever_the_initial_weights(seed):
    torch.manual_seed(seed)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags, encoding="utf-8")
    assert result.attempted > 15
    assert result.failed == 0
