"""Logs of power means of the weights, mixed with the mean of their logs: what ELBO, IWAE, Rényi, CUBO and CIWAE share.

One implementation serves all: values, derivatives, leave-one-out, and one fused kernel on a GPU.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Derivatives
from iwbounds.logspace.leave_one_out import leave_one_out_log_mean_exp
from iwbounds.logspace.mean import log_mean_exp, log_mean_exp_with_weights, served_by_kernel
from iwbounds.logspace.power import (
    log_power_mean,
    power_mean_replacing_each,
    power_path_weights,
    power_weights,
    sample_mean,
)

__all__ = ["PowerMean"]

_LARGEST_KERNEL_POWER = 1e4
"""The kernel's c − h = v (1 − p + p v) loses p times the rounding of float32."""


class PowerMean(Bound):
    r"""A part s of the ELBO, and the rest the log of a power mean of the weights.

    .. math:: L = s\,\frac1K\sum_k \log w_k + (1-s)\,\frac1p\log\frac1K\sum_k w_k^p

    .. math:: c_k = \frac sK + (1-s)\,v_k, \qquad c_k-h_k = \frac sK + (1-s)\,v_k\bigl(v_k+(1-p)(1-v_k)\bigr), \qquad
              v = \operatorname{softmax}(p \log w)

    At p = 0 it is the mean of the log-weights, the ELBO. At ±infinity it is the largest or smallest log-weight, whose
    gradient jumps: ``smooth`` is False.
    """

    @property
    @abstractmethod
    def power(self) -> float:
        """p."""

    elbo_part: float = 0.0
    """s in [0, 1), and 0 unless p = 1."""

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """False at infinite power."""
        return math.isfinite(self.power)

    @property
    def bounded_ratio(self) -> bool:  # type: ignore[override]
        """True at finite power: (c − h)/c is between 1 and 1 − p."""
        return self.smooth

    @property
    def power_mean(self) -> tuple[float, float] | None:  # type: ignore[override]
        """(p, s), the ELBO being (1, 1); None at infinite power."""
        if self.power == 0:
            return 1.0, 1.0
        # A kernel computes (1 − s) log-power-mean + s ELBO for any finite p; s = 1 makes its p irrelevant, so that the
        # ELBO needs no kernel of its own.
        return (self.power, self.elbo_part) if self.smooth else None

    def __call__(self, log_w: Tensor) -> Tensor:
        log_w = self.checked(log_w)
        if not self.elbo_part:
            # At p = 1 by the function that a GPU has a kernel for.
            return log_mean_exp(log_w) if self.power == 1 else log_power_mean(log_w, self.power)
        # The ELBO's part needs every weight alive; the IWAE part alone would not. Detached: a mask has no derivative.
        dead = log_w.detach().isneginf().any(0)
        # A dead datum is filled before the reductions, so that neither of them gives it a gradient.
        log_w = log_w.masked_fill(dead, 0.0)
        elbo, iwae = sample_mean(log_w), log_mean_exp(log_w)
        # In this form rounding cannot take it above IWAE or below the ELBO.
        return (elbo + (1 - self.elbo_part) * (iwae - elbo)).masked_fill(dead, -torch.inf)

    def differentiate(self, log_w: Tensor, path: bool = False) -> Derivatives:
        log_w = self.checked(log_w).detach()
        if not self.smooth:
            value, c, _ = super().differentiate(log_w)
            return Derivatives(value, c, c if path else None)  # between the jumps h is 0
        # On a GPU one kernel reads the weights once for value, c and c − h, where the lines below read them five times.
        if abs(self.power) <= _LARGEST_KERNEL_POWER and served_by_kernel(log_w):
            return self._by_kernel(log_w, path)
        if self.elbo_part:
            return self._mixed(log_w, path)
        if self.power == 1:
            value, w = log_mean_exp_with_weights(log_w)  # one pass over the weights for both
            # c − h = w̃ − w̃(1 − w̃): written as the product it is, nothing cancels where one weight has it all.
            return Derivatives(value, w, w * w if path else None)
        value, v = log_power_mean(log_w, self.power), power_weights(log_w, self.power)
        return Derivatives(value, v, power_path_weights(v, self.power) if path else None)

    def _by_kernel(self, log_w: Tensor, path: bool) -> Derivatives:
        # Imported here, as it brings Triton along, which takes 0.2 s and is of use on a GPU alone.
        from iwbounds.kernels.fused import fused_bound

        found = fused_bound(log_w, self.power, self.elbo_part, path=path)
        return Derivatives(found.value, found.model, found.path)

    def _mixed(self, log_w: Tensor, path: bool) -> Derivatives:
        """IWAE's derivatives with the ELBO's part added, and 0 where that part needs a weight that is dead."""
        _, w = log_mean_exp_with_weights(log_w)
        dead = log_w.isneginf().any(0)
        c, c_minus_h = (
            (self.elbo_part / len(w) + (1 - self.elbo_part) * part).masked_fill(dead, 0.0) for part in (w, w * w)
        )
        # The value from __call__, which has the rounding-safe form.
        return Derivatives(self(log_w), c, c_minus_h if path else None)

    def leave_one_out(self, log_w: Tensor, geometric: bool = False) -> Tensor:
        # Replacing a weight by the mean of the others leaves that mean: IWAE of the other K - 1.
        if self.power == 1 and not self.elbo_part and not geometric:
            return leave_one_out_log_mean_exp(self.checked(log_w).detach())
        return super().leave_one_out(log_w, geometric)

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        if not self.smooth or len(log_w) < 2:  # the closed form needs others
            return super().replace_each(log_w, fill)
        replaced = power_mean_replacing_each(log_w, fill, self.power)
        if not self.elbo_part:
            return replaced
        elbo = power_mean_replacing_each(log_w, fill, 0.0)
        # Where the ELBO is −inf the difference is inf − inf or +inf: the sum must be −inf, not NaN.
        return elbo + (1 - self.elbo_part) * (replaced - elbo).masked_fill(elbo.isneginf(), 0.0)
