"""Whether the weights of an estimate describe anything, for a training loop to ask while it runs."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

from torch import Tensor

from iwbounds.diagnostics import effective_sample_size, pareto_k, pareto_k_threshold
from iwbounds.engine.result import Estimate

__all__ = ["Health", "HealthMonitor", "UnhealthyWeights", "check_health"]

_FEWEST_FOR_SHAPE = 100  # below, k̂ comes from fewer than 20 weights and crosses its threshold on healthy ones


class UnhealthyWeights(UserWarning):
    """Warned of where one sample carries an estimate, or the tail of the weights is too heavy.

    >>> issubclass(UnhealthyWeights, UserWarning)
    True
    """


@dataclass(frozen=True)
class Health:
    """What :func:`check_health` found.

    >>> print(Health(1.2, 32, float("nan"), ("one sample of 32 carries the estimate",)))
    median ESS 1.2 of 32: one sample of 32 carries the estimate
    """

    ess: float
    """Median over the batch."""
    num_samples: int
    pareto_k: float
    """Median over the batch; NaN below 100 samples, where it would say more of its prior than of the weights."""
    complaints: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to complain of."""
        return not self.complaints

    def __str__(self) -> str:
        return f"median ESS {self.ess:.1f} of {self.num_samples}: {'; '.join(self.complaints) or 'healthy'}"


def check_health(estimate: Estimate | Tensor) -> Health:
    """Whether the weights carry an estimate; warns where they do not, as training that has gone wrong never says so.

    Complains where the median effective sample size over the batch is near 1 (at most 2, or 1 + (K − 1)/20 for few
    samples), where the median of Pareto's k̂ is above min(1 − 1/log10 K, 0.7) (from 100 samples on), and of NaN.

    One look at a single datum may be bad by chance: in a loop use :class:`iwbounds.evidence.HealthMonitor`, which waits
    for it to persist. Reads numbers back from the device, so call it every so many steps.

    Args:
        estimate: of :func:`iwbounds.estimate`, or log-weights ``(K, *batch)``.

    Returns:
        A :class:`iwbounds.evidence.Health`.

    Warns:
        UnhealthyWeights: once per line of code that calls it, under Python's default filter.

    Edge cases: a single sample always has an effective sample size of 1, so nothing is concluded from it.

    >>> import torch
    >>> check_health(torch.zeros(8, 3)).healthy
    True
    """
    health = _examined(estimate)
    if not health.healthy:
        _warn(health.complaints)
    return health


@dataclass
class HealthMonitor:
    """Call it with every estimate of a training loop; it warns once, when ``patience`` in a row are unhealthy.

    Args:
        patience: how many unhealthy estimates in a row make an illness.

    Warns:
        UnhealthyWeights: once, with the numbers of the last estimate.

    >>> import torch
    >>> monitor = HealthMonitor(patience=2)
    >>> monitor(torch.zeros(8, 3)).healthy, monitor.unhealthy_in_a_row
    (True, 0)
    """

    patience: int = 20
    unhealthy_in_a_row: int = field(default=0, init=False)
    warned: bool = field(default=False, init=False)

    def __call__(self, estimate: Estimate | Tensor) -> Health:
        """Take one estimate into account."""
        health = _examined(estimate)
        self.unhealthy_in_a_row = 0 if health.healthy else self.unhealthy_in_a_row + 1
        # Once: an ill proposal stays ill, and a warning at every step would bury all else in the log.
        if self.unhealthy_in_a_row >= self.patience and not self.warned:
            self.warned = True
            _warn((f"{self.patience} estimates in a row, the last: {health}",))
        return health


def _examined(estimate: Estimate | Tensor) -> Health:
    log_w = estimate if isinstance(estimate, Tensor) else estimate.log_weights
    count = len(log_w)
    # Medians: a few data that the proposal misses are no collapse of it.
    ess = effective_sample_size(log_w).flatten().median().item()
    shape = pareto_k(log_w).flatten().median().item() if count >= _FEWEST_FOR_SHAPE else math.nan
    return Health(ess, count, shape, tuple(_complaints(ess, count, shape)))


def _complaints(ess: float, count: int, shape: float) -> list[str]:
    # Without numbers that change: Python shows a warning once per line of code as long as its text is the same.
    found = []
    # First: NaN fails every comparison below, and would pass for health.
    if math.isnan(ess):
        found.append("log-weights are NaN (find them with iwbounds.testing.check_contract)")
    # For few samples a twentieth of the way from 1 to K: an ESS of 2 is good at K = 3.
    elif count > 1 and ess <= min(2.0, 1 + (count - 1) / 20):
        found.append(f"one sample of {count} carries the estimate")
    if shape > pareto_k_threshold(count):
        found.append(f"the tail of the weights is too heavy for {count} samples (k̂ > {pareto_k_threshold(count):.2f})")
    return found


def _warn(complaints: tuple[str, ...]) -> None:
    warnings.warn(
        f"{'; '.join(complaints)}. The bound says little about log p(x), and its gradient little about the proposal. "
        "Take a smaller learning rate, start from a proposal fitted with the ELBO, or raise num_samples.",
        UnhealthyWeights,
        stacklevel=3,  # the line that called check_health or the monitor, for Python's "once per line"
    )
