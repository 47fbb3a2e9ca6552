"""A torch ``Distribution`` as a proposal: what an estimator may assume of it, and its density with fixed parameters.

Three of PyTorch's promises do not hold for every class. ``has_rsample`` is also said of straight-through samples, whose
path is no derivative. The support may move with the parameters (``Uniform``, ``Pareto``, affine maps of a bounded
base), which adds a boundary term to the gradient of an expectation. A transform with a cache, or without an inverse,
evaluates the density of its own last sample and of nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, distributions, nn
from torch.distributions import (
    Distribution,
    Independent,
    Transform,
    TransformedDistribution,
    constraints,
    transforms,
)

from iwbounds.proposals.base import ExtendedProposal, Proposal

__all__ = [
    "as_proposal",
    "has_inverse",
    "has_moving_support",
    "has_path",
    "requires_grad",
    "with_fixed_parameters",
]


def as_proposal(proposal: Any) -> Proposal | ExtendedProposal:
    """The engine's view of whatever a user may pass as a proposal.

    Raises:
        TypeError: neither a torch ``Distribution`` nor a :class:`Proposal` nor an :class:`ExtendedProposal`.
    """
    if isinstance(proposal, Proposal | ExtendedProposal):
        return proposal
    if isinstance(proposal, Distribution):
        return _from_distribution(proposal)
    advice = "Wrap its two callables: iwbounds.Proposal(sample=…, log_prob=…)."
    if isinstance(proposal, type):
        advice = f"Make an instance of it: {proposal.__name__}(…)."
    elif isinstance(proposal, nn.Module):
        # A lazy distribution of zuko is a module: calling it, with a context or without, makes the distribution.
        advice = (
            f"Call the module, and pass the distribution that it returns: {type(proposal).__name__}(…)(context), or "
            f"(…)() where there is none. If it is the log-joint, it comes first. {advice}"
        )
    elif callable(proposal):
        advice = f"log_joint comes first, then proposal: were they swapped? {advice}"
    raise TypeError(
        "expected proposal to be a torch Distribution, an iwbounds.Proposal or an iwbounds.HierarchicalProposal; "
        f"got {getattr(proposal, '__name__', type(proposal).__name__)}. {advice}"
    )


def _from_distribution(distribution: Distribution) -> Proposal:
    if is_plain(distribution):  # first, as it is what a training step nearly always meets, and answers all questions
        return _plain_proposal(distribution)
    name = type(distribution).__name__
    _refuse_no_density(distribution)
    distribution = without_needless_cache(distribution)
    inverse = has_inverse(distribution)
    return Proposal(
        # rsample also where it is no path (straight-through): the samples are the same, and reparameterized says the
        # rest.
        distribution.rsample if distribution.has_rsample else distribution.sample,
        distribution.log_prob,
        has_path(distribution),
        name,
        _samples_per_call(distribution),
        fixed_support=not has_moving_support(distribution),
        needs_own_samples=not inverse or _rounds_its_samples(distribution),
        total_derivative_only=not inverse and requires_grad(distribution),
        batch_shape=tuple(distribution.batch_shape),
    )


def _plain_proposal(distribution: Distribution) -> Proposal:
    """Of a class of fixed support, with a path, without transforms; its copy with detached parameters can be had."""
    return Proposal(
        distribution.rsample,
        distribution.log_prob,
        name=type(distribution).__name__,
        samples_per_call=_samples_per_call(distribution),
        # A copy is made when it is asked for: gradients that need none, and no_grad, do not pay for it.
        fixed_log_prob=lambda latents: with_fixed_parameters(distribution).log_prob(latents),
        batch_shape=distribution.batch_shape,
    )


def _samples_per_call(distribution: Distribution) -> int:
    """As many samples as have about a million elements (4 MB of float32), in multiples of 16."""
    # In multiples of 16, as torch's vectorised normal generator fills 16 numbers at a time, and blocks of other sizes
    # would not continue one sequence. (Other libraries have classes whose shapes are plain tuples, or lists.)
    elements: int = math.prod((*distribution.batch_shape, *distribution.event_shape))
    return max(16, 2**20 // max(1, elements) // 16 * 16)


_PLAIN = {
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
"""Classes of a fixed support whose attributes are tensors, numbers, and others of these: nothing is hidden."""

_PRECISE_INVERSES = (
    transforms.AffineTransform,
    transforms.ComposeTransform,
    transforms.ExpTransform,
    transforms.IndependentTransform,
    transforms.ReshapeTransform,
)
"""Transforms, and compositions of such, whose inverse loses no more than rounding."""


def is_plain(distribution: Distribution) -> bool:
    """Whether all that the density depends on is in plain sight, in the attributes of one of PyTorch's own classes.

    Other classes may keep it anywhere, and transforms and modules hold parameters of their own.
    """
    while type(distribution) is Independent:
        distribution = distribution.base_dist
    return type(distribution) in _PLAIN


def with_fixed_parameters(distribution: Distribution) -> Distribution:
    """A copy whose tensors are detached; ``distribution`` must be known to be made of them.

    >>> import torch
    >>> loc = torch.zeros(2, requires_grad=True)
    >>> with_fixed_parameters(torch.distributions.Normal(loc, 1.0)).loc.requires_grad
    False
    """
    # Not through the constructor, which would validate and broadcast once more, and may derive what it was not given.
    copy: Distribution = object.__new__(type(distribution))
    vars(copy).update({name: _fixed(value) for name, value in vars(distribution).items()})
    return copy


def _fixed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return with_fixed_parameters(value) if isinstance(value, Distribution) else value


def has_path(distribution: Distribution) -> bool:
    """Whether the derivative of ``rsample`` is that of the samples: not so for straight-through estimators.

    They are told by their discrete support, or by their name (Pyro's relaxed ones round a sample of the relaxed class
    and inherit its support).
    """
    if not distribution.has_rsample:
        return False
    if is_plain(distribution):
        return True
    # Wishart takes its draws for singular ones and mends them in place, after which autograd refuses their backward.
    if isinstance(distribution, distributions.Wishart):
        return False
    layers = list(_layers(distribution))
    # Flows and products of zuko say True whatever they are made of; a rejection sampler's path leaves out the choice.
    if any(not layer.has_rsample or _is_named(layer, "StraightThrough", "Rejector") for layer in layers):
        return False
    return not any(_is_discrete(layer) for layer in layers)


def _is_named(distribution: Distribution, *names: str) -> bool:
    """Whether the class or one that it inherits from has such a name: other libraries are known, and not imported."""
    return any(name in base.__name__ for base in type(distribution).__mro__ for name in names)


def _rounds_its_samples(distribution: Distribution) -> bool:
    """Whether the density is that of a sample before it was rounded, which is kept as an attribute of the tensor."""
    return any(_is_named(layer, "StraightThrough") and _is_named(layer, "Relaxed") for layer in _layers(distribution))


def _refuse_no_density(distribution: Distribution) -> None:
    """Raise ValueError where ``log_prob`` is not the log-density of what is sampled: weights would mean nothing."""
    for layer in _layers(distribution):
        if _is_named(layer, "MaskedDistribution") and vars(layer).get("_mask") is not True:
            raise ValueError(
                f"expected a proposal whose log_prob is the log-density of its samples; {type(layer).__name__} gives 0 "
                "where it is masked. Pass its base_dist, and mask the log-joint, or what depends on the estimate."
            )
        if _is_named(layer, "Empirical", "GaussianScaleMixture"):
            raise ValueError(
                f"expected a proposal whose log_prob takes any number of samples; that of {type(layer).__name__} takes "
                "one alone. Use a Categorical over its values, or a MixtureSameFamily; or wrap callables of your own: "
                "iwbounds.Proposal(sample=…, log_prob=…)."
            )
        if isinstance(layer, distributions.LKJCholesky) and not _draws_its_rows_well(layer):
            raise ValueError(
                f"expected a proposal whose log_prob is the log-density of its samples; this version of PyTorch draws "
                f"{type(layer).__name__} of dimension {layer.dim} from another distribution (dimension 2 is right). "
                "Wrap a sampler of your own: iwbounds.Proposal(sample=…, log_prob=…)."
            )


def _draws_its_rows_well(distribution: distributions.LKJCholesky) -> bool:
    """Whether row i, of i entries beside the diagonal, has a squared length with the first Beta parameter i / 2."""
    first = distribution._beta.concentration1.detach().reshape(-1, distribution.dim)[0]
    return all(abs(float(first[row]) - row / 2) < 1e-3 for row in range(1, distribution.dim))


def _layers(distribution: Distribution) -> Iterator[Distribution]:
    """The distribution and those that it is made of, outermost first."""
    yield distribution
    for name, value in vars(distribution).items():
        # What is private helps to sample (a Categorical in a relaxed one), except for a mixture's components.
        if name.startswith("_") and name != "_component_distribution":
            continue
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, Distribution):
                yield from _layers(inner)


def _is_discrete(distribution: Distribution) -> bool:
    support = _support(distribution)
    return support is not None and bool(support.is_discrete)


def _support(distribution: Distribution) -> constraints.Constraint | None:
    """What the class says of its support; None where it says nothing (many third-party classes raise)."""
    try:
        support = distribution.support
    except (NotImplementedError, AttributeError, ValueError):
        return None
    return support if isinstance(support, constraints.Constraint) else None


def has_moving_support(distribution: Distribution) -> bool:
    """Whether the bounds of the support depend on something that requires grad."""
    if is_plain(distribution):
        return False
    if type(distribution).__name__ == "Delta":  # of Pyro: a single point, which is where its parameter is
        return requires_grad(vars(distribution))
    if isinstance(distribution, TransformedDistribution) and _inherits_support(distribution):
        return _image_moves(distribution)
    inner = [layer for layer in _layers(distribution) if layer is not distribution]
    support = _support(distribution)
    if support is not None and requires_grad(vars(support)):
        return True
    if support is None and _maps_a_bounded_base(distribution):
        return True
    # Independent and mixtures pass the support of what they are made of on, and so may what is silent about its own;
    # others are taken at their word.
    passed_on = support is None or isinstance(distribution, Independent | distributions.MixtureSameFamily)
    return passed_on and any(has_moving_support(layer) for layer in inner)


def _maps_a_bounded_base(distribution: Distribution) -> bool:
    """A flow (of zuko) over anything but the whole real line; where it ends is the transform's secret, so it moves."""
    base, transform = getattr(distribution, "base", None), getattr(distribution, "transform", None)
    if not (isinstance(base, Distribution) and isinstance(transform, Transform)):
        return False
    return not _covers_the_line(base)


