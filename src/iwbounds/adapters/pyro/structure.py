"""What one run of the guide and the model tells: latent sites, plates, and what an estimator may assume of the guide.

Pyro's plates declare conditional independence. A plate that *every* site of model and guide lies in makes data
independent of each other, so it is a batch axis of iwbounds: one bound for each of its rows. Any other plate, such as
that of the observations beside a global latent, is summed inside the log-weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iwbounds.adapters.optional import optional
from iwbounds.adapters.pyro.autoguides import Automatic, automatic_sites
from iwbounds.proposals.distributions import has_moving_support, has_path

__all__ = ["Layout", "Structure", "contributing", "inspect"]

Run = Callable[..., Any]


@dataclass(frozen=True)
class Layout:
    """How the value of a latent site lies in iwbounds, ``(K, *batch, *rest)``, and in Pyro, ``(K, *plates, *event)``.

    >>> Layout((3, 4, 5), event_dim=1, batch=(-1,)).outward(torch.zeros(2, 3, 4, 5), vectorized=True, nesting=2).shape
    torch.Size([2, 4, 3, 5])
    """

    shape: tuple[int, ...]
    """Of one value, as Pyro has it without the axis of samples: the plates down to the outermost it lies in, event."""
    event_dim: int
    batch: tuple[int, ...]
    """The dims (counted from the right, below 0) of the plates that are batch axes."""

    @property
    def visible_shape(self) -> tuple[int, ...]:
        """Of one sample, ``(*batch, *rest)``."""
        # On the meta device: a shape to follow, without memory.
        return tuple(self.outward(torch.empty(self.shape, device="meta"), vectorized=False, nesting=0).shape)

    @property
    def _depth(self) -> int:
        return len(self.shape) - self.event_dim

    def outward(self, value: Tensor, vectorized: bool, nesting: int) -> Tensor:
        """From Pyro to iwbounds: axes of plates that the site is not in are dropped, batch axes come first."""
        first = int(vectorized)
        if vectorized and nesting > self._depth:
            # Reshaped by name: squeeze would also drop a plate of size 1 that the site does lie in.
            # Behind the samples' plate Pyro puts axes of size 1 for plates that the site is not in.
            value = value.reshape(value.shape[:1] + value.shape[1 + nesting - self._depth :])
        return value.movedim(self._axes(first), tuple(range(first, first + len(self.batch))))

    def inward(self, z: Tensor, vectorized: bool, nesting: int) -> Tensor:
        """From iwbounds to Pyro: :meth:`outward` undone.

        The result is never the very tensor that the guide drew: a flow would know it, and take its inverse from a cache
        whose derivative is that along the path, not at fixed parameters.
        """
        first = int(vectorized)
        z = z.movedim(tuple(range(first, first + len(self.batch))), self._axes(first))
        if vectorized and nesting > self._depth:
            z = z.reshape(z.shape[:1] + (1,) * (nesting - self._depth) + z.shape[1:])
        return z

    def _axes(self, first: int) -> tuple[int, ...]:
        return tuple(first + self._depth + dim for dim in self.batch)


@dataclass(frozen=True)
class Structure:
    """What is the same in every run of a model and its guide on the same data."""

    layouts: dict[str, Layout]
    """Of the latent sites, by name."""
    nesting: int
    """How many axes, counted from the right, plates take; the axis of samples is the next one to the left."""
    batch: dict[tuple[str, int], int]
    """The plates, by name and dim, that every site lies in, and their sizes; outermost first."""
    subsamples: dict[str, Tensor]
    """The indices that subsampled plates have drawn: the mini-batch, which every later run must see again."""
    reparameterized: dict[str, bool] | bool
    fixed_support: bool
    automatic: Automatic
    """What of the latents automatic guides draw; nothing, for other guides."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.batch.values())

    def excess_scale(self, site: dict[str, Any]) -> Any:
        """The site's scale beyond that of the batch axes, where a mini-batch is no more than fewer rows."""
        scale = site["scale"]
        for frame in site["cond_indep_stack"]:
            if (frame.name, frame.dim) in self.batch:
                scale = scale / (frame.full_size / frame.size)
        return scale

    def log_density(self, site: dict[str, Any], count: int | None) -> Tensor:
        """Of one site, ``(count, *batch)`` or, of a single sample (None), ``(*batch)``: summed over all other plates.

        Raises:
            ValueError: it has axes that no plate declares.
        """
        scale_and_mask = optional("pyro.distributions.util", "pyro").scale_and_mask
        log_p: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        # Pyro's own: it also takes the mask that poutine.mask has left at the site.
        log_p = scale_and_mask(log_p, self.excess_scale(site), site["mask"])
        sizes = {frame.dim: frame.size for frame in _plates(site)}
        shape = ([] if count is None else [count]) + [sizes.get(dim, 1) for dim in range(-self.nesting, 0)]
        try:
            log_p = log_p.expand(shape)
        except RuntimeError as undeclared:
            raise ValueError(
                f"expected site {site['name']!r} to have a log-density of shape {tuple(shape)}, "
                f"{'its plates' if count is None else 'the samples and its plates'}; got {tuple(log_p.shape)}. Declare "
                "an axis of independent rows by pyro.plate, make it one of the event by .to_event(…), and count axes "
                "of data from the right, as the samples have one in front; or say vectorize=False."
            ) from undeclared
        # What is conditionally independent given a shared latent multiplies inside the weight: logs add.
        summed = [dim for dim in range(-self.nesting, 0) if dim not in {dim for _, dim in self.batch}]
        return log_p.sum(summed) if summed else log_p


