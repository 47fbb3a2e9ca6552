"""A torch ``Distribution`` with its parameters held fixed: the same density, in no graph but that of its argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, distributions
from torch.distributions import Distribution, Independent

__all__ = ["fixed_log_prob", "with_fixed_parameters"]

_MADE_OF_TENSORS = {
    distributions.Beta,
    distributions.Cauchy,
    distributions.Chi2,
    distributions.Dirichlet,
    distributions.Exponential,
    distributions.FisherSnedecor,
    distributions.Gamma,
    distributions.Laplace,
    distributions.LowRankMultivariateNormal,
    distributions.MultivariateNormal,
    distributions.Normal,
    distributions.StudentT,
}
"""Distributions whose attributes are tensors, numbers, and others of these."""


def fixed_log_prob(distribution: Distribution) -> Callable[[Tensor], Tensor] | None:
    """``distribution.log_prob`` with detached parameters (made when it is called); None where it cannot be had."""
    if not _known(distribution):
        return None
    return lambda latents: with_fixed_parameters(distribution).log_prob(latents)


def with_fixed_parameters(distribution: Distribution) -> Distribution:
    """A copy whose tensors are detached; ``distribution`` must be known to be made of them.

    >>> import torch
    >>> loc = torch.zeros(2, requires_grad=True)
    >>> with_fixed_parameters(torch.distributions.Normal(loc, 1.0)).loc.requires_grad
    False
    """
    copy: Distribution = object.__new__(type(distribution))
    vars(copy).update({name: _fixed(value) for name, value in vars(distribution).items()})
    return copy


def _fixed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return with_fixed_parameters(value) if isinstance(value, Distribution) else value


def _known(distribution: Distribution) -> bool:
    """Whether all that the density depends on is in plain sight, in the attributes of one of PyTorch's own classes.

    Other classes may keep it anywhere, and transforms and modules hold parameters of their own.
    """
    if type(distribution) is Independent:
        return _known(distribution.base_dist)
    return type(distribution) in _MADE_OF_TENSORS