def _covers_the_line(distribution: Distribution) -> bool:
    """Whether the support is the whole real line, or space; of a class that is silent, whether that of its parts is."""
    support = _support(distribution)
    if support is not None:
        return _kind(support) == _kind(constraints.real)
    parts = [layer for layer in _layers(distribution) if layer is not distribution]
    return bool(parts) and all(map(_covers_the_line, parts))


def _inherits_support(distribution: TransformedDistribution) -> bool:
    """Whether the class declares no support of its own, as ``Gumbel`` and ``LogNormal`` do."""
    return type(distribution).support is TransformedDistribution.support


def _image_moves(distribution: TransformedDistribution) -> bool:
    """Follow the support through the transforms.

    A transform maps its whole domain onto its codomain, whatever its parameters. A smaller set, such as the unit
    interval under an affine map, goes wherever the parameters send it. (A learned scale alone would leave (0, ∞) where
    it is; it counts as moving all the same, which costs no more than another default estimator.)
    """
    if has_moving_support(distribution.base_dist):
        return True
    reached = _support(distribution.base_dist)
    for transform in distribution.transforms:
        if reached is None or _kind(reached) != _kind(transform.domain):
            if requires_grad(transform):
                return True
            reached = None  # the image of a part of the domain has no name of its own
        else:
            reached = transform.codomain
            if requires_grad(vars(reached)):
                return True
    return False


