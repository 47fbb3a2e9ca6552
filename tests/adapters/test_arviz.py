"""Draws by chain and draw, whatever holds them, become what the sandwich takes, in its order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import iwbounds as iw
from iwbounds.adapters.arviz import posterior_draws
from tests.oracles import eight_schools

RNG = np.random.default_rng(0)
ARRAYS = {"mu": RNG.normal(size=(4, 10)), "theta": RNG.normal(size=(4, 10, 8)), "count": RNG.integers(9, size=(4, 10))}


def inference_data(arrays):
    arviz = pytest.importorskip("arviz", reason="the real InferenceData: pip install 'iwbounds[arviz]'")
    # The one argument of 1.0 and after; before, the group of the posterior is the first one.
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict({"posterior": arrays})
    return arviz.from_dict(arrays)


def data_tree(arrays):
    xarray = pytest.importorskip("xarray", reason="what ArviZ keeps draws in: pip install 'iwbounds[arviz]'")
    return xarray.DataTree.from_dict({"/posterior": dataset(arrays), "/prior": xarray.Dataset()})


def dataset(arrays):
    xarray = pytest.importorskip("xarray", reason="what ArviZ keeps draws in: pip install 'iwbounds[arviz]'")
    dims = ["chain", "draw", "school"]
    return xarray.Dataset({name: (dims[: array.ndim], array) for name, array in arrays.items()})


def transposed(arrays):
    return dataset(arrays).transpose("school", "draw", "chain")


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("hold", [dict, tensors, dataset, transposed, data_tree, inference_data])
def test_one_chain_comes_after_the_other_whatever_holds_the_draws(hold):
    draws = posterior_draws(hold(ARRAYS))
    assert draws.chains == 4
    assert draws.samples.keys() == ARRAYS.keys()
    assert not draws.samples["count"].is_floating_point()
    for name, array in ARRAYS.items():
        expected = np.concatenate(list(array))
        np.testing.assert_array_equal(draws.samples[name].numpy(), expected)


@pytest.mark.parametrize("hold", [dict, dataset, data_tree])
def test_names_and_dtype_are_those_asked_for(hold):
    draws = posterior_draws(hold(ARRAYS), ["theta", "count"], dtype=torch.float32)
    assert list(draws.samples) == ["theta", "count"]
    assert draws.samples["theta"].dtype is torch.float32
    assert draws.samples["count"].dtype is torch.int64


def test_halves_split_every_chain():
    first, second = posterior_draws(ARRAYS).halves()
    torch.testing.assert_close(first.samples["theta"], torch.from_numpy(np.concatenate(list(ARRAYS["theta"][:, :5]))))
    torch.testing.assert_close(second.samples["mu"], torch.from_numpy(np.concatenate(list(ARRAYS["mu"][:, 5:]))))
    assert first.chains == second.chains == 4


def test_the_draws_are_a_copy():
    mine = {"mu": np.zeros((1, 3))}
    posterior_draws(mine).samples["mu"].fill_(1.0)
    assert mine["mu"].sum() == 0


@pytest.mark.parametrize(
    ("data", "names", "error", "message"),
    [
        ({"mu": np.zeros(5)}, None, ValueError, r"'mu' of shape \(chain, draw, \*shape\); got \(5,\)"),
        ({"mu": np.zeros((4, 5)), "x": np.zeros((4, 6))}, None, ValueError, r"\(4, 5\) = \(chain, draw\).*'x'"),
        ({"mu": np.zeros((4, 5))}, ["tau"], KeyError, r"\['tau'\]; they have \['mu'\]"),
        ({"mu": np.zeros((4, 5))}, "mu", TypeError, r"Pass \['mu'\]"),
        ({}, None, ValueError, "at least one variable"),
        (np.zeros((4, 5)), None, TypeError, "got ndarray"),
    ],
)
def test_what_is_no_set_of_draws_is_refused(data, names, error, message):
    with pytest.raises(error, match=message):
        posterior_draws(data, names)


def test_stacked_draws_and_a_missing_group_are_refused():
    stacked = dataset(ARRAYS).stack(sample=("chain", "draw"))
    with pytest.raises(ValueError, match="dimensions chain and draw; got"):
        posterior_draws(stacked)
    xarray = pytest.importorskip("xarray")
    with pytest.raises(KeyError, match="'posterior'"):
        posterior_draws(xarray.DataTree.from_dict({"/prior": dataset(ARRAYS)}))


@pytest.mark.parametrize("hold", [dict, inference_data])
def test_the_evidence_of_the_eight_schools_from_both_sides(hold):
    chains = {n: v.reshape(4, 1000, *v.shape[1:]) for n, v in eight_schools.posterior_draws(4000, seed=0).items()}
    draws = posterior_draws(hold({**chains, "log_tau": np.log(chains["tau"])}), ["mu", "tau", "theta"])
    found = iw.sandwich(
        eight_schools.log_joint, eight_schools.proposal(), draws.samples, num_samples=4000, chains=draws.chains
    )
    # Errors of 0.001, so that 0.01 is ten of them.
    for side in (found.lower, found.upper, found.bridge):
        assert side.value.item() == pytest.approx(eight_schools.EVIDENCE, abs=0.01)
        assert side.standard_error.item() < 0.0015
