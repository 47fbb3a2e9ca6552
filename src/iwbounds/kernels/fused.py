"""Value and coefficients of a bound, and of VIMCO, in one launch; and the same in plain torch, their reference."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from iwbounds.kernels.dispatch import runs_kernel
from iwbounds.logspace.leave_one_out import leave_one_out_mean, plain_leave_one_out
from iwbounds.logspace.mean import finite_maximum, normalized_weights, plain_log_mean_exp, promoted
from iwbounds.logspace.power import log_power_mean, power_mean_replacing_each, power_weights, sample_mean

__all__ = ["FusedBound", "FusedVIMCO", "fused_bound", "fused_vimco"]


class FusedBound(NamedTuple):
    """A bound and its coefficients for ``(K, *batch)`` log-weights; all detached, in at least float32."""

    value: Tensor
    """``(*batch)`` nats."""
    model: Tensor
    """c, the gradient of the bound in the log-weights."""
    path: Tensor | None
    """c − h, the path coefficient of DReG; None where it was not asked for."""


class FusedVIMCO(NamedTuple):
    """IWAE and VIMCO's coefficients for ``(K, *batch)`` log-weights; all detached, in at least float32."""

    value: Tensor
    """``(*batch)`` nats."""
    model: Tensor
    """The normalised weights."""
    score: Tensor
    """(L − L₋ₖ) − c, 0 where it would be infinite."""


def fused_bound(
    log_w: Tensor, power: float = 1.0, elbo_part: float = 0.0, *, path: bool = True, kernel: bool | None = None
) -> FusedBound:
    r"""Value and pathwise coefficients of a power-mean bound, from one read of the log-weights.

    .. math:: L = s\,\frac1K\sum_k \log w_k + (1-s)\,\frac1p\log\frac1K\sum_k w_k^p

    With power p and ELBO part s this is IWAE (1, 0), Rényi (1 − α, 0), the ELBO (any p, 1), CIWAE(β) (1, β).
    Reparameterised and STL gradients use c (``model``), DReG uses c and c − h (``path``).

    Args:
        log_w: ``(K, *batch)`` nats, any strides; detached inside.
        power: p, finite; 0 is the mean of the log-weights.
        elbo_part: s in [0, 1].
        path: whether c − h is wanted.
        kernel: None: a kernel on CUDA; True: a kernel or an error; False: the reference.

    Returns:
        :class:`FusedBound`, in at least float32.

    Edge cases: a −inf log-weight makes the value −inf and its datum's coefficients 0 where the bound needs it (s > 0 or
    p < 0), and has coefficient 0 elsewhere. NaN and +inf as :func:`iwbounds.log_mean_exp`.

    Raises:
        ValueError: infinite ``power``, ``elbo_part`` outside [0, 1], no samples.
        TypeError: not floating.
        RuntimeError: ``kernel=True`` where none can run.

    >>> fused_bound(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])).model
    tensor([0.5000, 0.5000, 0.0000, 0.0000])
    """
    power, elbo_part = _checked_mean(power, elbo_part)
    full = promoted(log_w).detach()
    if not runs_kernel(full, kernel):
        return _plain_bound(full, power, elbo_part, path)
    from iwbounds.kernels.triton_bound import launch_bound

    x, value, c = _inputs_and_outputs(log_w)
    # Where c − h is not wanted the kernel is compiled without it: a third less to write.
    b = torch.empty_like(c) if path else None
    launch_bound(x, value, c, b, power, elbo_part)
    shape = log_w.shape
    return FusedBound(value.reshape(shape[1:]), c.reshape(shape), None if b is None else b.reshape(shape))