def _kind(constraint: Any) -> tuple[Any, ...]:
    """What two constraints share that describe the same set, but for closed or open ends."""
    # How many axes are one event does not change the set of an element.
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    numbers = tuple(value for value in vars(constraint).values() if isinstance(value, int | float))
    # By name and bounds: constraints have no equality of their own.
    name = type(constraint).__name__.replace("ThanEq", "Than").replace("HalfOpenInterval", "Interval")
    return name, *numbers


def has_inverse(distribution: Distribution) -> bool:
    """Whether the density can be evaluated at any value: no transform has a cache, or lacks an inverse."""
    return is_plain(distribution) or not any(
        # Private names, as torch has no question for either: a cache knows the last sample alone, and the base class's
        # _inverse raises.
        t._cache_size or (type(t)._inverse is Transform._inverse and _is_leaf(t))
        for t in _transforms(distribution)
    )


def _transforms(distribution: Distribution) -> Iterator[Transform]:
    """Those that ``log_prob`` inverts: classes with a ``log_prob`` of their own, such as ``HalfNormal``, ask none."""
    for layer in _layers(distribution):
        if isinstance(layer, TransformedDistribution) and type(layer).log_prob is TransformedDistribution.log_prob:
            yield from _parts(layer.transforms, Transform)


def without_needless_cache(distribution: Distribution) -> Distribution:
    """The same distribution without caches, where every inverse is as precise as a cached one; else as it is.

    An affine map is inverted to rounding, whatever the sample; the inverse of a saturated tanh is infinite.
    """
    exact = all(isinstance(t, _PRECISE_INVERSES) for t in _transforms(distribution))
    return _uncached(distribution) if exact and not has_inverse(distribution) else distribution


def _uncached(distribution: Distribution) -> Distribution:
    if type(distribution) is Independent:
        return Independent(_uncached(distribution.base_dist), distribution.reinterpreted_batch_ndims)
    # The very class: a subclass may rely on its cache, and keeps it.
    if type(distribution) is TransformedDistribution:
        uncached = [t.with_cache(0) for t in distribution.transforms]  # type: ignore[no-untyped-call]
        return TransformedDistribution(_uncached(distribution.base_dist), uncached)
    return distribution


def _is_leaf(transform: Transform) -> bool:
    """Compositions and inverses have no ``_inverse`` of their own: their parts are asked instead."""
    return not any(True for value in vars(transform).values() for _ in _parts(value, Transform))


def requires_grad(thing: Any) -> bool:
    """Whether any tensor in a distribution, transform, constraint, module or container requires grad."""
    return any(tensor.requires_grad for tensor in _parts(thing, Tensor))


def _parts(thing: Any, kind: type) -> Iterator[Any]:
    """Everything of a type in the attributes of distributions, transforms, constraints and modules, found in depth."""
    seen: set[int] = set()
    pending = [thing]
    while pending:
        part = pending.pop()
        # By identity: tensors compare elementwise, and two distributions may refer to each other.
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, kind):
            yield part
        if isinstance(part, nn.Module):
            pending += part.parameters()
        if isinstance(part, dict):
            pending += part.values()
        elif isinstance(part, list | tuple | set):
            pending += part
        elif isinstance(part, Distribution | Transform | constraints.Constraint):
            pending += vars(part).values()
