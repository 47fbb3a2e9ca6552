"""What an estimate is: a value with a backward, the log-weights it came from, and what may be concluded from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from iwbounds.bounds import Direction
from iwbounds.checks import Latents
from iwbounds.diagnostics import effective_sample_size, pareto_k
from iwbounds.gradients import Coefficients
from iwbounds.logspace import normalized_weights

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
