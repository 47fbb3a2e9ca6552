r"""Posterior expectations in constant memory.

Per datum and value, the state holds the maximum log-weight m and, relative to it, float64 sums of
:math:`w,\; w^2,\; w f,\; w^2 f,\; w^2 f^2`. The variance of a mean far from 0 would cancel in these sums, so f is
counted from the first samples' mean. Where the tail is to be smoothed, the largest weights and their f wait outside the
sums: O(√K) of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.diagnostics import tail_size
from iwbounds.evidence.weighted import Weighted
from iwbounds.logspace.mean import finite_or_zero
from iwbounds.posterior import (
    Expectation,
    check_values,
    expanded,
    expectation_of,
    pareto_smoothed_tail,
    take_samples,
    without_error,
)
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal

__all__ = ["posterior_expectation"]


@torch.no_grad()
def posterior_expectation(
    log_joint: LogJoint,
    proposal: Distribution | Proposal | ExtendedProposal,
    f: Callable[[Latents], Any],
    num_samples: int,
    chunk_size: int | None = None,
    smooth: bool = False,
) -> Expectation:
    r"""Mean of f(z) over the posterior of each datum, self-normalised, in constant memory.

    .. math:: \bar f = \frac{\sum_k w_k f(z_k)}{\sum_k w_k}, \qquad
              \mathrm{se} = \frac{\sqrt{\sum_k w_k^2\,(f(z_k) - \bar f)^2}}{\sum_k w_k}

    Bias: O(1/K); no bound, and not differentiable. The standard error takes the draws to be independent, and says
    nothing where Pareto's k̂ is above min(1 − 1/log10 K, 0.7): look at :func:`iwbounds.pareto_k` first.

    Args:
        log_joint: latents to ``(K, *batch)`` nats, as in :func:`iwbounds.estimate`.
        proposal: a torch ``Distribution``, an :class:`iwbounds.Proposal`, or one that extends the latents
            (hierarchical, stratified, …). Sampled several times, in blocks whose sizes do not depend on ``chunk_size``;
            in one call where its draws depend on each other.
        f: the latents that ``log_joint`` receives to ``(K, *batch, *event)``: a tensor, or a tuple or dict of tensors.
            For a variance, return the squares too.
        num_samples: K.
        chunk_size: samples whose densities and f are evaluated at once; None: as many as are drawn at once, about a
            quarter of a million numbers.
        smooth: replace the largest weights by those of a Pareto distribution fitted to them (PSIS): less variance, some
            bias. Keeps min(K/5, 3√K) samples of f.

    Returns:
        An :class:`iwbounds.posterior.Expectation`: ``mean`` and ``standard_error`` in the structure of f, each
        ``(*batch, *event)`` float64.

    Raises:
        ValueError: f's shape does not start with that of the log-weights, or a number is out of range.

    Edge cases: f is not counted where the weight is zero; a datum whose weights are all zero has NaN. Draws that depend
    on each other (``independent=False``) have a mean and no standard error: NaN. For that of quasi-random draws,
    compare several calls.

    Reference: Owen (2013), Monte Carlo theory, methods and examples, section 9.2; for ``smooth``, Vehtari, Simpson,
    Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646.

    >>> from torch.distributions import Normal
    >>> log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0))
    >>> found = posterior_expectation(log_joint, Normal(0.5, 1.0), lambda z: {"mean": z, "square": z**2}, 10_000)
    >>> bool((found.mean["mean"] - 0.5).abs() < 0.05), bool((found.mean["square"] - 0.75).abs() < 0.05)
    (True, True)
    """
    if num_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"expected num_samples and chunk_size of at least 1; got {num_samples} and {chunk_size}.")
    weighted = Weighted.of(log_joint, proposal)
    size = tail_size(num_samples)
    # One more than the tail, as its threshold is the largest weight outside; five are the fewest a fit takes.
    state = _Moments(size + 1 if smooth and size >= 5 else 0)
    for block in weighted.blocks(num_samples):
        for chunk in weighted.chunks(block, chunk_size):
            state.add(weighted.log_weights(chunk), f(weighted.visible(chunk)))
    found = state.result()
    return found if weighted.proposal.independent else without_error(found)


@dataclass
class _Sums:
    """Weighted sums of one tensor of values, relative to the maximum of all weights so far."""

    centre: Tensor
    first: Tensor
    """Σ w f."""
    second: Tensor
    """Σ w² f."""
    third: Tensor
    """Σ w² f²."""

    def rescale(self, scale: Tensor) -> None:
        scale = expanded(scale, self.first)
        self.first *= scale
        self.second *= scale * scale
        self.third *= scale * scale

    def add(self, w: Tensor, f: Tensor) -> None:
        w = expanded(w, f)
        f = (f.double() - self.centre).masked_fill(w == 0, 0.0)  # 0 · inf is NaN
        self.first += (w * f).sum(0)
        self.second += (w * w * f).sum(0)
        self.third += (w * w * f * f).sum(0)

    def result(self, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        total, squares = expanded(total, self.first), expanded(squares, self.first)
        mean = self.first / total
        # Σ w² (f − f̄)², multiplied out, as f̄ is known only at the end; the centre has been taken off to keep its
        # digits.
        variance = self.third - 2 * mean * self.second + mean.square() * squares
        return mean + self.centre, variance.clamp_min(0).sqrt() / total


class _Moments:
    """The sums of all values, and the samples that wait for their tail to be smoothed."""

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting
        self._kept: tuple[Tensor, Any] | None = None
        self._maximum = self._total = self._squares = torch.tensor(0.0)
        self._sums: Any = None

    def add(self, log_w: Tensor, values: Any) -> None:
        """One chunk of samples ``(n, *batch)`` with f of them."""
        log_w = log_w.double()
        values = map_latents(lambda f: check_values(f, log_w.shape), values)
        if self._waiting:
            log_w, values = self._hold_back(log_w, values)
        self._sum(log_w, values)

    def _hold_back(self, log_w: Tensor, values: Any) -> tuple[Tensor, Any]:
        """Keep the largest weights seen so far, and give the others back."""
        if self._kept is not None:
            log_w = torch.cat([self._kept[0], log_w])
            values = map_latents(lambda f, kept: torch.cat([kept, f]), values, self._kept[1])
        # Sorted each time with those kept before: what is given back can never be among the largest of all.
        order = log_w.argsort(dim=0, descending=True)
        log_w, values = log_w.gather(0, order), take_samples(values, order)
        cut = self._waiting
        # clone: a slice would keep the whole chunk alive.
        self._kept = log_w[:cut], map_latents(lambda f: f[:cut].clone(), values)
        return log_w[cut:], map_latents(lambda f: f[cut:], values)

    def _sum(self, log_w: Tensor, values: Any) -> None:
        if not len(log_w):
            return
        top = log_w.amax(0)
        if self._sums is None:
            self._start(log_w, values)
        maximum = torch.maximum(self._maximum, top)
        # Before the first weight above zero all sums are 0, and 0 times this scale is 0, whatever it is.
        self._rescale((finite_or_zero(self._maximum) - finite_or_zero(maximum)).clamp_max(0).exp())
        self._maximum = maximum
        w = (log_w - finite_or_zero(maximum)).exp()
        self._total += w.sum(0)
        self._squares += w.square().sum(0)
        map_latents(lambda f, sums: sums.add(w, f), values, self._sums)

    def _start(self, log_w: Tensor, values: Any) -> None:
        self._maximum = torch.full_like(log_w[0], -torch.inf)
        self._total, self._squares = torch.zeros_like(log_w[0]), torch.zeros_like(log_w[0])

        def empty(f: Tensor) -> _Sums:
            # Any centre is right; a finite one close to the mean keeps the digits of the variance.
            centre = f.double().mean(0).nan_to_num(0.0, 0.0, 0.0)
            return _Sums(centre, *(torch.zeros_like(centre) for _ in range(3)))

        self._sums = map_latents(empty, values)

    def _rescale(self, scale: Tensor) -> None:
        self._total *= scale
        self._squares *= scale.square()
        for sums in latent_leaves(self._sums):
            sums.rescale(scale)

    def result(self) -> Expectation:
        """Means and standard errors of everything added."""
        if self._kept is not None:
            log_w, values = self._kept
            self._sum(pareto_smoothed_tail(log_w), values)
        # 0/0, for a datum without a weight, is NaN: nothing is known of its posterior.
        return expectation_of(lambda sums: sums.result(self._total, self._squares), self._sums)
