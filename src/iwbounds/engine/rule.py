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
            return self._by_kernel(bound, log_w) or self.gradient.evaluate(bound, log_w)
        value, c = bound.evaluate(log_w)
        other = self.gradient.coefficients(self.proposal_bound.frozen(log_w), log_w)
        return value, Coefficients(c, other.path, other.score, other.extra)

    def _by_kernel(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients] | None:
        """Value and coefficients from one pass of a GPU kernel, where one serves this bound, gradient and device."""
        if not log_w.is_cuda or bound.power_mean is None:
            return None
        from iwbounds.kernels import runs_kernel

        return self.gradient.fused(bound.power_mean, log_w) if runs_kernel(log_w) else None
