"""What an estimate is: a value with a backward, the log-weights it came from, and what may be concluded from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from iwbounds.bounds import Direction
from iwbounds.diagnostics import effective_sample_size, pareto_k
from iwbounds.gradients import Coefficients

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """The result of :func:`iwbounds.estimate`, per datum.

    >>> import torch, iwbounds as iw
    >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> estimate = iw.estimate(lambda z: 0.0 * z, q, samples=torch.zeros(8, 3))
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

    @property
    def num_samples(self) -> int:
        """K."""
        return self.log_weights.shape[0]

    @property
    def ess(self) -> Tensor:
        """``(*batch)`` effective sample sizes, between 1 and K."""
        return effective_sample_size(self.log_weights)

    @property
    def pareto_k(self) -> Tensor:
        """``(*batch)`` Pareto shapes of the largest weights; above 0.7 the value cannot be trusted as an evidence."""
        return pareto_k(self.log_weights)
