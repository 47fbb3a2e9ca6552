"""The commonest mistakes meet a message that names the argument, what was found, and what to do.

Root cause: arguments were used as they came, so that fractions gave biased estimates and classes an AttributeError.
"""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import iwbounds as iw

LOC = torch.zeros(3, requires_grad=True)


def log_joint(z):
    return -z.square()


WRONG = {
    "bound: a class": ({"bound": iw.IWAE}, r"bound.*the class IWAE.*IWAE\(…\)"),
    "bound: a string": ({"bound": "iwae"}, r"bound.*'iwae'.*iw.IWAE\(\)"),
    "bound: None": ({"bound": None}, "bound.*None"),
    "bound: a gradient": ({"bound": iw.DReG()}, r"bound.*DReG\(\)"),
    "gradient: a class": ({"gradient": iw.VIMCO}, r"gradient.*the class VIMCO.*VIMCO\(…\)"),
    "gradient: a string": ({"gradient": "dreg"}, "gradient.*'dreg'"),
    "gradient: a bound": ({"gradient": iw.IWAE()}, r"gradient.*IWAE\(\)"),
    "proposal_bound: a number": ({"proposal_bound": 8}, "proposal_bound.*8"),
    **{
        f"{name}: {value!r}": ({name: value}, rf"{name}.*whole number, 1 or more; got {value!r}")
        for name in ("num_samples", "chunk_size", "backward_samples")
        for value in (2.5, 2.0, True, "3", 0, -1)
    },
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_by_name(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        iw.estimate(log_joint, Normal(LOC, 1.0), **options)


SETTINGS = {
    **{
        f"{bound.__name__}({value!r})": (lambda bound=bound, value=value: bound(value), f"{name}.*number; got")
        for bound, name in ((iw.Renyi, "alpha"), (iw.CIWAE, "beta"), (iw.CUBO, "order"), (iw.OVIS, "gamma"))
        for value in ("0.5", True, None, torch.tensor(0.5))
    },
    "SUMO(decay=True)": (lambda: iw.SUMO(decay=True), "decay.*number"),
    "RunningMean('x')": (lambda: iw.RunningMean("x"), "decay.*number"),
    "TVO of strings": (lambda: iw.TVO(("0", "1")), "betas.*number"),
    "ScoreFunction(3.0)": (lambda: iw.ScoreFunction(3.0), "baseline.*callable.*3.0"),
    "VIMCO(bound)": (lambda: iw.VIMCO(iw.IWAE()), r"geometric.*True or False; got IWAE\(\)"),
    "Reparameterized(8)": (lambda: iw.Reparameterized(8), "control_variate.*True or False; got 8"),
}


@pytest.mark.parametrize(("make", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_of_bounds_and_gradients_are_refused_by_name(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_numbers_of_numpy_are_numbers():
    assert iw.Renyi(np.float32(0.5)) == iw.Renyi(0.5)
    assert repr(iw.CUBO(np.float64(2))) == "CUBO(order=2.0)"


def test_swapped_arguments_are_refused():
    with pytest.raises(TypeError, match=r"log_joint to be a callable.*got Normal. It comes first"):
        iw.estimate(Normal(LOC, 1.0), log_joint)
    with pytest.raises(TypeError, match=r"log_joint to be a callable.*got the class Linear"):
        iw.estimate(torch.nn.Linear, Normal(LOC, 1.0))
    with pytest.raises(TypeError, match=r"expected model to be a callable from data.*got Tensor. It comes first"):
        iw.accumulate(torch.ones(3), lambda x: (log_joint, Normal(LOC, 1.0)))
    with pytest.raises(TypeError, match=r"expected proposal.*got log_joint.*swapped"):
        iw.estimate(log_joint, log_joint)
    with pytest.raises(TypeError, match=r"expected proposal.*got Normal.*Normal\(…\)"):
        iw.estimate(log_joint, Normal)


@pytest.mark.parametrize("kind", [np.int64, np.int32, int])
def test_integers_of_numpy_are_integers(kind):
    def value(convert):
        torch.manual_seed(0)
        options = {"num_samples": convert(40), "chunk_size": convert(7)}
        return iw.estimate(log_joint, Normal(LOC, 1.0), **options).value.detach()

    assert torch.equal(value(kind), value(int))
    assert iw.estimate(log_joint, Normal(LOC, 1.0), backward_samples=kind(2), num_samples=kind(8)).num_samples == 8
    model = lambda x: (log_joint, Normal(LOC[: len(x)], 1.0))  # noqa: E731
    assert iw.accumulate(model, torch.ones(3), max_live_samples=kind(10), num_samples=kind(40)).num_samples == 40


def test_accumulate_says_where_its_bound_goes():
    model = lambda x: (log_joint, Normal(LOC, 1.0))  # noqa: E731
    with pytest.raises(TypeError, match=r"max_live_samples.*third argument.*bound=ELBO\(\)"):
        iw.accumulate(model, torch.ones(3), iw.ELBO())
    with pytest.raises(ValueError, match=r"max_live_samples.*whole number"):
        iw.accumulate(model, torch.ones(3), 2.5)


def test_a_repr_is_one_line():
    assert "\n" not in repr(iw.estimate(log_joint, Normal(LOC, 1.0), num_samples=500))
