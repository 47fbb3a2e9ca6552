"""Hypothesis strategies: log-weights that hurt, plates whose axes cannot be confused, models of exact evidence.

Importing this module needs hypothesis (the extra ``iwbounds[testing]``); the rest of the kit does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal

from iwbounds.testing.models import FiniteModel, GaussianModel

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "iwbounds.testing.strategies needs hypothesis: pip install 'iwbounds[testing]'. The assertions do not need it."
    ) from error

__all__ = [
    "HierarchicalCase",
    "PlateShape",
    "finite_models",
    "gaussian_models",
    "hierarchical_proposals",
    "log_weights",
    "plate_shapes",
    "seeds",
]

# 700 is where exp leaves float64; at 1e5 float32 keeps two digits after the point.
_SCALES = (0.0, 1e-8, 1e-3, 1.0, 10.0, 700.0, 1e5)
_SHIFTS = (0.0, -1.0, 1234.5, -1e6)


class PlateShape(NamedTuple):
    """The sizes of the three kinds of axes of latents ``(K, *batch, *event)``, all different."""

    num_samples: int
    batch: tuple[int, ...]
    event: tuple[int, ...]


class HierarchicalCase(NamedTuple):
    """A hierarchical proposal q(z) = ∫ conditional(z | psi) mixing(psi) dpsi, and the marginal it has exactly."""

    mixing: Distribution
    conditional: Callable[[Tensor], Distribution]
    marginal: Distribution


def seeds() -> st.SearchStrategy[int]:
    """Seeds for torch's generators. Shrinks towards 0."""
    return st.integers(0, 2**31 - 1)


@st.composite
def log_weights(
    draw: st.DrawFn,
    min_samples: int = 1,
    max_samples: int = 9,
    batch: tuple[int, ...] = (3,),
    infinities: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Log-weights ``(K, *batch)``: spreads from 0 to 1e5, offsets to 1e6, ties, dead weights, dead data.

    Args:
        min_samples: smallest K.
        max_samples: largest K.
        batch: the batch shape.
        infinities: whether −inf may occur: alone, among others, or throughout a datum.
        dtype: of the result.

    >>> from hypothesis import given, settings
    >>> @settings(max_examples=5, derandomize=True)
    ... @given(log_weights(min_samples=2))
    ... def test(log_w): assert log_w.shape[0] >= 2 and not log_w.isnan().any()
    >>> test()
    """
    shape = (draw(st.integers(min_samples, max_samples)), *batch)
    generator = torch.Generator().manual_seed(draw(seeds()))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        # Ties, which continuous numbers never have.
        noise = noise.round()
    # Numbers from torch's generator, not from hypothesis: it shrinks a seed and five choices, not hundreds of floats.
    log_w = draw(st.sampled_from(_SHIFTS)) + draw(st.sampled_from(_SCALES)) * noise
    share = draw(st.sampled_from((0.0, 0.2, 0.8, 1.0))) if infinities else 0.0
    dead = torch.rand(shape, generator=generator) < share
    return log_w.masked_fill(dead, -torch.inf).to(dtype)


@st.composite
def plate_shapes(draw: st.DrawFn, max_batch_dims: int = 2, max_event_dims: int = 2) -> PlateShape:
    """Shapes in which no two axes have the same size, and none has size 1: a confused axis cannot go unnoticed.

    >>> from hypothesis import find
    >>> find(plate_shapes(), lambda shape: len(shape.batch) == 2).num_samples > 1
    True
    """
    batch_dims, event_dims = draw(st.integers(0, max_batch_dims)), draw(st.integers(0, max_event_dims))
    count = 1 + batch_dims + event_dims
    # From 2: an axis of size 1 broadcasts, and would hide the very mistake that this is for.
    sizes = draw(st.lists(st.integers(2, 2 + 2 * count), min_size=count, max_size=count, unique=True))
    return PlateShape(sizes[0], tuple(sizes[1 : 1 + batch_dims]), tuple(sizes[1 + batch_dims :]))


@st.composite
def gaussian_models(draw: st.DrawFn, max_observed: int = 3, max_latent: int = 2) -> GaussianModel:
    """Conjugate linear-Gaussian models in float64, of exact evidence and posterior."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    shape = (draw(st.integers(1, max_observed)), draw(st.integers(1, max_latent)))
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    offset = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return GaussianModel(weight, offset, noise=draw(st.sampled_from((0.3, 1.0, 3.0))))


@st.composite
def finite_models(draw: st.DrawFn, max_latent: int = 4, max_observed: int = 5) -> FiniteModel:
    """Models with one categorical latent, in float64: evidence and every expectation are finite sums."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    latent, observed = draw(st.integers(2, max_latent)), draw(st.integers(2, max_observed))
    return FiniteModel(
        torch.randn(latent, generator=generator, dtype=torch.float64),
        torch.randn(latent, observed, generator=generator, dtype=torch.float64),
    )


@st.composite
def hierarchical_proposals(draw: st.DrawFn) -> HierarchicalCase:
    """Hierarchies with an exact marginal: a Gaussian mixed over its mean, or a finite mixture of Gaussians.

    ``iw.HierarchicalProposal(mixing, conditional, num_aux=…)`` takes the first two as they are.
    """
    spread, width = draw(st.sampled_from((0.3, 1.0, 3.0))), draw(st.sampled_from((0.2, 1.0)))
    if draw(st.booleans()):
        zero = torch.zeros((), dtype=torch.float64)
        # Normal mixed over a Normal mean: the variances add up.
        marginal = Normal(zero, math.hypot(spread, width))
        return HierarchicalCase(Normal(zero, spread), lambda psi: Normal(psi, width), marginal)
    generator = torch.Generator().manual_seed(draw(seeds()))
    means = spread * torch.randn(draw(st.integers(2, 4)), generator=generator, dtype=torch.float64)
    mixing = Categorical(logits=torch.randn(means.shape, generator=generator, dtype=torch.float64))
    components = Normal(means, width)
    return HierarchicalCase(mixing, lambda psi: Normal(means[psi], width), MixtureSameFamily(mixing, components))
