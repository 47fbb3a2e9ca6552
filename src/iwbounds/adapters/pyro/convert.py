"""The entry, and how model and guide are run: for all samples at once behind a plate of their own, or one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iwbounds.adapters.optional import optional
from iwbounds.adapters.pyro.structure import Structure, contributing, inspect
from iwbounds.checks import check_structure, latent_leaves
from iwbounds.proposals.base import LogJoint, Proposal

__all__ = ["from_pyro"]

_PLATE = "_iwbounds_samples"


def from_pyro(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    vectorize: bool = True,
    scaled_likelihood: bool = False,
    **kwargs: Any,
) -> tuple[LogJoint, Proposal]:
    r"""A Pyro model and guide, with their data, as the log-joint and the proposal of :func:`iwbounds.estimate`.

    .. math:: \log w_k = \sum_{\text{sites of the model}} \log p(\cdot) - \sum_{\text{sites of the guide}} \log q(\cdot)

    Latents are a dict by the names of the sites. A plate that *every* sample site of model and guide lies in (by name
    and dim) is a batch axis: each of its rows has a bound of its own, so a model of local latents in a data plate gets
    :math:`\sum_i \log \frac1K \sum_k w_{ik}`, and not the far looser logarithm of a mean of products over the data. All
    other plates are summed inside log w. Sites without a path (discrete ones) get a score-function gradient, the others
    follow their path, in one backward.

    The guide and the model are run once here, on PyTorch's generator, to learn their sites: they must have the same
    ones in every run. Parameters are those of Pyro's store and of your modules; what an optimiser takes is
    ``[p.unconstrained() for p in pyro.get_param_store().values()]``, or a guide's ``parameters()``.

    Args:
        model: a Pyro model; ``model(*args, **kwargs)`` is run with every latent site set.
        guide: its guide: written by hand, ``AutoNormal``, any ``AutoContinuous``, or an ``AutoGuideList`` of these.
            Each of its sites has a density.
        args: what both are called with. In ``iw.evaluate``, ``lambda x: from_pyro(model, guide, x)`` is the model.
        vectorize: run them for all samples at once, behind one more plate to the left of yours; axes of data are then
            to be counted from the right. False: once for each sample, for a model that cannot take that plate (a
            control flow that reads samples, layers with random weights).
        scaled_likelihood: let observed sites of a subsampled plate keep the scale of the mini-batch, where latents are
            global. Say it to :func:`iwbounds.estimate` too, with ``bound=ELBO()``: nothing else stays a bound.
        kwargs: go with ``args``.

    Returns:
        ``log_joint`` and an :class:`iwbounds.Proposal`. Latents are ``(K, *batch, *rest)``, where without batch axes
        the rest is the shape that the site has in Pyro, so that ``mcmc.get_samples()`` can be handed to
        :func:`iwbounds.sandwich`. A mini-batch of a subsampled plate is drawn here, once; where the plate is a batch
        axis, no scale is applied: multiply the sum of the values.

    Raises:
        ImportError: Pyro is not installed.
        ValueError: model and guide have different latent sites; a scale inside the logarithm (subsampling beside
            global latents, ``poutine.scale``); log-densities with axes that no plate declares; latents of other shapes.
        TypeError: a guide site that is a point (``AutoDelta``), or auxiliary sites other than an automatic guide's.

    Direction and bias are those of the bound. Sites that Pyro would enumerate are not summed out.

    Reference: Bingham et al. (2019), Pyro: Deep Universal Probabilistic Programming, JMLR 20(28).

    >>> import pyro, pyro.distributions as dist, torch, iwbounds as iw
    >>> model = lambda x: pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)
    >>> guide = lambda x: pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior: every weight is the evidence
    >>> iw.estimate(*from_pyro(model, guide, torch.tensor(1.0)), num_samples=4).value
    tensor(-1.5155)
    """
    structure = inspect(model, guide, args, kwargs, scaled_likelihood)
    runner = _Runner(structure, args, kwargs, vectorize)
    proposal = Proposal(
        lambda shape: runner.sample(guide, shape[0]),
        lambda latents: runner.log_prob(guide, latents),
        structure.reparameterized,
        name="the guide",
        fixed_support=structure.fixed_support,
        batch_shape=structure.batch_shape,
    )
    return lambda latents: _sum(runner.densities(model, runner.values(latents))), proposal


@dataclass(frozen=True)
class _Runner:
    """Runs a model or a guide of a known structure, on the same data and mini-batch each time."""

    structure: Structure
    args: Any
    kwargs: Any
    vectorize: bool

    def sample(self, guide: Callable[..., Any], count: int) -> dict[str, Tensor]:
        """Latents ``(count, *batch, *rest)`` of the guide."""
        if not self.vectorize:
            # One run for each sample: slow, and right for any control flow.
            rows = [self._latents(self._trace(guide, {}, None)) for _ in range(count)]
            return {name: torch.stack([row[name] for row in rows]) for name in self.structure.layouts}
        return self._latents(self._trace(guide, {}, count))

    def log_prob(self, guide: Callable[..., Any], latents: dict[str, Tensor]) -> Any:
        """log q, one tensor for each site where some have a path and others have none."""
        # Packed for the guide alone: only it has auxiliary sites, which its points are made of.
        densities = self.densities(guide, self.values(latents), packed=True)
        if not isinstance(self.structure.reparameterized, dict):
            return _sum(densities)
        automatic = self.structure.automatic.latents
        parts = {name: densities.pop(name) for name in self.structure.layouts if name not in automatic}
        # Automatic guides may draw several sites as one vector. All have a path, and parts with one are added up: so
        # that the first may stand for all of them.
        for name in sorted(automatic):
            parts[name] = _sum(densities) if densities else torch.zeros_like(next(iter(parts.values())))
            densities = {}
        return parts

    def values(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """``latents``, known to be those of the model: its own sites, each of its own shape."""
        layouts = self.structure.layouts
        check_structure("the latents of a Pyro model", latents, dict.fromkeys(layouts, True))
        for name, layout in layouts.items():
            found = tuple(latents[name].shape)
            if found[1:] != layout.visible_shape:
                raise ValueError(
                    f"expected latents of site {name!r} of shape (num_samples, {str(layout.visible_shape)[1:-1]}), as "
                    f"the guide draws them; got {found}. Draws by chain go through adapters.arviz.posterior_draws."
                )
        return latents

    def densities(self, run: Callable[..., Any], latents: dict[str, Tensor], packed: bool = False) -> dict[str, Tensor]:
        """The log-density ``(K, *batch)`` of each site of ``run``, its latent sites being set."""
        count = latent_leaves(latents)[0].shape[0]
        if self.vectorize:
            return self._densities(run, latents, count, packed)
        found = [self._densities(run, {n: z[k] for n, z in latents.items()}, None, packed) for k in range(count)]
        return {name: torch.stack([row[name] for row in found]) for name in found[0]}

    def _densities(
        self, run: Callable[..., Any], latents: dict[str, Tensor], count: int | None, packed: bool
    ) -> dict[str, Tensor]:
        """Of all samples at once, or of a single one (``count`` None), whose axis is then missing."""
        nesting, vectorized = self.structure.nesting, count is not None
        values = {
            name: layout.inward(latents[name], vectorized, nesting) for name, layout in self.structure.layouts.items()
        }
        if packed:
            automatic = self.structure.automatic
            # A flat vector lies in none of the plates: axes of size 1 in their places.
            auxiliary = automatic.pack(values, () if count is None else (count,) + (1,) * nesting)
            # Points are left to the guide, which makes them, and their density, of its auxiliary sites.
            values = {name: z for name, z in values.items() if name not in automatic.latents} | auxiliary
        trace = self._trace(run, values, count)
        return {name: self.structure.log_density(site, count) for name, site in contributing(trace)}

    def _trace(self, run: Callable[..., Any], values: dict[str, Tensor], count: int | None) -> Any:
        """One run, with sites set to ``values``."""
        pyro, poutine = optional("pyro", "pyro"), optional("pyro.poutine", "pyro")

        def behind_plate(*args: Any, **kwargs: Any) -> None:
            # To the left of all plates, so that every dim that the model names keeps its place.
            plate = pyro.plate(_PLATE, count, dim=-1 - self.structure.nesting) if count is not None else nullcontext()
            with plate:
                run(*args, **kwargs)

        # The mini-batch that the first run has drawn: another one would be of other data.
        given = poutine.condition(behind_plate, data={**self.structure.subsamples, **values})
        return poutine.trace(given).get_trace(*self.args, **self.kwargs)

    def _latents(self, trace: Any) -> dict[str, Tensor]:
        vectorized, nesting, layouts = self.vectorize, self.structure.nesting, self.structure.layouts.items()
        return {name: layout.outward(trace.nodes[name]["value"], vectorized, nesting) for name, layout in layouts}


def _sum(densities: dict[str, Tensor]) -> Tensor:
    first, *others = densities.values()
    return sum(others, first)