def fused_vimco(log_w: Tensor, *, geometric: bool = False, kernel: bool | None = None) -> FusedVIMCO:
    r"""IWAE and VIMCO's coefficients in O(K), by the top-2 algorithm.

    Args:
        log_w: ``(K, *batch)`` nats, K ≥ 2, any strides; detached inside.
        geometric: compare with the geometric mean of the others, not the arithmetic one.
        kernel: as in :func:`fused_bound`.

    Returns:
        :class:`FusedVIMCO`, in at least float32; where L or L₋ₖ is −inf the score is 0.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`fused_bound`; fewer than two samples.

    >>> fused_vimco(torch.zeros(2)).score
    tensor([-0.5000, -0.5000])
    """
    full = promoted(log_w).detach()
    if full.shape[0] < 2:
        raise ValueError(f"expected at least 2 samples to leave one out; got shape {tuple(log_w.shape)}.")
    if not runs_kernel(full, kernel):
        return _plain_vimco(full, geometric)
    from iwbounds.kernels.triton_leave_one_out import launch_vimco

    x, value, c = _inputs_and_outputs(log_w)
    score = torch.empty_like(c)
    launch_vimco(x, value, c, score, geometric)
    return FusedVIMCO(value.reshape(log_w.shape[1:]), c.reshape(log_w.shape), score.reshape(log_w.shape))


def _plain_bound(x: Tensor, power: float, elbo_part: float, path: bool) -> FusedBound:
    """The formulas of the README's section 1, read aloud."""
    # The mean of the logs and a mean of negative powers are −inf as soon as one weight is zero.
    void = x.isneginf().any(0) & (elbo_part > 0 or power < 0)
    rest = 1 - elbo_part
    # Without its own branch the unused mean would bring 0 * inf into the sum.
    power_mean, v = (log_power_mean(x, power), power_weights(x, power)) if rest else (0.0, torch.zeros_like(x))
    mean = elbo_part * sample_mean(x) if elbo_part else 0.0
    c = elbo_part / x.shape[0] + rest * v
    c_minus_h = elbo_part / x.shape[0] + rest * v * ((1 - power) + power * v)
    value = torch.as_tensor(mean + rest * power_mean).masked_fill(void, -torch.inf)
    return FusedBound(value, c.masked_fill(void, 0.0), c_minus_h.masked_fill(void, 0.0) if path else None)


def _plain_vimco(x: Tensor, geometric: bool) -> FusedVIMCO:
    """Arithmetic or geometric VIMCO for IWAE, K ≥ 2."""
    # Differences L − L₋ₖ do not depend on the maximum, and keep their digits only without it.
    y = x - finite_maximum(x, 0)
    without = power_mean_replacing_each(y, leave_one_out_mean(y), 1.0) if geometric else plain_leave_one_out(y)
    w = normalized_weights(y)
    advantage = plain_log_mean_exp(y) - without
    # −inf minus −inf: where no weight lives there is nothing to learn, and the score is 0.
    score = (advantage - w).masked_fill(x.isneginf().all(0), 0.0)
    return FusedVIMCO(plain_log_mean_exp(x), w, score.nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0))


def _checked_mean(power: float, elbo_part: float) -> tuple[float, float]:
    """The two numbers of the mean; power 0, the mean of the log-weights, is the ELBO, and so is ELBO part 1."""
    if not math.isfinite(power):
        raise ValueError(f"expected a finite power; got {power}. Use amax or amin for an infinite one.")
    if not 0 <= elbo_part <= 1:
        raise ValueError(f"expected an elbo_part in [0, 1]; got {elbo_part}. 0 is the power mean, 1 the ELBO.")
    return (1.0, 1.0) if power == 0 or elbo_part == 1 else (float(power), float(elbo_part))


def _inputs_and_outputs(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(K, *batch)`` viewed as ``(K, batch)`` (copied where strides leave no such view); value and c, not yet filled.

    Half types are read as they are: the kernel widens them in registers.
    """
    # prod, as −1 cannot be inferred in an empty batch.
    x = log_w.detach().reshape(log_w.shape[0], math.prod(log_w.shape[1:]))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    value, c = (torch.empty(shape, dtype=dtype, device=x.device) for shape in (x.shape[1:], x.shape))
    return x, value, c
