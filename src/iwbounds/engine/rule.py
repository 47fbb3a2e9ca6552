"""The user's choice of bounds and gradient, checked: what turns log-weights into a value and coefficients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from iwbounds.bounds import Bound
from iwbounds.gradients import Coefficients, Gradient

__all__ = ["Rule"]


@dataclass(frozen=True)
class Rule:
    """A bound, a gradient, and perhaps another bound for the proposal's part of the gradient."""

    bound: Bound
    gradient: Gradient
    proposal_bound: Bound | None = None

    def check(self, num_samples: int) -> None:
        """Raise where the gradient is wrong for the bound, or a bound cannot take so many samples."""
        self.gradient.check(self.proposal_bound or self.bound)
        self.bound.check_count(num_samples)
        if self.proposal_bound is not None:
            self.proposal_bound.check_count(num_samples)

    def coefficients(self, log_w: Tensor) -> Coefficients:
        """The model's coefficient from ``bound``; path and score from ``proposal_bound`` where there is one."""
        if self.proposal_bound is None:
            return self.gradient.coefficients(self.bound, log_w)
        other = self.gradient.coefficients(self.proposal_bound, log_w)
        return Coefficients(self.bound.gradient(log_w), other.path, other.score)
