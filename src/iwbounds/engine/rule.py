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

    def check(self, num_samples: int, mixed: bool) -> None:
        """Raise where the gradient is wrong for the bound, or a bound cannot take so many samples."""
        if mixed and self.proposal_bound is not None:
            raise ValueError(
                "proposal_bound needs latents that are all reparameterised, or none; got mixed ones, whose path and "
                "score share one bound. Drop proposal_bound."
            )
        self.gradient.check(self.proposal_bound or self.bound)
        self.bound.check_count(num_samples)
        if self.proposal_bound is not None:
            self.proposal_bound.check_count(num_samples)

    @property
    def total(self) -> bool:
        """Whether all that is asked for is the total derivative of one bound."""
        return self.gradient.total and self.proposal_bound is None

    def evaluate(self, log_w: Tensor, differentiate: bool) -> tuple[Tensor, Coefficients | None]:
        """The value of ``bound``, and coefficients where there is a backward.

        The model's are those of ``bound``; path and score are those of ``proposal_bound`` where there is one.
        """
        bound = self.bound.frozen(log_w)
        if not differentiate:
            return bound(log_w), None
        if self.proposal_bound is None:
            value, coefficients = self.gradient.evaluate(bound, log_w)
            self.gradient.update(value)
            return value, coefficients
        value, c, _ = bound.differentiate(log_w)
        other = self.gradient.coefficients(self.proposal_bound.frozen(log_w), log_w)
        self.gradient.update(value)
        return value, Coefficients(c, other.path, other.score, other.extra)
