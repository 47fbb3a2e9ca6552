"""What an estimate is: a value with a backward, the log-weights it came from, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.certificates import lower_confidence_bound
from iwbounds.checks import Latents
from iwbounds.diagnostics import effective_sample_size, pareto_k
from iwbounds.gradients.base import Coefficients
from iwbounds.logspace.mean import normalized_weights
from iwbounds.posterior import Expectation, resample_indices, self_normalized_mean, take_samples, without_error

__all__ = ["Estimate"]


@dataclass(frozen=True, repr=False)
class Estimate:
    """The result of :func:`iwbounds.estimate`, per datum.

    >>> import torch, iwbounds as iw
    >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> estimate = iw.estimate(lambda z: 0.0 * z, q, samples=torch.zeros(8, 3))
    >>> estimate
    Estimate(value of shape (3,), mean 0.9189 nats, direction lower, 8 samples)
    >>> estimate.value, estimate.direction, estimate.ess
    (tensor([0.9189, 0.9189, 0.9189]), <Direction.LOWER: 'lower'>, tensor([8., 8., 8.]))
    """

    value: Tensor
    """``(*batch)`` nats: forward is the bound, backward the gradient estimator (once)."""
    log_weights: Tensor
    """``(K, *batch)`` nats, detached, in at least float32."""
    direction: Direction
    """What the expected value is to log p(x)."""
    coefficients: Coefficients | None = None
    """What the backward sends down each channel; None where there is no backward."""
    samples: Latents | None = None
    """The latents that the log-joint received, detached; None unless ``keep_samples=True``."""
    independent: bool = True
    """Whether the samples of a datum are independent of each other."""

    def __repr__(self) -> str:
        shape, mean = tuple(self.value.shape), self.value.detach().float().mean().item()
        return (
            f"Estimate(value of shape {shape}, mean {mean:.4f} nats, direction {self.direction.value}, "
            f"{self.num_samples} samples)"
        )

    @property
    def num_samples(self) -> int:
        """K."""
        return self.log_weights.shape[0]

    @property
    def weights(self) -> Tensor:
        """``(K, *batch)`` self-normalised weights, which sum to one over K; all 0 where every weight is."""
        return normalized_weights(self.log_weights)

    @property
    def ess(self) -> Tensor:
        """``(*batch)`` effective sample sizes, between 1 and K."""
        return effective_sample_size(self.log_weights)

    @property
    def pareto_k(self) -> Tensor:
        """``(*batch)`` Pareto shapes of the largest weights; above 0.7 the value cannot be trusted as an evidence."""
        return pareto_k(self.log_weights)

    def expectation(self, f: Callable[[Latents], Any]) -> Expectation:
        """Posterior expectation of f(latents), self-normalised, with its standard error.

        Args:
            f: the latents that the log-joint received, ``(K, *batch, *event)``, to ``(K, *batch, …)`` (a tensor, or a
                tuple or dict of such).

        Returns:
            ``.mean`` and ``.standard_error``, ``(*batch, …)`` float64; see
            :func:`iwbounds.posterior.self_normalized_mean` for formula, bias and edge cases. The error is NaN where the
            samples depend on each other.

        Raises:
            ValueError: the estimate was made without ``keep_samples=True``.

        >>> import torch, iwbounds as iw
        >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
        >>> iw.estimate(q.log_prob, q, samples=torch.ones(8, 3), keep_samples=True).expectation(torch.exp).mean
        tensor([2.7183, 2.7183, 2.7183], dtype=torch.float64)
        """
        # The error's formula sums variances of independent terms; there is none for draws that fill space together.
        found = self_normalized_mean(self.log_weights, f(self._kept()))
        return found if self.independent else without_error(found)

    def resample(self, n: int) -> Latents:
        """n latents per datum, ``(n, *batch, *event)``, drawn with replacement with the probabilities ``weights``.

        Raises:
            ValueError: the estimate was made without ``keep_samples=True``.
        """
        indices = resample_indices(self.log_weights, n)
        return take_samples(self._kept(), indices)

    def lower_confidence_bound(self, confidence: float = 0.99) -> Tensor:
        """``(*batch)`` float64 nats that log p(x) exceeds with this probability.

        See :func:`iwbounds.lower_confidence_bound`.

        Raises:
            ValueError: the samples depend on each other, on which the certificate may not bet.
        """
        if not self.independent:
            raise ValueError(
                "expected independent samples, as the certificate bets on one after the other; got a proposal with "
                "independent=False. Give iw.lower_confidence_bound one log-mean-weight per independent randomisation."
            )
        return lower_confidence_bound(self.log_weights, confidence)

    def _kept(self) -> Latents:
        if self.samples is None:
            raise ValueError("expected an estimate that kept its samples; got none. Say keep_samples=True.")
        return self.samples
