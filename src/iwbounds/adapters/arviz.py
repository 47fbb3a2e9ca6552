"""Posterior draws by chain and draw, as ArviZ and samplers keep them, as :func:`iwbounds.sandwich` takes them.

Nothing of ArviZ is imported: what is asked of an object is its group ``posterior`` and variables with named dimensions,
which ``InferenceData`` (ArviZ below 1.0), ``xarray.DataTree`` (from 1.0 on) and ``xarray.Dataset`` share; a dict of
arrays will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["PosteriorDraws", "posterior_draws"]


class PosteriorDraws(NamedTuple):
    """Draws of one or more chains, one chain after the other.

    >>> draws = PosteriorDraws({"mu": torch.arange(8.0)}, chains=2)
    >>> [half.samples["mu"].tolist() for half in draws.halves()]
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """

    samples: dict[str, Tensor]
    """By name, each ``(chains * draws, *shape)``."""
    chains: int

    def halves(self) -> tuple[PosteriorDraws, PosteriorDraws]:
        """The first half of every chain, to fit a proposal on, and the second, to judge it by.

        A proposal that was fitted on the draws that it is judged by makes :func:`iwbounds.sandwich`'s upper side too
        low. The middle draw of a chain of odd length goes to the second half.
        """
        first, second = {}, {}
        for name, x in self.samples.items():
            by_chain = x.reshape(self.chains, -1, *x.shape[1:])
            # Every chain is halved, not the chains divided: a chain that is stuck must show in both halves.
            middle = by_chain.shape[1] // 2
            first[name], second[name] = by_chain[:, :middle].flatten(0, 1), by_chain[:, middle:].flatten(0, 1)
        return PosteriorDraws(first, self.chains), PosteriorDraws(second, self.chains)


def posterior_draws(
    data: Any,
    names: Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PosteriorDraws:
    """Draws ``(chain, draw, *shape)`` of the posterior as the samples and the chains of :func:`iwbounds.sandwich`.

    Args:
        data: ArviZ ``InferenceData`` or an ``xarray.DataTree`` with a group ``posterior``; an ``xarray.Dataset``; or a
            dict of arrays or tensors ``(chain, draw, *shape)``, such as ``get_samples(group_by_chain=True)`` gives in
            Pyro and NumPyro.
        names: the variables to take: those that ``log_joint`` takes. None: all there are. They are on the scale that
            the sampler reported, usually the constrained one, and so must be the log-joint's.
        dtype: of floating variables; None: as they are stored, which is float64 in most samplers. It must be that of
            the model.
        device: to put them on.

    Returns:
        :class:`PosteriorDraws`: ``iw.sandwich(log_joint, q, draws.samples, chains=draws.chains)``, and ``halves()``.

    Raises:
        KeyError: no such group or variable.
        ValueError: a variable without the dimensions chain and draw, or with others than the first one's.
        TypeError: something else than the above.

    >>> draws = posterior_draws({"mu": np.zeros((4, 100)), "theta": np.zeros((4, 100, 8))})
    >>> draws.samples["theta"].shape, draws.chains
    (torch.Size([400, 8]), 4)
    """
    found = _variables(data)
    # A string is a sequence too: of one-letter names.
    if isinstance(names, str):
        raise TypeError(f"expected a list of names; got one string. Pass [{names!r}].")
    missing = [name for name in names or [] if name not in found]
    if missing:
        raise KeyError(f"expected the draws to have the variables {missing}; they have {sorted(found)}.")
    arrays = {name: _by_chain(name, found[name]) for name in (names or found)}
    if not arrays:
        raise ValueError("expected at least one variable; got none.")
    first, *_ = (array.shape[:2] for array in arrays.values())
    for name, array in arrays.items():
        if array.shape[:2] != first:
            raise ValueError(
                f"expected {tuple(first)} = (chain, draw) in front of every variable; got {tuple(array.shape)} for "
                f"{name!r}. Name the variables to take by names=[…]."
            )
    # Chain after chain, each in its order: the means of batches are taken along it.
    return PosteriorDraws({n: _tensor(a, dtype, device).flatten(0, 1) for n, a in arrays.items()}, int(first[0]))


def _variables(data: Any) -> Mapping[str, Any]:
    """By name; the group of the posterior where there are groups."""
    if hasattr(data, "posterior"):
        data = data.posterior
    # A container of groups (InferenceData, DataTree), but of no posterior: as a mapping it would pass below.
    elif hasattr(data, "groups") or hasattr(data, "children"):
        raise KeyError("expected a group 'posterior' in the inference data; there is none.")
    if hasattr(data, "data_vars"):
        return {str(name): data[name] for name in data.data_vars}
    if isinstance(data, Mapping):
        return data
    raise TypeError(
        "expected InferenceData, an xarray DataTree or Dataset, or a dict of arrays (chain, draw, *shape); got "
        f"{type(data).__name__}."
    )


def _by_chain(name: str, variable: Any) -> Any:
    """An array or tensor whose first two axes are chain and draw."""
    dims = getattr(variable, "dims", None)
    if dims is not None:
        if not {"chain", "draw"} <= set(dims):
            raise ValueError(
                f"expected variable {name!r} to have the dimensions chain and draw; got {tuple(dims)}. Stacked draws "
                "are unstacked by .unstack()."
            )
        # By name: some writers put draw first.
        return np.asarray(variable.transpose("chain", "draw", ...).values)
    array = variable if isinstance(variable, Tensor) else np.asarray(variable)
    if array.ndim < 2:
        raise ValueError(
            f"expected variable {name!r} of shape (chain, draw, *shape); got {tuple(array.shape)}. Put an axis in "
            "front for a single chain: x[None]."
        )
    return array


def _tensor(array: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    # A copy: the draws are the caller's, and may be read-only.
    tensor = array.detach() if isinstance(array, Tensor) else torch.tensor(array)
    # Discrete latents stay integers: as floats they could index nothing.
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