def inspect(model: Run, guide: Run, args: Any, kwargs: Any, scaled_likelihood: bool) -> Structure:
    """Run the guide, and the model on what it draws, once.

    Raises:
        ValueError: the two have different latent sites; a site has a scale that may not enter a logarithm.
        TypeError: the guide has a site without a density.
    """
    poutine = optional("pyro.poutine", "pyro")
    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    # The model at the guide's draws, so that both traces speak of the same sites and sizes.
    scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    q = dict(contributing(drawn))
    p = dict(contributing(scored))
    latent = [name for name, site in p.items() if not site["is_observed"]]
    auxiliary = [name for name, site in q.items() if site["infer"].get("is_auxiliary") and name not in p]
    _check_sites(latent, q, auxiliary)
    automatic = automatic_sites(guide, auxiliary, {name: p[name] for name in latent})
    _check_points([name for name in latent if name not in automatic.latents and _is_point(q[name]["fn"])])
    batch = _batch(p, q)
    dims = tuple(dim for _, dim in batch)
    drawn_from = [q[name]["fn"] for name in [*auxiliary, *latent] if name not in automatic.latents]
    # An automatic guide's auxiliary sites are Gaussians, or flows of them, and its maps are smooth.
    paths = {name: name in automatic.latents or has_path(q[name]["fn"]) for name in latent}
    structure = Structure(
        {name: Layout(tuple(q[name]["value"].shape), q[name]["fn"].event_dim, dims) for name in latent},
        max((-frame.dim for site in [*p.values(), *q.values()] for frame in _plates(site)), default=0),
        batch,
        {name: node["value"] for trace in (scored, drawn) for name, node in _subsamples(trace)},
        # One boolean where it can be had: the engine then need not keep the parts' densities apart.
        all(paths.values()) if len(set(paths.values())) == 1 else paths,
        not any(map(has_moving_support, drawn_from)),
        automatic,
    )
    _check_scales(structure, p, q, scaled_likelihood)
    for site in [*q.values(), *p.values()]:
        # An axis that no plate declares, and that has as many rows as there are samples, would later pass for theirs.
        structure.log_density(site, None)
    return structure


