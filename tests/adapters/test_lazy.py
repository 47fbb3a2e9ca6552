"""A module that makes distributions is none: the message says what to pass."""

import pytest
import torch

import iwbounds as iw


def test_a_module_in_the_place_of_a_distribution():
    with pytest.raises(TypeError, match=r"got Linear.*pass the distribution that it returns.*\(context\).*comes first"):
        iw.estimate(lambda z: -z.square(), torch.nn.Linear(2, 2))
