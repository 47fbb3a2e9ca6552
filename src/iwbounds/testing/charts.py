r"""Continuous latents as points that can be moved: unconstrained, standardised, and only where rounding allows it.

Each part of the latents gets a *chart*, a bijection from unconstrained coordinates onto its support: that of a torch
distribution, or one that fits the draws of a callable (positive, in an interval, on a simplex, periodic). A chart that
fits badly costs power and never validity, because all bets are made inside a region that is fixed in advance:
conditioned on a pair of points lying in a region, the odds of the pair are those of the densities; and the integral of
a density over a region is at most one.

The region leaves out what floating-point numbers cannot resolve. In float32 a fifth of Beta(.1, .1)'s draws are
rounded to 1 − k 2⁻²⁴ for small k, and Gamma's are clamped at 1e-38: there the draws are not those of any density, and a
bet against it would win. A point is inside if it can be mapped there and back, and if moving its latents by one unit in
the last place moves its coordinates by less than 1/32 of their spread, and of a nat.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints
from torch.distributions.transforms import identity_transform
from torch.nn.functional import logsigmoid

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.posterior import expanded
from iwbounds.proposals.base import Proposal
from iwbounds.testing.densities import ContractError, log_proposal

__all__ = [
    "Coordinates",
    "Points",
    "RoundedAwayError",
    "UnjudgedError",
    "chosen_leaves",
    "flattened",
    "is_discrete",
    "replaced",
    "support_of",
]

_COARSEST, _LEAST_INSIDE, _MARGIN = 1 / 32, 0.02, 2.0**20


class UnjudgedError(Exception):
    """What a statistical check has no sound way to see; the message completes "cannot judge …"."""


class RoundedAwayError(UnjudgedError):
    """Rounding leaves no region to bet in."""


def is_discrete(z: Tensor) -> bool:
    """Whether draws are of a discrete latent: a continuous one never falls on integers alone."""
    # By value: Bernoulli and Categorical one-hots are floats too.
    return not z.is_floating_point() or bool((z == z.round()).all())


def flattened(parts: Sequence[Tensor], leading: int) -> Tensor:
    """All parts side by side, ``(n, *batch, d)``; ``leading`` counts the sample and batch axes."""
    return torch.cat([z.reshape(*z.shape[:leading], -1) for z in parts], -1)


def chosen_leaves(latents: Latents, chosen: Sequence[bool]) -> list[Tensor]:
    """The leaves that are chosen, in order."""
    return [z for z, is_chosen in zip(latent_leaves(latents), chosen, strict=True) if is_chosen]


def replaced(latents: Latents, chosen: Sequence[bool], parts: Sequence[Tensor]) -> Latents:
    """``latents`` with the chosen leaves replaced by ``parts``, in order."""
    choice, new = iter(chosen), iter(parts)
    return map_latents(lambda z: next(new) if next(choice) else z, latents)


def support_of(proposal: Distribution | Proposal) -> Any | None:
    """The support of a torch distribution; None where it states none."""
    try:
        return proposal.support if isinstance(proposal, Distribution) else None
    except NotImplementedError:
        return None


class _Sticks(Transform):
    """Stick-breaking onto the simplex, from ratios to what is left: exact to rounding for entries of any size.

    torch's own takes 1 − the cumulative sum, which loses the small last entries of a float32 simplex.
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        # Logs of what the sticks so far have left: products of ratios, where 1 − Σ would cancel.
        left = torch.nn.functional.pad(logsigmoid(-x).cumsum(-1), (1, 0))
        return (left + torch.nn.functional.pad(logsigmoid(x), (0, 1))).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        # What is left is summed from the small end, for the same reason.
        left = y.flip(-1).cumsum(-1).flip(-1)
        return y[..., :-1].log() - left[..., 1:].log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        determinant: Tensor = (y[..., :-1].log() + logsigmoid(-x)).sum(-1)
        return determinant


