"""One case for every torch Distribution: learned parameters, how to build it, and how to integrate over it exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import AffineTransform, ExpTransform, TanhTransform

DOUBLE = torch.float64


@dataclass(frozen=True, eq=False)
class Case:
    """``make(params)`` builds the distribution from a dict of tensors that start with one batch axis.

    Exactly one of ``nodes`` (parameters and a grid on the real line to points of the support and their log-Jacobian),
    ``values`` (all values of a discrete latent, or all but a tail of mass below 1e-12) and ``score`` (neither exists:
    the reference is a score-function estimate, which needs a fixed support) says how the truth is found.
    """

    parameters: dict[str, Any]
    make: Callable[..., distributions.Distribution]
    nodes: Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]] | None = None
    values: Tensor | None = None
    score: bool = False
    density: Callable[..., distributions.Distribution] | None = None
    """The same density built plainly, where ``make``'s can only be evaluated at its own samples."""
    may_refuse: bool = False
    must_refuse: bool = False
    data: int = 20_000
    """How many gradients are averaged."""

    def batch(self, size: int) -> dict[str, Tensor]:
        """The parameters, once per datum: their gradients are then one per datum."""
        return {name: _row(value).expand(size, *_row(value).shape).clone() for name, value in self.parameters.items()}


def _row(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=DOUBLE)


