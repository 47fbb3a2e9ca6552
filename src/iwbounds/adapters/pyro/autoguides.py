"""Pyro's automatic guides: from the values of the model's latent sites back to what the guide has drawn.

``AutoNormal`` and ``AutoContinuous`` (its subclasses: ``AutoMultivariateNormal``, ``AutoIAFNormal``, …) draw
unconstrained auxiliary sites, and give each latent site as a point, Delta(T(u)), with log |∂T⁻¹/∂z| as its density. To
evaluate log q at given z, such as posterior draws, the auxiliary sites are set to u = T⁻¹(z) and the guide is run; its
densities then add up to log q(u) + log |∂T⁻¹/∂z| = log q(z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from iwbounds.adapters.optional import optional

__all__ = ["Automatic", "automatic_sites"]

Pack: TypeAlias = Callable[[dict[str, Tensor], tuple[int, ...]], dict[str, Tensor]]


class Automatic(NamedTuple):
    """The latent sites that automatic guides draw, and how."""

    latents: frozenset[str]
    """Given as points by the guide, made of its auxiliary sites. What else there is, it draws from a distribution."""
    pack: Pack
    """From values of these in Pyro's layout, and the shape in front of a flat vector, to those of auxiliary sites."""


_SUFFIX = "_unconstrained"


def automatic_sites(guide: Any, auxiliary: list[str], latent: dict[str, Any]) -> Automatic:
    """What sets the auxiliary sites of automatic guides from the values of the ``latent`` sites of the model.

    Raises:
        TypeError: auxiliary sites that no automatic guide is known to have drawn.
    """
    flat = {name: found for name in auxiliary if (found := _flat_guide(guide, name)) is not None}
    # AutoNormal draws a site of its own for each latent one, and calls it after that.
    single = {name: name.removesuffix(_SUFFIX) for name in auxiliary if name not in flat}
    # Their own prototypes, in whose order they take their vectors apart.
    prototypes = {name: dict(auto.prototype_trace.iter_stochastic_nodes()) for name, auto in flat.items()}
    unknown = [name for name, of in single.items() if of not in latent or not name.endswith(_SUFFIX)]
    if unknown:
        raise TypeError(
            "expected a guide whose density can be evaluated at given latents; it draws them through auxiliary sites, "
            f"{unknown}, and is none of Pyro's AutoNormal, AutoContinuous and AutoGuideList. Draw the latent sites "
            "from distributions, or use iwbounds.HierarchicalProposal."
        )

    def pack(values: dict[str, Tensor], lead: tuple[int, ...]) -> dict[str, Tensor]:
        packed = {name: _unconstrained(latent[of], values[of]) for name, of in single.items()}
        for name, sites in prototypes.items():
            parts = [_unconstrained(site, values[of]).reshape(*lead, -1) for of, site in sites.items()]
            packed[name] = torch.cat(parts, -1)
        return packed

    return Automatic(frozenset(single.values()).union(*prototypes.values()), pack)


def _flat_guide(guide: Any, name: str) -> Any:
    """The guide, or the part of it, that draws all its latents as the one vector ``name``."""
    automatic = optional("pyro.infer.autoguide", "pyro").AutoContinuous
    modules = guide.modules() if isinstance(guide, torch.nn.Module) else ()
    # Pyro's own rule for the name of the vector's site; parts of an AutoGuideList are modules of it.
    return next((m for m in modules if isinstance(m, automatic) and name == f"_{m._pyro_name}_latent"), None)


def _unconstrained(site: dict[str, Any], value: Tensor) -> Tensor:
    u: Tensor = torch.distributions.biject_to(site["fn"].support).inv(value)
    return u
