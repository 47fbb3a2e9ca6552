"""The registry once more, through the kit that users have: other models, other code, the same verdict.

Where the kit can say it, the library's own facts are stated with it: unbiasedness here, orderings in
``tests/bounds/test_orderings.py`` and ``tests/testing``, upper bounds in ``tests/evidence``.
"""

import pytest
import torch

import iwbounds as iw
from iwbounds.testing import assert_coupled_order, assert_grad_unbiased, assert_monotone_in_k, assert_same_value
from tests.registry import BOUNDS, PATHWISE, SCORE

SLOW = ("u-statistic", "incomplete")
PAIRS = [name for name in BOUNDS if BOUNDS[name]().min_samples <= 2 and not name.startswith(SLOW)]


@pytest.mark.slow
@pytest.mark.parametrize("gradient", PATHWISE.values(), ids=PATHWISE)
@pytest.mark.parametrize("name", PAIRS)
def test_pathwise_estimators_pass_the_kit(name, gradient):
    assert_grad_unbiased(gradient(), BOUNDS[name](), "hermite")


@pytest.mark.parametrize("gradient", SCORE.values(), ids=SCORE)
@pytest.mark.parametrize("name", PAIRS)
def test_score_estimators_pass_the_kit(name, gradient):
    assert_grad_unbiased(gradient(), BOUNDS[name](), "enumerate")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_orderings_pass_the_kit(scale):
    log_w = scale * torch.randn(12, 5, 2, dtype=torch.float64)
    assert_coupled_order(log_w)
    assert_monotone_in_k(log_w)


def test_the_same_bound_under_its_two_names():
    log_w = torch.randn(12, 7, dtype=torch.float64)
    for names in [
        (iw.ELBO(), iw.Renyi(1.0), iw.CIWAE(1.0), iw.MIWAE(12), iw.TVO(1), iw.UStatistic(1)),
        (iw.IWAE(), iw.Renyi(0.0), iw.CIWAE(0.0), iw.MIWAE(1), iw.Jackknife(0), iw.CUBO(1), iw.UStatistic(12)),
    ]:
        assert_same_value(*(lambda bound=bound: bound(log_w) for bound in names))
