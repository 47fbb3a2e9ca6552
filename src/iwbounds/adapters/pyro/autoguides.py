"""Pyro's automatic guides: from the values of the model's latent sites back to what the guide has drawn.

``AutoNormal`` and ``AutoContinuous`` (its subclasses: ``AutoMultivariateNormal``, ``AutoIAFNormal``, …) draw
unconstrained auxiliary sites, and give each latent site as a point, Delta(T(u)), with log |∂T⁻¹/∂z| as its density. To
evaluate log q at given z, such as posterior draws, the auxiliary sites are set to u = T⁻¹(z) and the guide is run; its
densities then add up to log q(u) + log |∂T⁻¹/∂z| = log q(z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from iwbounds.adapters.optional import optional

__all__ = ["Pack", "pack_for"]

Pack: TypeAlias = Callable[[dict[str, Tensor], tuple[int, ...]], dict[str, Tensor]]
"""From values in Pyro's layout, and the shape in front of a flat vector of all, to values of auxiliary sites."""

_SUFFIX = "_unconstrained"


def pack_for(guide: Any, auxiliary: list[str], latent: dict[str, Any]) -> Pack:
    """What sets the auxiliary sites of an automatic guide from the values of the ``latent`` sites of the model.

    Raises:
        TypeError: auxiliary sites that no automatic guide is known to have drawn.
    """
    flat = {name: found for name in auxiliary if (found := _flat_guide(guide, name)) is not None}
    single = {name: name.removesuffix(_SUFFIX) for name in auxiliary if name not in flat}
    unknown = [name for name, of in single.items() if of not in latent or not name.endswith(_SUFFIX)]
    if unknown:
        raise TypeError(
            "expected a guide whose density can be evaluated at given latents; it draws them through auxiliary sites, "
            f"{unknown}, and is none of Pyro's AutoNormal, AutoContinuous and AutoGuideList. Draw the latent sites "
            "from distributions, or use iwbounds.HierarchicalProposal."
        )

    def pack(values: dict[str, Tensor], lead: tuple[int, ...]) -> dict[str, Tensor]:
        packed = {name: _unconstrained(latent[of], values[of]) for name, of in single.items()}
        for name, auto in flat.items():
            # In the order of the prototype, which is that in which the guide takes its vector apart.
            sites = dict(auto.prototype_trace.iter_stochastic_nodes())
            parts = [_unconstrained(site, values[of]).reshape(*lead, -1) for of, site in sites.items()]
            packed[name] = torch.cat(parts, -1)
        return packed

    return pack


def _flat_guide(guide: Any, name: str) -> Any:
    """The guide, or the part of it, that draws all its latents as the one vector ``name``."""
    automatic = optional("pyro.infer.autoguide", "pyro").AutoContinuous
    modules = guide.modules() if isinstance(guide, torch.nn.Module) else ()
    return next((m for m in modules if isinstance(m, automatic) and name == f"_{m._pyro_name}_latent"), None)


def _unconstrained(site: dict[str, Any], value: Tensor) -> Tensor:
    u: Tensor = torch.distributions.biject_to(site["fn"].support).inv(value)
    return u
