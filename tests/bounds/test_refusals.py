"""Wrong use is refused, with what was expected, what was found, and what to do."""

import math

import pytest
import torch

import iwbounds as iw

WRONG_ARGUMENTS = {
    "ciwae-beta-above-one": (lambda: iw.CIWAE(1.5), r"beta in \[0, 1\]; got 1.5"),
    "ciwae-beta-negative": (lambda: iw.CIWAE(-0.1), r"beta in \[0, 1\]; got -0.1"),
    "ciwae-beta-nan": (lambda: iw.CIWAE(math.nan), r"beta in \[0, 1\]; got nan"),
    "miwae-no-groups": (lambda: iw.MIWAE(0), r"groups to be a whole number, 1 or more; got 0. 1 is IWAE"),
    "miwae-fractional-groups": (lambda: iw.MIWAE(2.0), r"groups to be a whole number.*got 2.0"),
    "jackknife-negative-order": (lambda: iw.Jackknife(-1), r"order.*got -1. 0 is IWAE"),
    "jackknife-fractional-order": (lambda: iw.Jackknife(1.5), r"whole number.*got 1.5"),
    "u-statistic-size-zero": (lambda: iw.UStatistic(0), r"size.*got 0. 1 is the ELBO"),
    "incomplete-size-zero": (lambda: iw.IncompleteUStatistic(0), r"size.*got 0"),
    "incomplete-no-permutations": (lambda: iw.IncompleteUStatistic(2, 0), r"permutations.*got 0"),
    "tvo-unsorted": (lambda: iw.TVO([0.0, 0.5, 0.2, 1.0]), r"rises strictly.*Sort it"),
    "tvo-repeated": (lambda: iw.TVO([0.0, 0.5, 0.5, 1.0]), r"rises strictly"),
    "tvo-nan": (lambda: iw.TVO([0.0, math.nan, 1.0]), r"rises strictly"),
    "tvo-not-from-zero": (lambda: iw.TVO([0.1, 1.0]), r"starts at 0 and ends at 1"),
    "tvo-not-to-one": (lambda: iw.TVO([0.0, 0.9]), r"starts at 0 and ends at 1"),
    "tvo-empty": (lambda: iw.TVO([]), r"starts at 0 and ends at 1"),
    "tvo-no-interval": (lambda: iw.TVO(0), r"betas to be a whole number, 1 or more; got 0"),
    "tvo-side": (lambda: iw.TVO(2, side="middle"), r"'left', 'right' or 'trapezoid'; got 'middle'"),
    "partition-of-one": (lambda: iw.log_spaced_partition(1), r"intervals to be a whole number, 2 or more; got 1"),
    "partition-smallest": (lambda: iw.log_spaced_partition(3, 1.0), r"smallest in \(0, 1\); got 1.0"),
    "cubo-order-below-one": (lambda: iw.CUBO(0.5), r"order of at least 1; got 0.5"),
    "cubo-order-infinite": (lambda: iw.CUBO(math.inf), r"finite order.*got inf"),
    "cubo-order-nan": (lambda: iw.CUBO(math.nan), r"finite order.*got nan"),
    "sumo-start": (lambda: iw.SUMO(start=0), r"start to be a whole number, 1 or more; got 0"),
    "sumo-alpha": (lambda: iw.SUMO(alpha=0), r"alpha to be a whole number"),
    "sumo-decay": (lambda: iw.SUMO(decay=1.0), r"decay in \(0, 1\); got 1.0"),
    "renyi-nan": (lambda: iw.Renyi(math.nan), r"got NaN"),
}

WRONG_COUNTS = {
    "jackknife": (iw.Jackknife(3), 3, r"Jackknife\(order=3\) needs at least 4 samples; got 3"),
    "u-statistic": (iw.UStatistic(5), 4, r"UStatistic\(size=5\) needs at least 5 samples; got 4"),
    "incomplete": (iw.IncompleteUStatistic(5), 4, r"needs at least 5 samples; got 4"),
    "sumo": (iw.SUMO(start=5), 4, r"needs at least 5 samples; got 4"),
    "miwae-remainder": (iw.MIWAE(4), 10, r"that 4 divides; got 10. Use num_samples=8, or groups that divide 10"),
    "miwae-too-few": (iw.MIWAE(4), 3, r"that 4 divides; got 3. Use num_samples=4"),
}


@pytest.mark.parametrize(("make", "message"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_when_the_bound_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("bound", "count", "message"), WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_a_number_of_samples_that_does_not_suit_is_refused_everywhere(bound, count, message):
    log_w = torch.zeros(count, 2)
    for use in (bound, bound.differentiate, bound.derivatives, bound.leave_one_out):
        with pytest.raises(ValueError, match=message):
            use(log_w)
    drawn = []

    def log_joint(z):
        drawn.append(z)
        return torch.zeros_like(z)

    with pytest.raises(ValueError, match=message):
        iw.estimate(log_joint, torch.distributions.Normal(0.0, 1.0), bound, num_samples=count)
    assert not drawn, "the count must be refused before any density is evaluated"


def test_partitions_may_be_any_sequence_and_are_kept_as_numbers():
    assert iw.TVO([0, 0.25, 1]) == iw.TVO((0.0, 0.25, 1.0))
    assert hash(iw.TVO([0, 0.25, 1])) == hash(iw.TVO((0.0, 0.25, 1.0)))
    assert iw.TVO(4).partition == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert iw.TVO(torch.linspace(0, 1, 3).tolist()).partition == (0.0, 0.5, 1.0)


def test_log_spaced_partition_is_even_in_logarithms():
    partition = torch.tensor(iw.log_spaced_partition(6, smallest=0.01), dtype=torch.float64)
    steps = partition[1:].log().diff()
    assert partition[0] == 0
    torch.testing.assert_close(steps, steps[0].expand(5))
    assert iw.TVO(partition.tolist()).partition == tuple(partition.tolist())
