"""A log-joint whose prior can be seen, and the prior's own way from noise to latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, Independent, TransformedDistribution

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.proposals.base import LogJoint
from iwbounds.proposals.distributions import has_inverse, has_moving_support, requires_grad

__all__ = ["PriorAndLikelihood", "retraced"]

Prior: TypeAlias = Any
"""A ``Distribution``, a callable from all latents to one, or a tuple or dict of such that mirrors the latents."""


@final
class PriorAndLikelihood:
    r"""The log-joint :math:`\log p_\eta(z) + \log p(x|z)`, with its prior in sight, as :class:`iwbounds.GDReG` needs.

    Any other gradient takes it for the plain log-joint that it is.

    Args:
        prior: of a latent tensor, a ``Distribution`` whose ``log_prob`` gives ``(K, *batch)`` nats. Of a tuple or dict
            of latents, one that mirrors it: for each part a ``Distribution``, or a callable from *all* latents to the
            distribution of this part given others.
        log_likelihood: latents to ``(K, *batch)`` nats of log p(x | z).

    Raises:
        TypeError: a prior that is neither.
        ValueError: on use, parts that are not those of the latents, or log-densities of another shape.

    >>> from torch.distributions import Normal
    >>> layers = (lambda z: Normal(z[1], 1.0), Normal(0.0, 1.0))
    >>> joint = PriorAndLikelihood(layers, lambda z: Normal(z[0], 1.0).log_prob(torch.zeros(3)))
    >>> joint((torch.zeros(5, 3), torch.zeros(5, 3))).shape
    torch.Size([5, 3])
    """

    def __init__(self, prior: Prior, log_likelihood: LogJoint) -> None:
        for part in [*latent_leaves(prior), log_likelihood]:
            if not callable(part) and (part is log_likelihood or not isinstance(part, Distribution)):
                raise TypeError(
                    "expected a torch Distribution as the prior, or a callable from latents to one (a tuple or dict of "
                    f"such where there are several latents), and a callable log-likelihood; got {type(part).__name__}."
                )
        self.prior, self.log_likelihood = prior, log_likelihood

    def __call__(self, latents: Latents) -> Tensor:
        total = self.log_likelihood(latents)
        for prior, z in zip(self.priors(latents), latent_leaves(latents), strict=True):
            total = total + checked_like(prior.log_prob(z), total)
        return total

    def priors(self, latents: Latents) -> list[Distribution]:
        """The prior of each part, given these latents."""
        found: list[Distribution] = []
        if _structure(self.prior) != _structure(latents):
            raise ValueError(
                f"expected a prior for each part of the latents, {_structure(latents)}; got {_structure(self.prior)}. "
                "Give PriorAndLikelihood a tuple or dict that mirrors what the proposal draws."
            )
        # The latents lead the walk, so that a dict of priors is matched by key, in the latents' order.
        map_latents(lambda _, prior: found.append(_distribution(prior, latents)), latents, self.prior)
        return found


def checked_like(log_prior: Tensor, log_likelihood: Tensor) -> Tensor:
    """``log_prior``, known to be of the likelihood's shape: nothing is broadcast."""
    if log_prior.shape != log_likelihood.shape:
        raise ValueError(
            f"expected the prior's log_prob and log_likelihood to give one shape, (num_samples, *batch); got "
            f"{tuple(log_prior.shape)} and {tuple(log_likelihood.shape)}. Sum over event dimensions (Independent)."
        )
    return log_prior


def _distribution(prior: Distribution | Callable[[Latents], Distribution], latents: Latents) -> Distribution:
    found = prior if isinstance(prior, Distribution) else prior(latents)
    if not isinstance(found, Distribution):
        raise TypeError(f"expected the prior to give a torch Distribution; got {type(found).__name__}.")
    return found


def _structure(parts: Any) -> str:
    """How tensors, or priors, nest: the same words for the same nesting."""
    if isinstance(parts, dict):
        # Sorted: two dicts of the same parts nest alike, in whatever order they list them.
        return "{" + ", ".join(f"{key}: {_structure(parts[key])}" for key in sorted(parts, key=str)) + "}"
    if isinstance(parts, tuple | list):
        return "(" + ", ".join(map(_structure, parts)) + ")"
    return "one"


# From noise to latents.


def retraced(prior: Distribution, z: Tensor) -> Tensor | None:
    """z once more, as the function T_η of the prior's parameters at the noise that gives it, held fixed.

    None where the prior has nothing to train.

    Raises:
        ValueError: it has, and its support moves, or it is no invertible map of its noise.
    """
    if not requires_grad(prior):
        _refuse_hidden(prior, z)
        return None
    if has_moving_support(prior):
        raise ValueError(
            f"GDReG() needs a prior of a fixed support; that of {type(prior).__name__} moves with its parameters, and "
            "the boundary's term would be missing. Use DReG(): what the model's parameters do is no matter to it."
        )
    return _retraced(prior, z.detach())


def _retraced(prior: Distribution, z: Tensor) -> Tensor:
    if type(prior) is Independent:
        return _retraced(prior.base_dist, z)
    if isinstance(prior, _LOCATION_SCALE):
        # The noise is held fixed, hence detached parameters here; they are live in the way back to z.
        noise = (z - prior.loc.detach()) / prior.scale.detach()
        return prior.loc + prior.scale * noise
    if type(prior) is distributions.Exponential:
        # T(ε) = ε/rate with ε = z · rate.
        return z * prior.rate.detach() / prior.rate
    if type(prior) is distributions.MultivariateNormal:
        factor = prior.scale_tril
        noise = torch.linalg.solve_triangular(factor.detach(), (z - prior.loc.detach()).unsqueeze(-1), upper=False)
        moved: Tensor = prior.loc + (factor @ noise).squeeze(-1)
        return moved
    if isinstance(prior, TransformedDistribution) and has_inverse(prior):
        return _through_transforms(prior, z)
    if not requires_grad(prior):
        return z
    raise ValueError(
        f"GDReG() needs a prior that is an invertible map of its noise: Normal, MultivariateNormal, Laplace, Cauchy, "
        f"Exponential, Independent, or a TransformedDistribution of those with inverses (and no cache); got "
        f"{type(prior).__name__}. Use DReG()."
    )


_LOCATION_SCALE = (distributions.Normal, distributions.Laplace, distributions.Cauchy)


def _through_transforms(prior: TransformedDistribution, z: Tensor) -> Tensor:
    with torch.no_grad():
        base = z
        for transform in reversed(prior.transforms):
            # Under no_grad: this is where the noise is found, and the noise is no function of the parameters.
            base = transform.inv(base)
    # From the base's own noise where the base is learned, and then through the live transforms.
    moved = _retraced(prior.base_dist, base) if requires_grad(prior.base_dist) else base
    for transform in prior.transforms:
        moved = transform(moved)
    return moved


def _refuse_hidden(prior: Distribution, z: Tensor) -> None:
    """Raise for a class not of PyTorch whose density has parameters that its attributes do not show."""
    if type(prior).__module__.startswith("torch.distributions"):
        return
    # Asked by evaluation: a class of another library may keep its parameters anywhere.
    if prior.log_prob(z.detach()).requires_grad:
        raise ValueError(
            f"GDReG() needs a prior whose parameters it can see; {type(prior).__name__} keeps them out of its "
            "attributes. Use DReG()."
        )
