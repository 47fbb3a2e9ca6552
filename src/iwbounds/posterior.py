r"""The posterior that weighted samples describe: expectations, resampling, Pareto smoothing.

Functions of log-weights ``(K, *batch)``, and of latents ``(K, *batch, *event)`` that go with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iwbounds.checks import Latents, map_latents
from iwbounds.diagnostics import generalized_pareto, tail_size
from iwbounds.logspace.mean import finite_maximum, normalized_weights, promoted

__all__ = [
    "Expectation",
    "check_values",
    "expanded",
    "expectation_of",
    "pareto_smoothed",
    "pareto_smoothed_tail",
    "resample_indices",
    "self_normalized_mean",
    "take_samples",
    "without_error",
]


class Expectation(NamedTuple):
    """A posterior expectation and its standard error, each in the structure of the values averaged.

    >>> Expectation(torch.tensor(1.0), torch.tensor(0.1)).standard_error
    tensor(0.1000)
    """

    mean: Any
    standard_error: Any


def self_normalized_mean(log_w: Tensor, values: Any) -> Expectation:
    r"""Posterior expectation of ``values`` under the normalised weights of each datum.

    .. math:: \bar f = \sum_k \tilde w_k f(z_k), \qquad
              \mathrm{se} = \sqrt{\sum_k \tilde w_k^2\,(f(z_k) - \bar f)^2}

    Bias: O(1/K). The standard error is the delta method's: it says nothing where Pareto's k̂ is above
    min(1 − 1/log10 K, 0.7), and needs several effective samples. Not differentiable.

    Args:
        log_w: ``(K, *batch)`` nats.
        values: f at each sample, ``(K, *batch, *event)``: a tensor, or a tuple or dict of tensors. Booleans and
            integers are averaged too, which gives probabilities.

    Returns:
        An :class:`Expectation` of two float64 structures like ``values``, each tensor ``(*batch, *event)``.

    Raises:
        ValueError: values that do not start with the shape of ``log_w``.

    Edge cases: a sample of weight zero counts nothing, even where f is infinite or NaN there; a datum whose weights are
    all zero has NaN, as no sample says anything about its posterior.

    Reference: Owen (2013), Monte Carlo theory, methods and examples, section 9.2, eq. 9.8.

    >>> self_normalized_mean(torch.zeros(2), torch.tensor([1.0, 3.0]))
    Expectation(mean=tensor(2., dtype=torch.float64), standard_error=tensor(0.7071, dtype=torch.float64))
    """
    log_w = promoted(log_w.detach()).double()
    weights = normalized_weights(log_w)
    # No weight at all: 0/0 is what the average is, where a 0 would look like an answer.
    weights = weights.masked_fill(log_w.isneginf().all(0), torch.nan)
    return expectation_of(lambda f: _mean_and_error(weights, check_values(f, log_w.shape)), values)


def expectation_of(mean_and_error: Callable[[Any], tuple[Tensor, Tensor]], values: Any) -> Expectation:
    """What ``mean_and_error`` gives for each part of ``values``: all means, and all errors, in their structure."""
    pairs = map_latents(mean_and_error, values)
    # Along ``values``, since the walk would take a pair for a part of the structure.
    mean, error = (map_latents(lambda _, pair, at=at: pair[at], values, pairs) for at in range(2))
    return Expectation(mean, error)


def without_error(found: Expectation) -> Expectation:
    """NaN for a standard error: of draws that depend on each other, for which the formula would take each for new.

    >>> without_error(Expectation(torch.tensor(1.0), torch.tensor(0.1)))
    Expectation(mean=tensor(1.), standard_error=tensor(nan))
    """
    return found._replace(standard_error=map_latents(lambda e: torch.full_like(e, torch.nan), found.standard_error))


def _mean_and_error(weights: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    w = expanded(weights, f)
    f = f.double().masked_fill(w == 0, 0.0)  # 0 · inf is NaN
    mean = (w * f).sum(0)
    return mean, (w * (f - mean)).square().sum(0).sqrt()


def expanded(weights: Tensor, values: Tensor) -> Tensor:
    """``weights`` with axes of size 1 for the event of ``values``."""
    return weights.reshape((*weights.shape, *[1] * (values.ndim - weights.ndim)))


def check_values(values: object, shape: tuple[int, ...]) -> Tensor:
    """``values``, known to be a tensor whose first axes are ``shape`` = ``(K, *batch)``.

    Raises:
        TypeError: not a tensor.
        ValueError: another shape.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"expected values as tensors (K, *batch, *event); got {type(values).__name__}.")
    if values.shape[: len(shape)] != shape:
        raise ValueError(
            f"expected one value per sample and datum, of shape {tuple(shape)} = (K, *batch) and then the event; got "
            f"{tuple(values.shape)}. Keep the sample axis first; nothing is broadcast."
        )
    return values.detach()


