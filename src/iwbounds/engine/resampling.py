r"""Backward on few samples: an unbiased subset of the terms that a gradient estimator sums over.

Of K samples, m are drawn with probabilities :math:`p_k` proportional to the largest of their coefficients, and each
drawn copy carries its coefficients times :math:`1/(m p_k)`. The expected number of copies is :math:`m p_k`, so the
gradient is unbiased; its backward costs m samples instead of K. Systematic resampling (one uniform number per datum)
makes every number of copies one of the two integers around its expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iwbounds.checks import Latents, map_latents
from iwbounds.gradients.base import Coefficients

__all__ = ["copy_probabilities", "resampled", "resampling_variance", "systematic_indices"]


def copy_probabilities(coefficients: Coefficients) -> Tensor:
    """p ∝ max(|a|, |b|, |s|) per datum, ``(K, *batch)`` float64; uniform for a datum without any coefficient."""
    used = [c.abs() for c in (coefficients.model, coefficients.path, coefficients.score) if c is not None]
    # The largest of the three: a probability of 0 where one of them is not would lose its term, and the unbiasedness.
    size = torch.stack(used).amax(0).double()
    total = size.sum(0, keepdim=True)
    return torch.where(total == 0, 1 / size.shape[0], size / total)


def systematic_indices(probabilities: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Indices ``(count, *batch)`` of systematic resampling along axis 0, given one ``uniform`` number per datum."""
    # searchsorted wants its axis last and contiguous; it warns, and copies, otherwise.
    cumulative = probabilities.movedim(0, -1).contiguous().cumsum(-1)
    # Ends at exactly 1, so that rounding sends no position past the last sample.
    cumulative = cumulative / cumulative[..., -1:]
    steps = torch.arange(count, dtype=uniform.dtype, device=uniform.device)
    positions = ((steps + uniform.unsqueeze(-1)) / count).contiguous()
    indices = torch.searchsorted(cumulative, positions, right=True)
    # A position that rounds up to 1 would be one past the end; NaN probabilities end there too.
    return indices.clamp_max(probabilities.shape[0] - 1).movedim(-1, 0)


def resampled(
    latents: Latents, coefficients: Coefficients, count: int, rows: slice = slice(None)
) -> tuple[Latents, Coefficients]:
    """``count`` samples per datum and their coefficients, whose weighted terms have the expectation of all K.

    With ``rows``, ``latents`` are those of the K samples alone, and what is returned is that part of the choice.
    """
    p = copy_probabilities(coefficients)
    indices = systematic_indices(p, torch.rand(p.shape[1:], dtype=p.dtype, device=p.device), count)
    # 1/(m p_k), the inverse of the expected number of copies: what makes the sum unbiased.
    copies = 1 / (count * p.gather(0, indices))
    if rows.start is not None:
        indices, copies = _within(indices, copies, rows)

    def chosen(coefficient: Tensor | None) -> Tensor | None:
        return None if coefficient is None else weighted(coefficient)

    def weighted(coefficient: Tensor) -> Tensor:
        # 1/(m p_k), the inverse of the expected number of copies: what makes the sum unbiased.
        return coefficient.gather(0, indices) * copies.to(coefficient.dtype)

    kept = Coefficients(
        chosen(coefficients.model),
        chosen(coefficients.path),
        chosen(coefficients.score),
        coefficients.extra,
        # On the few: their sums have the expectation of all, and their second moments are what this backward is of.
        None if coefficients.lesson is None else coefficients.lesson.chosen(weighted),
    )
    local = indices - (rows.start or 0)
    return map_latents(lambda z: _take(z, local), latents), kept


def _within(indices: Tensor, copies: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Of ascending indices ``(m, *batch)`` those in ``rows``, to the front, and their copies.

    A datum may have more of them than another. Places that are left over repeat a sample of the rows, with 0 copies;
    there is one place at least, so that every parameter has a gradient on every rank.
    """
    inside = (indices >= rows.start) & (indices < rows.stop)
    number = inside.sum(0)
    most = max(1, int(number.max())) if number.numel() else 1
    steps = torch.arange(most, device=indices.device).view(-1, *[1] * number.ndim)
    # Ascending: those of the rows follow one another, after those of the rows before.
    places = (steps + (indices < rows.start).sum(0)).clamp_max(len(indices) - 1)
    counted = torch.where(steps < number, copies.gather(0, places), 0.0)
    return indices.gather(0, places).clamp(rows.start, rows.stop - 1), counted


def resampling_variance(coefficients: Coefficients, count: int) -> Tensor:
    r"""Extra variance of a backward on ``count`` samples, relative to the sum of squares of the coefficients.

    .. math:: \frac{\sum_k c_k^2\, f_k(1-f_k)/(m p_k)^2}{\sum_k c_k^2}, \qquad f_k = m p_k - \lfloor m p_k\rfloor

    Exact where the samples' gradients have the same size and are uncorrelated; ``(*batch)``, c being the model's
    coefficient (or the first that is used); 0 for a datum without any coefficient.
    """
    expected = count * copy_probabilities(coefficients)
    fraction = expected - expected.floor()
    used = next(c for c in (coefficients.model, coefficients.path, coefficients.score) if c is not None).double()
    # A number of copies that is one of two neighbouring integers has the variance f (1 − f).
    extra = torch.where(used == 0, 0.0, used.square() * fraction * (1 - fraction) / expected.square())
    total = used.square().sum(0)
    return torch.where(total == 0, 0.0, extra.sum(0) / total)  # a dead datum has no coefficient, and no variance


def _take(z: Tensor, indices: Tensor) -> Tensor:
    """``z[indices[j, i], i]`` for every datum i, whole events at a time."""
    event = z.shape[indices.ndim :]
    return z.gather(0, indices.reshape(indices.shape + (1,) * len(event)).expand(*indices.shape, *event))
