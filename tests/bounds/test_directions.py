"""The direction of every bound and option: a wrong one would make a certificate of an estimate that is none."""

import math

import pytest
import torch

import iwbounds as iw
from iwbounds.bounds import Direction
from tests.oracles.known_weights import lognormal_iwae

LOWER, UPPER, NONE, EXACT = Direction.LOWER, Direction.UPPER, Direction.NONE, Direction.EXACT

DIRECTIONS = [
    (iw.ELBO(), LOWER),
    (iw.IWAE(), LOWER),
    (iw.Renyi(0.0), LOWER),
    (iw.Renyi(0.5), LOWER),
    (iw.Renyi(1.0), LOWER),
    (iw.Renyi(2.0), LOWER),
    (iw.Renyi(math.inf), LOWER),
    (iw.Renyi(-1e-9), NONE),
    (iw.Renyi(-1.0), NONE),
    (iw.Renyi(-math.inf), NONE),
    (iw.CIWAE(0.0), LOWER),
    (iw.CIWAE(0.3), LOWER),
    (iw.CIWAE(1.0), LOWER),
    (iw.MIWAE(1), LOWER),
    (iw.MIWAE(2), LOWER),
    (iw.Jackknife(0), LOWER),
    (iw.Jackknife(1), NONE),
    (iw.Jackknife(2), NONE),
    (iw.Jackknife(3), NONE),
    (iw.UStatistic(2), LOWER),
    (iw.IncompleteUStatistic(2), LOWER),
    (iw.TVO(3), LOWER),
    (iw.TVO(3, side="right"), NONE),
    (iw.TVO(3, side="trapezoid"), NONE),
    (iw.EUBO(), NONE),
    (iw.CUBO(1), NONE),
    (iw.CUBO(2), NONE),
    (iw.SUMO(), LOWER),
    (iw.SUMO().frozen(torch.zeros(4, 2)), LOWER),
    (iw.SUMO().stopped_at(torch.tensor([1, 2])), NONE),
]


@pytest.mark.parametrize(("bound", "direction"), DIRECTIONS, ids=lambda case: type(case).__name__)
def test_every_bound_has_the_direction_of_the_table(bound, direction):
    assert bound.direction is direction


def test_a_users_bound_promises_nothing_until_it_says_so():
    class Own(iw.Bound):
        def __call__(self, log_w):
            return log_w.mean(0)

    assert Own().direction is NONE


def _expectation(bound, variance):
    """E of the bound of two log-normal weights with log p(x) = 0, by Gauss-Hermite quadrature."""
    import numpy as np

    nodes, weights = (torch.from_numpy(part.copy()) for part in np.polynomial.hermite_e.hermegauss(80))
    log_w = math.sqrt(variance) * nodes - variance / 2
    pairs = torch.stack(torch.meshgrid(log_w, log_w, indexing="ij")).flatten(1)
    return (bound(pairs) * torch.outer(weights, weights).flatten()).sum().item() / (2 * math.pi)


@pytest.mark.parametrize(
    "bound",
    [b for b, d in DIRECTIONS if d is LOWER and b.min_samples <= 2 and not isinstance(b, iw.SUMO)][:-1],
    ids=repr,
)
def test_lower_bounds_have_an_expectation_below_the_evidence(bound):
    """log p(x) = 0; SUMO's expectation over its stops is IWAE's, tested with it."""
    assert _expectation(bound, 1.0) < -0.01
    if bound == iw.IWAE():
        assert _expectation(bound, 1.0) == pytest.approx(lognormal_iwae(1.0, 2), abs=1e-6)


@pytest.mark.parametrize(
    ("bound", "variance"),
    [
        (iw.Jackknife(1), 4.0),
        (iw.CUBO(2), 0.25),
        (iw.EUBO(), 0.25),
        (iw.Renyi(-1.0), 0.25),
        (iw.TVO(1, side="right"), 0.25),
        (iw.TVO(2, side="trapezoid"), 0.25),
    ],
    ids=repr,
)
def test_what_says_none_is_no_upper_bound_at_two_samples(bound, variance):
    assert _expectation(bound, variance) < 0


@pytest.mark.parametrize(
    "bound",
    [iw.CUBO(8), iw.Renyi(-7.0), iw.Renyi(-math.inf), iw.Jackknife(1), iw.TVO(1, side="right"), iw.EUBO()],
    ids=repr,
)
def test_what_says_none_is_no_lower_bound_either(bound):
    """Weights of 1 ± 0.6, each with probability 1/2: mean 1, so log p(x) = 0; by enumeration of four pairs or more."""
    count = 2 if isinstance(bound, iw.Jackknife) else 8
    pairs = torch.cartesian_prod(*[torch.tensor([1.6, 0.4], dtype=torch.float64).log()] * count).mT
    value = bound(pairs).mean()
    assert value > 0


def test_directions_add_and_change_sign():
    assert -LOWER is UPPER
    assert -UPPER is LOWER
    assert -EXACT is EXACT
    assert -NONE is NONE
    for direction in Direction:
        assert direction & EXACT is direction
        assert EXACT & direction is direction
        assert direction & direction is direction
        assert direction & NONE is NONE
    assert LOWER & UPPER is NONE
    assert UPPER & LOWER is NONE