def resample_indices(log_w: Tensor, num_samples: int) -> Tensor:
    r"""Indices of samples, each drawn with probability :math:`\tilde w_k`, for each datum by itself.

    Drawn with replacement: approximate posterior draws, with an error O(1/K). Repeats are many where the effective
    sample size is small; no choice of ``num_samples`` mends that.

    Args:
        log_w: ``(K, *batch)`` nats.
        num_samples: n, 1 or more.

    Returns:
        ``(n, *batch)`` int64 in 0..K−1, for :func:`take_samples`.

    Raises:
        ValueError: ``num_samples`` below 1, or a datum without a weight above zero, or with NaN.

    >>> resample_indices(torch.tensor([-torch.inf, 0.0]), 3)
    tensor([1, 1, 1])
    """
    if num_samples < 1:
        raise ValueError(f"expected to resample at least 1 sample; got {num_samples}.")
    # float64: a float32 cumulative sum of a million weights stops counting the small ones.
    weights = normalized_weights(promoted(log_w.detach()).double())
    dead = ~(weights.sum(0) > 0)
    if dead.any():  # multinomial's own message does not say whose weights are wrong
        raise ValueError(
            f"expected a weight above zero, and no NaN, for every datum; {int(dead.sum())} of {dead.numel()} do not. "
            "Their posterior is not described by these samples: mend the proposal, or leave these data out."
        )
    # By inversion: torch.multinomial takes at most 2^24 categories.
    cumulative = weights.reshape(len(weights), -1).T.contiguous().cumsum(1)
    uniforms = torch.rand(cumulative.shape[0], num_samples, dtype=torch.float64, device=log_w.device)
    # A uniform times the last sum, so that rounding cannot point past the last sample; right: skip weights of zero.
    index = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return index.clamp_max(len(log_w) - 1).T.reshape(num_samples, *log_w.shape[1:])


def take_samples(latents: Latents, indices: Tensor) -> Latents:
    """The samples that ``indices`` name, for each datum by itself, in every tensor of the latents.

    Args:
        latents: each ``(K, *batch, *event)``.
        indices: ``(n, *batch)``.

    Returns:
        Latents ``(n, *batch, *event)``.

    Raises:
        ValueError: a latent's batch is not that of the indices.

    >>> take_samples({"z": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, torch.tensor([[1, 0]]))
    {'z': tensor([[3., 2.]])}
    """
    batch = indices.shape[1:]

    def take(z: Tensor) -> Tensor:
        if z.shape[1 : indices.ndim] != batch:
            raise ValueError(
                f"expected latents (K, *batch, *event) of batch shape {tuple(batch)}; got {tuple(z.shape)}. "
                "Expand latents that are common to all data."
            )
        index = expanded(indices, z).expand(*indices.shape, *z.shape[indices.ndim :])
        # gather, as each datum has rows of its own; its index must have the event's axes too.
        return z.gather(0, index)

    return map_latents(take, latents)


def pareto_smoothed(log_w: Tensor) -> Tensor:
    r"""Log-weights whose tail is replaced by the order statistics of the Pareto distribution fitted to it (PSIS).

    .. math:: w_{(K-M+i)} \leftarrow \min\Bigl(u + \frac{\sigma}{k}\bigl((1 - p_i)^{-k} - 1\bigr),\; w_{(K)}\Bigr),
              \qquad p_i = \frac{i - 1/2}{M}

    with the M largest weights in their order, u the next one, and (k, σ) the fit of :func:`iwbounds.pareto_k`. Less
    variance, some bias: for expectations. Evidence from smoothed weights is no bound, and certificates are void.

    Args:
        log_w: ``(K, *batch)`` nats.

    Returns:
        ``(K, *batch)``, detached, in at least float32.

    Edge cases: unchanged where there is no tail to fit: K < 25, tail weights that are all equal, or dead ones, or NaN.

    Reference: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646,
    eq. 7.

    >>> pareto_smoothed(torch.zeros(100)).equal(torch.zeros(100))
    True
    """
    log_w = promoted(log_w.detach())
    size = tail_size(len(log_w))
    if size < 5:
        return log_w.clone()
    top = log_w.topk(size + 1, dim=0)
    return log_w.scatter(0, top.indices, pareto_smoothed_tail(top.values))


def pareto_smoothed_tail(largest: Tensor) -> Tensor:
    """:func:`pareto_smoothed` of the tail alone.

    Args:
        largest: ``(M + 1, *batch)`` log-weights in descending order: those of the tail, and the next one.
    """
    maximum = finite_maximum(largest, 0)
    ascending = (largest - maximum).double().flip(0).exp()
    start, tail = ascending[0], ascending[1:]
    shape, scale = generalized_pareto(tail - start)
    p = (torch.arange(len(tail), dtype=torch.float64, device=largest.device) + 0.5) / len(tail)
    quantiles = start + scale * _pareto_quantile(expanded(p, tail), shape)
    smoothed = quantiles.minimum(tail[-1]).log().flip(0) + maximum  # no weight above the largest, as in PSIS
    # No tail, or none that the fit makes sense of: the weights stay as they are.
    keep = largest[-1].isneginf() | ~smoothed.isfinite().all(0) | (tail[-1] <= start)
    return torch.cat([torch.where(keep, largest[:-1], smoothed.to(largest.dtype)), largest[-1:]])


def _pareto_quantile(p: Tensor, shape: Tensor) -> Tensor:
    """Quantiles of the generalised Pareto distribution of scale 1; shape 0 is the exponential."""
    log_survival = torch.log1p(-p)
    k = torch.where(shape == 0, 1.0, shape)
    return torch.where(shape == 0, -log_survival, torch.expm1(-k * log_survival) / k)
