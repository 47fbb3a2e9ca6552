"""Concrete bounds and gradients are final; users' own classes keep no shortcut of a rule they replace."""

import numpy as np
import pytest
import torch

import iwbounds as iw
from iwbounds.bounds.sumo import StoppedSUMO

BOUNDS = [
    iw.ELBO, iw.IWAE, iw.Renyi, iw.CIWAE, iw.MIWAE, iw.Jackknife, iw.UStatistic, iw.IncompleteUStatistic, iw.TVO,
    iw.EUBO, iw.CUBO, iw.SUMO, StoppedSUMO,
]  # fmt: skip
GRADIENTS = [iw.Reparameterized, iw.STL, iw.DReG, iw.ScoreFunction, iw.VIMCO, iw.OVIS, iw.Wake, iw.DReGWake]


@pytest.mark.parametrize("family", BOUNDS)
def test_a_concrete_bound_cannot_be_subclassed(family):
    with pytest.raises(TypeError, match=rf"final; got {family.__name__}. Subclass iwbounds.Bound"):
        type("Own", (family,), {"__call__": lambda self, log_w: 2 * log_w.logsumexp(0)})


@pytest.mark.parametrize("family", GRADIENTS)
def test_a_concrete_gradient_cannot_be_subclassed(family):
    with pytest.raises(TypeError, match=rf"final; got {family.__name__}. Subclass iwbounds.Gradient"):
        type("Own", (family,), {})


def test_a_mixin_before_a_concrete_class_is_refused_too():
    class Mixin:
        def __call__(self, log_w):
            return log_w.amax(0)

    with pytest.raises(TypeError, match="final; got IWAE"):
        type("Own", (Mixin, iw.IWAE), {})


class Closed(iw.Bound):
    """IWAE with every shortcut there is, as a user may write it."""

    power_mean = (1.0, 0.0)
    bounded_ratio = True

    def __call__(self, log_w):
        return iw.log_mean_exp(log_w)

    def differentiate(self, log_w, path=False):
        return iw.IWAE().differentiate(log_w, path)

    def leave_one_out(self, log_w, geometric=False):
        return iw.IWAE().leave_one_out(log_w, geometric)

    def replace_each(self, log_w, fill):
        return iw.IWAE().replace_each(log_w, fill)

    def frozen(self, log_w):
        return iw.IWAE()


class Doubled:
    """A mixin that brings another value."""

    def __call__(self, log_w):
        return 2 * log_w.logsumexp(0)


class MixedIn(Doubled, Closed):
    pass


class Redefined(Closed):
    def __call__(self, log_w):
        return 2 * log_w.logsumexp(0)


class Inherited(Redefined):
    pass


@pytest.mark.parametrize("family", [MixedIn, Redefined, Inherited])
def test_a_value_that_is_redefined_keeps_no_closed_form_of_the_old_one(family):
    log_w, bound = torch.randn(4, 3, dtype=torch.float64), family()
    w = log_w.softmax(0)
    value, c, path = bound.differentiate(log_w, path=True)
    torch.testing.assert_close(value, 2 * log_w.logsumexp(0))
    torch.testing.assert_close(c, 2 * w)
    torch.testing.assert_close(path, 2 * w * w)
    assert bound.frozen(log_w) is bound
    assert bound.power_mean is None
    assert bound.bounded_ratio is False
    replaced = torch.cat([log_w[1:2], log_w[1:]])
    torch.testing.assert_close(bound.replace_each(log_w, log_w[[1, 1, 1, 1]])[0], bound(replaced))


def test_a_value_that_is_kept_keeps_its_closed_form():
    class Renamed(Closed):
        direction = iw.Direction.LOWER

    class Faster(Redefined):
        def differentiate(self, log_w, path=False):
            return "own"

    class Helped(Redefined):
        """Brings its own closed form with its own value."""

        def __call__(self, log_w):
            return log_w.mean(0)

        def differentiate(self, log_w, path=False):
            return "own"

    assert Renamed.differentiate is Closed.differentiate
    assert Renamed().power_mean == (1.0, 0.0)
    assert Faster().differentiate(None) == Helped().differentiate(None) == "own"


class Total(iw.Gradient):
    """A user's total derivative, with its shortcuts."""

    pathwise = True
    total = True

    def coefficients(self, bound, log_w):
        return self.evaluate(bound, log_w)[1]

    def evaluate(self, bound, log_w):
        value, c, _ = bound.differentiate(log_w)
        return value, iw.Coefficients(c, c, -c)

    def bounded_ratio(self, bound):
        return True


def test_coefficients_that_are_redefined_keep_no_shortcut_of_the_old_ones():
    class Silent(Total):
        def coefficients(self, bound, log_w):
            return iw.Coefficients(torch.zeros_like(log_w), torch.zeros_like(log_w))

    assert Total.total
    assert not Silent.total
    assert not Silent().bounded_ratio(iw.IWAE())
    assert (Silent().evaluate(iw.IWAE(), torch.randn(3, 2))[1].model == 0).all()
    loc = torch.zeros(2, requires_grad=True)
    log_joint = lambda z: -((z - 1) ** 2)  # noqa: E731
    iw.estimate(
        log_joint, torch.distributions.Normal(loc, 1.0), gradient=Silent(), num_samples=3
    ).value.sum().backward()
    assert (loc.grad == 0).all()


@pytest.mark.parametrize("bound", [iw.Renyi(0.0), iw.CUBO(1), iw.CIWAE(0.0), iw.MIWAE(1), iw.ELBO()], ids=repr)
def test_ovis_takes_iwae_alone(bound):
    with pytest.raises(ValueError, match="derived for IWAE alone"):
        iw.OVIS(0.0).evaluate(bound, torch.randn(3, 2))


WHOLE = {
    "MIWAE": (iw.MIWAE, "groups", 1),
    "Jackknife": (iw.Jackknife, "order", 0),
    "UStatistic": (iw.UStatistic, "size", 1),
    "IncompleteUStatistic": (iw.IncompleteUStatistic, "size", 1),
    "permutations": (lambda n: iw.IncompleteUStatistic(2, n), "permutations", 1),
    "TVO": (iw.TVO, "betas", 1),
    "partition": (iw.log_spaced_partition, "intervals", 2),
    "start": (lambda n: iw.SUMO(start=n), "start", 1),
    "alpha": (lambda n: iw.SUMO(alpha=n), "alpha", 1),
}


@pytest.mark.parametrize("value", [2.5, 2.0, True, np.True_, "3", None, -1, np.float64(2)], ids=repr)
@pytest.mark.parametrize(("make", "name", "least"), WHOLE.values(), ids=WHOLE)
def test_numbers_that_have_to_be_whole_are_refused_where_they_are_not(make, name, least, value):
    with pytest.raises(ValueError, match=rf"expected {name} to be a whole number, {least} or more; got ") as caught:
        make(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize(("make", "name", "least"), WHOLE.values(), ids=WHOLE)
def test_integers_of_numpy_are_integers(make, name, least, integer):
    assert make(integer(3)) == make(3)
    assert repr(make(integer(3))) == repr(make(3))


def test_jackknife_of_numpy_orders_does_not_overflow():
    log_w = torch.randn(3000, 2, dtype=torch.float64)
    torch.testing.assert_close(iw.Jackknife(np.int8(3))(log_w), iw.Jackknife(3)(log_w), rtol=0, atol=0)


def test_jackknife_above_order_6_is_refused_with_the_reason():
    assert iw.Jackknife(6).order == 6
    with pytest.raises(ValueError, match=r"order of at most 6; got 7.*variance.*1 and 2"):
        iw.Jackknife(7)