def real(params: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    return t.sinh(), t.cosh().log()


def positive(params: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    return t.exp(), t


def between(low: Callable[..., Any], high: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def nodes(params: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
        start, width = low(**params), high(**params) - low(**params)
        logs = torch.nn.functional.logsigmoid(t) + torch.nn.functional.logsigmoid(-t)
        return start + width * t.sigmoid(), logs + torch.as_tensor(width).log()

    return nodes


def above(low: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda params, t: (low(**params) + t.exp(), t)


def below(high: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda params, t: (high(**params) - t.exp(), t)


unit = between(lambda **_: 0.0, lambda **_: torch.ones((), dtype=DOUBLE))
circle = between(lambda **_: -math.pi, lambda **_: torch.tensor(math.pi, dtype=DOUBLE))


class OneWay(distributions.Transform):
    """exp without an inverse, as planar flows have none: log_prob works at the last forward pass's own tensor."""

    domain, codomain, bijective = distributions.constraints.real, distributions.constraints.positive, True

    def __init__(self) -> None:
        super().__init__(cache_size=1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OneWay)

    __hash__ = None

    def _call(self, x: Tensor) -> Tensor:
        return x.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        raise KeyError("this transform has no inverse: the tensor is not the one that its forward pass returned")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x


def counts(total: int, categories: int) -> Tensor:
    rows = [row for row in itertools.product(range(total + 1), repeat=categories) if sum(row) == total]
    return torch.tensor(rows, dtype=DOUBLE)


def until(last: int) -> Tensor:
    return torch.arange(last + 1, dtype=DOUBLE)


TEMPERATURE = torch.tensor(0.9, dtype=DOUBLE)
CORNER = torch.tensor([[1.0, 0.0], [0.3, 0.8]], dtype=DOUBLE)
LOC_SCALE = {"loc": 0.3, "scale": 0.8}
TWO = {"loc": [0.3, -0.2], "scale": [0.8, 0.6]}
LOGITS = {"logits": [0.2, -0.3, 0.1]}
ONE_HOT = torch.eye(3, dtype=DOUBLE)


def torch_cases(D: Any) -> dict[str, Case]:  # noqa: N803 - a namespace, in the place of torch.distributions
    """A case for every class of torch.distributions, from ``D``: itself, or a library that wraps them all."""

    def tanh_normal(cache_size: int) -> Callable[..., distributions.Distribution]:
        return lambda loc, scale: D.TransformedDistribution(D.Normal(loc, scale), [TanhTransform(cache_size)])

    def affine(base: Callable[[Tensor], distributions.Distribution]) -> Callable[..., distributions.Distribution]:
        return lambda loc, scale: D.TransformedDistribution(base(torch.zeros_like(loc)), [AffineTransform(loc, scale)])

    def mixture(components: Callable[..., distributions.Distribution]) -> Callable[..., distributions.Distribution]:
        return lambda logits, **rest: D.MixtureSameFamily(D.Categorical(logits=logits), components(**rest))

    return {
        "Bernoulli": Case({"logits": 0.4}, lambda logits: D.Bernoulli(logits=logits), values=until(1)),
        "Beta": Case({"a": 1.7, "b": 2.2}, lambda a, b: D.Beta(a, b), unit),
        "Binomial": Case({"logits": 0.4}, lambda logits: D.Binomial(3, logits=logits), values=until(3)),
        "Categorical": Case(LOGITS, lambda logits: D.Categorical(logits=logits), values=until(2)),
        "Cauchy": Case(LOC_SCALE, D.Cauchy, real),
        "Chi2": Case({"df": 3.5}, D.Chi2, positive),
        "ContinuousBernoulli": Case({"logits": -0.8}, lambda logits: D.ContinuousBernoulli(logits=logits), unit),
        "Dirichlet": Case({"concentration": [1.5, 2.0, 2.5]}, D.Dirichlet, score=True),
        "Exponential": Case({"rate": 1.3}, D.Exponential, positive),
        "FisherSnedecor": Case({"df1": 5.0, "df2": 7.0}, D.FisherSnedecor, positive),
        "Gamma": Case({"concentration": 2.5, "rate": 1.2}, D.Gamma, positive),
        "Geometric": Case({"logits": 0.2}, lambda logits: D.Geometric(logits=logits), values=until(60)),
        "Gumbel": Case(LOC_SCALE, D.Gumbel, real),
        "HalfCauchy": Case({"scale": 0.9}, D.HalfCauchy, positive),
        "HalfNormal": Case({"scale": 0.9}, D.HalfNormal, positive),
        "InverseGamma": Case({"concentration": 2.5, "rate": 1.2}, D.InverseGamma, positive),
        "Kumaraswamy": Case({"concentration1": 1.7, "concentration0": 2.2}, D.Kumaraswamy, unit),
        # In two dimensions: from three on, torch's sampler and its log_prob are not of one distribution.
        "LKJCholesky": Case({"concentration": 1.6}, lambda concentration: D.LKJCholesky(2, concentration), score=True),
        "LKJCholesky of three": Case(
            {"concentration": 1.6}, lambda concentration: D.LKJCholesky(3, concentration), must_refuse=True
        ),
        "Laplace": Case(LOC_SCALE, D.Laplace, score=True),  # its kink is no matter for a trapezoidal rule
        "LogNormal": Case(LOC_SCALE, D.LogNormal, positive),
        "LogisticNormal": Case(TWO, D.LogisticNormal, score=True),
        "LowRankMultivariateNormal": Case(
            {"loc": [0.3, -0.2], "cov_factor": [[0.5], [0.3]], "cov_diag": [0.4, 0.6]},
            D.LowRankMultivariateNormal,
            score=True,
        ),
        "MixtureSameFamily": Case(
            {"logits": [0.3, -0.3], "loc": [-0.5, 0.9], "scale": [0.7, 0.5]}, mixture(D.Normal), real
        ),
        "MixtureSameFamily of Bernoulli": Case(
            {"logits": [0.3, -0.3], "heads": [0.5, -1.0]},
            mixture(lambda heads: D.Bernoulli(logits=heads)),
            values=until(1),
        ),
        "Multinomial": Case(LOGITS, lambda logits: D.Multinomial(2, logits=logits), values=counts(2, 3)),
        "MultivariateNormal": Case(
            {"loc": [0.3, -0.2], "scale_tril": CORNER},
            lambda loc, scale_tril: D.MultivariateNormal(loc, scale_tril=scale_tril.tril()),
            score=True,
        ),
        "NegativeBinomial": Case(
            {"total": 2.5, "logits": -0.6},
            lambda total, logits: D.NegativeBinomial(total, logits=logits),
            values=until(60),
        ),
        "Normal": Case(LOC_SCALE, D.Normal, real),
        "Normal expanded": Case(
            {"loc": [0.3], "scale": [0.8]},
            lambda loc, scale: D.Normal(loc, scale).expand((len(loc), 50)),
            real,
            data=400,
        ),
        "OneHotCategorical": Case(LOGITS, lambda logits: D.OneHotCategorical(logits=logits), values=ONE_HOT),
        "OneHotCategoricalStraightThrough": Case(
            LOGITS, lambda logits: D.OneHotCategoricalStraightThrough(logits=logits), values=ONE_HOT
        ),
        "Pareto": Case({"scale": 0.9, "alpha": 2.5}, D.Pareto, above(lambda scale, alpha: scale)),
        "Pareto of learned alpha": Case(
            {"alpha": 2.5}, lambda alpha: D.Pareto(torch.ones_like(alpha), alpha), above(lambda alpha: 1.0)
        ),
        "Poisson": Case({"rate": 1.7}, D.Poisson, values=until(40)),
        "RelaxedBernoulli": Case({"logits": 0.4}, lambda logits: D.RelaxedBernoulli(TEMPERATURE, logits=logits), unit),
        "RelaxedOneHotCategorical": Case(
            LOGITS, lambda logits: D.RelaxedOneHotCategorical(TEMPERATURE, logits=logits), score=True
        ),
        "StudentT": Case({"df": 5.0, **LOC_SCALE}, D.StudentT, real),
        "Uniform(0, h)": Case(
            {"h": 1.5}, lambda h: D.Uniform(torch.zeros_like(h), h), between(lambda h: 0.0 * h, lambda h: h)
        ),
        "Uniform(-w, w)": Case({"w": 2.0}, lambda w: D.Uniform(-w, w), between(lambda w: -w, lambda w: w)),
        "Uniform(l, h)": Case(
            {"low": -0.4, "high": 1.1}, D.Uniform, between(lambda low, high: low, lambda low, high: high)
        ),
        "VonMises": Case({"loc": 0.3, "concentration": 1.4}, D.VonMises, circle),
        "Weibull": Case({"scale": 1.1, "concentration": 1.8}, D.Weibull, positive),
        "Wishart": Case(
            {
                "df": 4.0,
                "scale_tril": [[6 * entry for entry in row] for row in CORNER],
            },  # wide: a score of less variance
            lambda df, scale_tril: D.Wishart(df, scale_tril=scale_tril.tril()),
            score=True,
            data=140_000,
        ),
        "Independent of Normal": Case(
            {"loc": [0.3, -0.2], "scale": [0.8, 0.6]},
            lambda loc, scale: D.Independent(D.Normal(loc, scale), 1),
            score=True,
        ),
        "Independent of Bernoulli": Case(
            {"logits": [0.4, -0.7]},
            lambda logits: D.Independent(D.Bernoulli(logits=logits), 1),
            values=torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=DOUBLE),
        ),
        "Transformed: affine of Normal": Case(LOC_SCALE, affine(lambda like: D.Normal(like, 1.0)), real),
        "Transformed: affine of Uniform": Case(
            LOC_SCALE,
            affine(lambda like: D.Uniform(like, 1.0)),
            between(lambda loc, scale: loc, lambda loc, scale: loc + scale),
        ),
        "Transformed: affine of Beta": Case(
            LOC_SCALE,
            affine(lambda like: D.Beta(like + 1.2, like + 1.0)),
            between(lambda loc, scale: loc, lambda loc, scale: loc + scale),
        ),
        "Transformed: shifted Exponential": Case(
            LOC_SCALE, affine(lambda like: D.Exponential(like + 1.0)), above(lambda loc, scale: loc)
        ),
        "Transformed: mirrored Exponential": Case(
            {"loc": 0.3},
            lambda loc: D.TransformedDistribution(D.Exponential(torch.ones_like(loc)), [AffineTransform(loc, -1.0)]),
            below(lambda loc: loc),
        ),
        "Transformed: exp of affine of Exponential": Case(
            LOC_SCALE,
            lambda loc, scale: D.TransformedDistribution(
                D.Exponential(torch.ones_like(loc) * 2.5), [AffineTransform(loc, scale), ExpTransform()]
            ),
            above(lambda loc, scale: loc.exp()),
        ),
        "Transformed: tanh": Case(LOC_SCALE, tanh_normal(0), between(lambda **_: -1.0, lambda **_: _row(1.0))),
        "Transformed: tanh with a cache": Case(
            LOC_SCALE, tanh_normal(1), between(lambda **_: -1.0, lambda **_: _row(1.0)), density=tanh_normal(0)
        ),
        "Transformed: no inverse": Case(
            LOC_SCALE,
            lambda loc, scale: D.TransformedDistribution(D.Normal(loc, scale), [OneWay()]),
            positive,
            density=D.LogNormal,
            may_refuse=True,
        ),
    }