def _stated_chart(support: Any) -> Transform | None:
    """The chart of a torch support; None where torch states none, or where only the draws can say."""
    while hasattr(support, "base_constraint"):  # independent(…), and the support of a mixture
        support = support.base_constraint
    # No chart is stated: the draws must say whether the support is all numbers or one period.
    if support is None or support in (constraints.real, constraints.real_vector):
        return None  # it may yet be periodic: VonMises calls its support real
    if support is constraints.simplex:
        return _Sticks()
    # biject_to would scale by an infinite width.
    if isinstance(support, constraints.interval) and not torch.as_tensor(support.upper_bound).isfinite().all():
        return None  # GeneralizedPareto's
    if getattr(support, "event_dim", 0) == 2 and support is not constraints.corr_cholesky:
        raise UnjudgedError("densities of matrices: moved draws must stay symmetric, triangular or positive definite")
    try:
        return biject_to(support)  # type: ignore[no-any-return]
    except NotImplementedError:
        return None


def _fitting_chart(z: Tensor, leading: int) -> Transform:
    """A chart of a support that holds the draws ``(n, *batch, *event)`` of a callable, in float64."""
    eps = 1e-5  # sums of float32 numbers
    if z.ndim > leading and z.shape[-1] > 1:
        # A callable states no support; draws that all lie on the simplex have no density off it.
        if (z >= 0).all() and ((z.sum(-1) - 1).abs() < eps).all():
            return _Sticks()
        if ((z.square().sum(-1) - 1).abs() < eps).all():
            raise UnjudgedError("densities on a sphere")
    if (z == z[:1]).all(0).any():
        raise UnjudgedError("densities of latents that have a constant coordinate")
    if (z > 0).all():
        return biject_to(constraints.unit_interval if (z < 1).all() else constraints.positive)  # type: ignore[no-any-return]
    return identity_transform


class Points(NamedTuple):
    """Standardised coordinates, what the change of variables adds to a log-density, and where both are sound."""

    at: Tensor
    """``(n, *batch, d)``, finite."""
    log_jacobian: Tensor
    """``(n, *batch)``."""
    inside: Tensor
    """``(n, *batch)``: whether bets may be made there."""