def contributing(trace: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sites that have a log-density: no parameters, no indices of mini-batches, nothing ``pyro.deterministic``."""
    is_subsample = optional("pyro.poutine.util", "pyro").site_is_subsample
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_subsample(site) and not site["infer"].get("_deterministic"):
            yield name, site


def _subsamples(trace: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    is_subsample = optional("pyro.poutine.util", "pyro").site_is_subsample
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample" and is_subsample(site))


def _plates(site: dict[str, Any]) -> list[Any]:
    """The frames of vectorised plates; a plate that is iterated over (no dim) has a site of its own for each row."""
    return [frame for frame in site["cond_indep_stack"] if frame.dim is not None]


def _batch(p: dict[str, Any], q: dict[str, Any]) -> dict[tuple[str, int], int]:
    """The plates of every site, outermost first. Those of the guide are known by the names they have in the model."""
    of_sites = [{(f.name, f.dim): f.size for f in _plates(site)} for site in [*p.values(), *q.values()]]
    first, *others = of_sites
    common = {plate: size for plate, size in first.items() if all(plate in other for other in others)}
    # By dim, from the left: −2 is outside of −1, and the order of the batch axes is the order of the plates.
    return dict(sorted(common.items(), key=lambda plate: plate[0][1]))


def _check_sites(latent: list[str], q: dict[str, Any], auxiliary: list[str]) -> None:
    if not latent:
        raise ValueError("expected a model with a latent pyro.sample site; every one it has is observed.")
    alone = [name for name in latent if name not in q]
    if alone:
        raise ValueError(
            f"expected the guide to draw every latent site of the model; it does not draw {alone}. Draw them there, or "
            "sum them out of the model's density (sites that Pyro would enumerate too)."
        )
    observed = [name for name, site in q.items() if site["is_observed"]]
    other = [name for name in q if name not in latent and name not in auxiliary]
    if observed or other:
        raise ValueError(
            f"expected the guide to have no sites but the model's latent ones, {latent}; got {observed or other} too. "
            "Take observations and pyro.factor out of it; for auxiliary variables, use iwbounds.HierarchicalProposal."
        )


def _check_points(points: list[str]) -> None:
    if points:
        raise TypeError(
            f"expected sites with a density in the guide; {points} are points (Delta), and a density at a point is no "
            "bound of the evidence. Give them a distribution with a width, or fix them in the model as parameters."
        )


def _is_point(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    # By name, and inside of Independent and transforms: Pyro is imported in calls alone.
    return type(distribution).__name__ == "Delta"


def _check_scales(structure: Structure, p: dict[str, Any], q: dict[str, Any], scaled_likelihood: bool) -> None:
    """A scale times log p inside log mean exp is a power of p, whose mean over mini-batches is not the evidence."""
    for where, sites in (("guide", q), ("model", p)):
        for name, site in sites.items():
            scale = torch.as_tensor(structure.excess_scale(site), dtype=torch.float64)
            # Quotients of sizes, multiplied and divided again: 1 but for rounding.
            if bool(torch.isclose(scale, torch.ones_like(scale), rtol=1e-6).all()):
                continue
            if where == "model" and site["is_observed"] and scaled_likelihood:
                continue
            raise ValueError(
                f"expected no scale inside the logarithm of a bound; site {name!r} of the {where} is scaled by "
                f"{scale.flatten()[0].item():.4g} (a subsampled plate beside global latents, or poutine.scale). "
                + _advice(where, site)
            )


def _advice(where: str, site: dict[str, Any]) -> str:
    if where == "model" and site["is_observed"]:
        return (
            "Use all the data; or say scaled_likelihood=True here and to iwbounds.estimate, with bound=ELBO(): any "
            "other bound of a scaled likelihood exceeds the evidence."
        )
    return (
        "Only the likelihood of global latents may be scaled. Use all the data, or put every latent into the plate; "
        "for a weight on the KL term, see the how-to on it."
    )