class Coordinates:
    """The continuous parts of latents in standardised coordinates; discrete parts stay as they are.

    Args:
        given: the user's proposal, which is asked for its support.
        proposal: the engine's view of it.
        reference: latents ``(n, *batch, *event)`` that charts, location and scale are taken from.
        continuous: which leaves are.
        batch: the batch shape.

    Raises:
        UnjudgedError: there is no chart, or rounding leaves no region to bet in.
    """

    def __init__(
        self,
        given: Distribution | Proposal,
        proposal: Proposal,
        reference: Latents,
        continuous: Sequence[bool],
        batch: torch.Size,
    ) -> None:
        self._proposal, self._support = proposal, support_of(given)
        self._continuous, self._leading = continuous, 1 + len(batch)
        parts = self._parts(reference)
        self._dtypes = [z.dtype for z in parts]
        self._largest = [z.double().abs().max() for z in parts]
        stated = _stated_chart(self._support)
        self._charts = [stated or _fitting_chart(z.double(), self._leading) for z in parts]
        if stated is None and not proposal.needs_own_samples:
            self._bound_periodic(reference)
        self._standardise(reference)
        if not proposal.needs_own_samples:
            self._bound_what_raises(reference)

    def of(self, latents: Latents) -> Points:
        """The points where ``latents`` are."""
        parts = self._parts(latents)
        raw = self._raw(parts)
        # Points that could not be mapped are marked outside, and only have to be finite here.
        at = ((flattened(raw, self._leading) - self._location) / self._scale).nan_to_num(0.0, 0.0, 0.0)
        log_jacobian = self._scale.log().sum(-1)
        for chart, x, z in zip(self._charts, raw, parts, strict=True):
            terms = chart.log_abs_det_jacobian(x, z.double())  # type: ignore[no-untyped-call]
            log_jacobian = log_jacobian + terms.reshape(*z.shape[: self._leading], -1).sum(-1)
        return Points(at, log_jacobian.nan_to_num(0.0, 0.0, 0.0), self._inside(parts, raw))

    def moved(self, at: Tensor, latents: Latents) -> tuple[Points, Tensor]:
        """Points to move the continuous parts of ``latents`` to, and log q there, ``(n, *batch)`` nats of the points.

        Rounded to the latents' dtype first. NaN, as a density outside its support may be, counts as −inf.
        """
        z, valid = self._latents(at, latents)
        points = self.of(z)
        try:
            log_q = log_proposal(self._proposal, z)
        except ContractError as error:
            raise UnjudgedError(
                f"log_prob away from its own draws: it raises there ({error}). Build its distributions with "
                "validate_args=False, so that it gives −inf outside the support"
            ) from None
        # A density of coordinates: without the Jacobian exchanging two points would compare densities of different
        # measures.
        log_q = log_q.double().nan_to_num(-torch.inf, torch.inf, -torch.inf) + points.log_jacobian
        return points._replace(inside=points.inside & valid), log_q

    def _parts(self, latents: Latents) -> list[Tensor]:
        return chosen_leaves(latents, self._continuous)

    def _raw(self, parts: Iterable[Tensor]) -> list[Tensor]:
        # In float64: the inverse of a chart, unlike the user's density, is ours, and must not add rounding of its own.
        return [chart.inv(z.double()) for chart, z in zip(self._charts, parts, strict=True)]

    def _inside(self, parts: Sequence[Tensor], raw: Sequence[Tensor]) -> Tensor:
        # Both tests per point: there and back within rounding, and one unit in the last place moves it little.
        good = torch.ones(parts[0].shape[: self._leading], dtype=torch.bool, device=parts[0].device)
        for chart, z, x, dtype, largest in zip(self._charts, parts, raw, self._dtypes, self._largest, strict=True):
            info, z = torch.finfo(dtype), z.double()
            back = chart(x)
            # Not so outside an interval, or off a simplex. 1e-11: exp(log(z)) errs by as many units as log(z) is large.
            mapped = (back - z).abs() <= max(16 * info.eps, 1e-11) * z.abs() + 1e-11 * largest
            # Samplers clamp at the smallest numbers; zeros that the chart itself gives are triangles of matrices.
            resolved = (z.abs() > _MARGIN * info.tiny) | (back == 0) | (chart is identity_transform)
            good &= (mapped & resolved).reshape(*good.shape, -1).all(-1)
        for sign in (1.0, -1.0):
            step = flattened(self._raw(self._nudged(parts, sign)), self._leading) - flattened(raw, self._leading)
            good &= (step.abs() < _COARSEST * self._unit).all(-1)  # False for NaN
        return good

    def _nudged(self, parts: Sequence[Tensor], sign: float) -> Iterator[Tensor]:
        """Every other number one unit in the last place up, the rest down; the other way round for the other sign."""
        for z, dtype in zip(parts, self._dtypes, strict=True):
            # float64 throughout: 1 + one unit of it is 1 in float32
            signs = torch.ones(z.shape[self._leading :], dtype=torch.float64, device=z.device).flatten()
            signs[1::2] = -1.0
            yield z.double() * (1 + sign * torch.finfo(dtype).eps * signs.reshape(z.shape[self._leading :]))

    def _standardise(self, reference: Latents) -> None:
        parts = self._parts(reference)
        own = self._raw(parts)
        raw = flattened(own, self._leading)
        self._shapes = [x.shape[self._leading :] for x in own]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self._scale = torch.full(raw.shape[1:], torch.inf, dtype=torch.float64, device=raw.device)
        # Logarithms are in nats whatever their spread: a wide one does not make a clamped probability exact.
        most = [math.inf if chart is identity_transform else 1.0 for chart in self._charts]
        limits = [self._scale.new_full((size,), limit) for size, limit in zip(self._sizes, most, strict=True)]
        limit = self._unit = torch.cat(limits)
        for _ in range(2):  # the region depends on the scale, and the scale on the draws in the region
            inside = self._inside(parts, own).unsqueeze(-1)
            count = inside.sum(0)
            if (count < max(2, _LEAST_INSIDE * len(raw))).any():
                raise RoundedAwayError(
                    f"log_prob: rounding to {str(self._dtypes[0]).removeprefix('torch.')} puts nearly all draws on the "
                    "boundary of the support, or on a few values. Check the same proposal in float64"
                )
            self._location = torch.where(inside, raw, 0.0).sum(0) / count
            spread = torch.where(inside, raw - self._location, 0.0).square().sum(0) / (count - 1)
            self._scale = torch.where(spread > 0, spread.sqrt(), 1.0)
            self._unit = torch.minimum(self._scale, limit)
        self.fraction_inside = float(inside.double().mean())

    def _bound_periodic(self, reference: Latents) -> None:
        """Give periodic parts, as VonMises', a chart of one period: over all numbers they integrate to infinity."""
        period, parts = 2 * math.pi, self._parts(reference)
        for i, z in enumerate(parts):
            low = -math.pi if z.min() < 0 or z.max() < 3.2 else 0.0
            # Draws within one period, and a density that does not change by a period: then it is periodic.
            fits = bool(z.min() > low - 1e-5 and z.max() < low + period + 1e-5)
            if fits and self._same_density(reference, [p + period * (j == i) for j, p in enumerate(parts)]):
                self._charts[i] = biject_to(constraints.interval(low, low + period))  # type: ignore[no-untyped-call]

    def _same_density(self, reference: Latents, parts: Sequence[Tensor]) -> bool:
        try:
            other = log_proposal(self._proposal, replaced(reference, self._continuous, parts))
        except ContractError:
            return False
        # Coarsely compared: an angle moved by 2π loses a few digits of its sine.
        here = log_proposal(self._proposal, reference)
        return bool(torch.isclose(here, other, rtol=1e-3, atol=1e-3).all())

    def _bound_what_raises(self, reference: Latents) -> None:
        """Where log_prob raises outside a support that is not known, move within the range of the reference only."""
        # Other draws' coordinates, three times as far out: farther than any proposal of a test moves them.
        far = self.of(reference).at.roll(1, 0) * 3
        try:
            self.moved(far, reference)
        except UnjudgedError:
            for i, z in enumerate(self._parts(reference)):
                if not isinstance(self._charts[i], _Sticks):
                    self._charts[i] = biject_to(constraints.interval(z.double().amin(0), z.double().amax(0)))  # type: ignore[no-untyped-call]
            self._standardise(reference)

    def _latents(self, at: Tensor, latents: Latents) -> tuple[Latents, Tensor]:
        """``latents`` moved to the points; those that torch's validation would refuse are left where they are."""
        # Back to the chart's coordinates, then through it, then rounded to the latents' own dtype.
        moved, own = at * self._scale + self._location, self._parts(latents)
        pieces = moved.split(self._sizes, -1)  # type: ignore[no-untyped-call]
        parts = [
            chart(x.reshape(*x.shape[:-1], *shape)).to(z.dtype)
            for chart, x, shape, z in zip(self._charts, pieces, self._shapes, own, strict=True)
        ]
        valid = torch.ones(at.shape[:-1], dtype=torch.bool, device=at.device)
        if self._support is not None:
            # torch's validation would raise for the whole batch where one rounded point lies outside.
            valid = self._support.check(parts[0]).reshape(*valid.shape, -1).all(-1)
            parts = [torch.where(expanded(valid, parts[0]), parts[0], own[0])]
        return replaced(latents, self._continuous, parts), valid
