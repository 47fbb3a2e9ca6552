"""Which path runs: the kernel on CUDA tensors where Triton is installed, else the reference. Imports Triton lazily."""

from __future__ import annotations

import importlib.util
import math
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

from iwbounds.logspace.kernels import reference
from iwbounds.logspace.kernels.reference import FusedBound, FusedNested, FusedVIMCO
from iwbounds.logspace.mean import promoted

__all__ = ["fused_bound", "fused_nested", "fused_vimco", "kernels_available", "plain_only", "runs_kernel"]

HAS_TRITON = importlib.util.find_spec("triton") is not None
OLDEST_CAPABILITY = (7, 5)
MOST_INNER = 4096


def kernels_available(device: torch.device | str | None = None) -> bool:
    """Whether the fused Triton kernels can run on ``device``; None: on any GPU here.

    They run by themselves on CUDA tensors. On CPU tensors they run on request only, in Triton's interpreter, if
    ``TRITON_INTERPRET=1`` is set. Triton is looked for, not imported.

    >>> kernels_available("meta")
    False
    """
    return _obstacle(torch.device("cuda" if device is None else device)) is None


def runs_kernel(x: Tensor, kernel: bool | None = None) -> bool:
    """Whether the kernel is to serve ``x``: as asked by ``kernel``, or (None) on CUDA tensors where it can.

    A compiler and ``torch.func`` transforms are left the plain code, which they fuse or differentiate themselves.

    Raises:
        RuntimeError: ``kernel=True``, and it cannot run; the message says why, and what to do.
    """
    if kernel is None:
        return x.is_cuda and not plain_only() and _obstacle(x.device) is None
    if kernel and (obstacle := _obstacle(x.device)) is not None:
        raise RuntimeError(f"expected to run a Triton kernel, as kernel=True asks; {obstacle}.")
    return kernel


def plain_only() -> bool:
    """Whether plain torch code is wanted: under a compiler, a ``torch.func`` transform or forward-mode AD."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def fused_bound(
    log_p: Tensor,
    log_q: Tensor | None = None,
    *,
    power: float = 1.0,
    share: float = 0.0,
    doubly: bool = True,
    kernel: bool | None = None,
) -> FusedBound:
    r"""Value, effective sample size and pathwise coefficients of a power-mean bound, from one read of the densities.

    .. math:: L = s\,\frac1K\sum_k \log w_k + (1-s)\,\frac1p\log\frac1K\sum_k w_k^p, \qquad \log w = \log p - \log q

    With power p and share s this is IWAE (1, 0), Rényi (1 − α, 0), the ELBO (any p, 1), CIWAE(β) (1, β).
    Reparameterised and STL gradients use c (``model``), DReG uses c and c − h (``path``).

    Args:
        log_p: ``(K, *batch)`` nats, any strides; graph-free inside.
        log_q: as ``log_p``; None: ``log_p`` holds the log-weights.
        power: p, finite; 0 is the mean of the log-weights.
        share: s in [0, 1].
        doubly: whether c − h is wanted.
        kernel: None: a kernel on CUDA; True: a kernel or an error; False: the reference.

    Returns:
        :class:`FusedBound`, in at least float32.

    Edge cases: a −inf log-weight makes the value −inf and its datum's coefficients 0 where the bound needs it (s > 0 or
    p < 0), and has coefficient 0 elsewhere. NaN and +inf as :func:`iwbounds.log_mean_exp`.

    Raises:
        ValueError: infinite ``power``, ``share`` outside [0, 1], different shapes, no samples.
        TypeError: not floating, or float32 against float64.
        RuntimeError: ``kernel=True`` where none can run.

    >>> fused_bound(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])).model
    tensor([0.5000, 0.5000, 0.0000, 0.0000])
    """
    power, share = _checked_mean(power, share)
    log_p, log_q = _checked_pair(log_p, log_q)
    if not runs_kernel(log_p, kernel):
        found = reference.bound(log_p, log_q, power, share)
        return found if doubly else found._replace(path=found.model)
    from iwbounds.logspace.kernels.triton_bound import launch_bound

    p, q = _flat(log_p), None if log_q is None else _flat(log_q)
    value, ess, x, c = _empty_outputs(p, q)
    b = torch.empty_like(c) if doubly else None
    launch_bound(p, q, (value, ess, None if q is None else x, c, b), power, share)
    found = FusedBound(*_shaped(log_p, value, ess, x, c, c if b is None else b))
    return found if doubly else found._replace(path=found.model)


def fused_vimco(
    log_p: Tensor, log_q: Tensor | None = None, *, geometric: bool = False, kernel: bool | None = None
) -> FusedVIMCO:
    r"""IWAE and VIMCO's coefficients in O(K), by the top-2 algorithm.

    Args:
        log_p: ``(K, *batch)`` nats, K ≥ 2, any strides.
        log_q: as ``log_p``; None: ``log_p`` holds the log-weights.
        geometric: compare with the geometric mean of the others, not the arithmetic one.
        kernel: as in :func:`fused_bound`.

    Returns:
        :class:`FusedVIMCO`, in at least float32; where L or L₋ₖ is −inf the score is 0.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`fused_bound`; fewer than two samples.

    >>> fused_vimco(torch.zeros(2)).score
    tensor([-0.5000, -0.5000])
    """
    log_p, log_q = _checked_pair(log_p, log_q)
    if log_p.shape[0] < 2:
        raise ValueError(f"expected at least 2 samples to leave one out; got shape {tuple(log_p.shape)}.")
    if not runs_kernel(log_p, kernel):
        return reference.vimco(log_p, log_q, geometric)
    from iwbounds.logspace.kernels.triton_leave_one_out import launch_vimco

    p, q = _flat(log_p), None if log_q is None else _flat(log_q)
    value, ess, x, c = _empty_outputs(p, q)
    score = torch.empty_like(c)
    launch_vimco(p, q, (value, ess, None if q is None else x, c, score), geometric)
    return FusedVIMCO(*_shaped(log_p, value, ess, x, c, score))


def fused_nested(
    log_p: Tensor, inner: Tensor, *, power: float = 1.0, share: float = 0.0, kernel: bool | None = None
) -> FusedNested:
    r"""A bound over M samples whose log-proposals are log-mean-exps of J inner log-weights, in one launch.

    .. math:: L\bigl(\log p_m - U_m\bigr), \qquad U_m = \log\frac1J\sum_j e^{v_{mj}}

    With J = K + 1 this is M-IWHVI; ``inner_path`` is the doubly reparameterised coefficient of the inner samples.

    Args:
        log_p: ``(M, *batch)`` nats.
        inner: ``(M, J, *batch)`` nats, the v; a view of any strides.
        power, share: the outer bound, as in :func:`fused_bound`.
        kernel: as in :func:`fused_bound`. The kernel takes J ≤ 4096.

    Returns:
        :class:`FusedNested`, in at least float32.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`fused_bound`.

    >>> fused_nested(torch.zeros(2), torch.zeros(2, 2)).inner
    tensor([[-0.2500, -0.2500],
            [-0.2500, -0.2500]])
    """
    power, share = _checked_mean(power, share)
    log_p, inner = promoted(log_p).detach(), promoted(inner, 1 if inner.ndim > 1 else 0).detach()
    if inner.ndim < 2 or (inner.shape[0], *inner.shape[2:]) != tuple(log_p.shape):
        raise ValueError(
            f"expected inner log-weights of shape ({log_p.shape[0]}, J, *batch) with the samples and the batch of "
            f"log_p, {tuple(log_p.shape)}; got {tuple(inner.shape)}. Move the inner axis to dimension 1."
        )
    _same_dtype(log_p, inner)
    if not runs_kernel(log_p, kernel) or (kernel is None and inner.shape[1] > MOST_INNER):
        return reference.nested(log_p, inner, power, share)
    if inner.shape[1] > MOST_INNER:
        raise RuntimeError(f"expected at most {MOST_INNER} inner samples for a kernel; got {inner.shape[1]}.")
    from iwbounds.logspace.kernels.triton_nested import launch_nested

    p, v = _flat(log_p), inner.reshape(*inner.shape[:2], math.prod(inner.shape[2:]))
    value, ess, x, c = _empty_outputs(p, p)
    outputs = (value, ess, x, c, torch.empty_like(c), v.new_empty(v.shape), v.new_empty(v.shape))
    launch_nested(p, v, outputs, power, share)
    gradient, path = (out.reshape(inner.shape) for out in outputs[5:])
    return FusedNested._make([*_shaped(log_p, *outputs[:5]), gradient, path])


def _obstacle(device: torch.device) -> str | None:
    """Why no kernel runs on ``device``, with the fix; None where one does."""
    if not HAS_TRITON:
        return "Triton is not installed. Install it (pip install triton), or use a CUDA build of torch, which ships it"
    if device.type == "cuda":
        return _gpu_obstacle(device)
    if device.type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "the tensors are on the CPU. Move them to a GPU, or set TRITON_INTERPRET=1"
    return f"got tensors on {device}. Move them to a CUDA device"


def _gpu_obstacle(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device. Check torch.cuda.is_available()"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return f"the GPU's compute capability is below {OLDEST_CAPABILITY}, which Triton needs. Use kernel=False"
    return None


def _checked_mean(power: float, share: float) -> tuple[float, float]:
    """The outer mean, with power 0 (the mean of the log-weights) said as a share of 1."""
    if not math.isfinite(power):
        raise ValueError(f"expected a finite power; got {power}. Use amax or amin for an infinite one.")
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share in [0, 1]; got {share}. 0 is the power mean, 1 the ELBO.")
    return (1.0, 1.0) if power == 0 or share == 1 else (float(power), float(share))


def _checked_pair(log_p: Tensor, log_q: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both densities, graph-free, known to be floating and to match; half types stay as they are."""
    promoted(log_p)
    if log_q is None:
        return log_p.detach(), None
    promoted(log_q)
    if log_p.shape != log_q.shape:
        raise ValueError(f"expected log_p and log_q of one shape; got {tuple(log_p.shape)} and {tuple(log_q.shape)}.")
    _same_dtype(log_p, log_q)
    return log_p.detach(), log_q.detach()


def _same_dtype(a: Tensor, b: Tensor) -> None:
    if (a.dtype == torch.float64) != (b.dtype == torch.float64):
        raise TypeError(f"expected log-densities of one precision; got {a.dtype} and {b.dtype}. Convert one of them.")


def _flat(x: Tensor) -> Tensor:
    """``(K, *batch)`` viewed as ``(K, batch)``; copied where strides leave no such view."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _empty_outputs(p: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, ESS, log-weights (``p`` itself where there is no ``q``) and coefficients, not yet filled."""
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    value = torch.empty(p.shape[1], dtype=dtype, device=p.device)
    c = torch.empty(p.shape, dtype=dtype, device=p.device)
    return value, torch.empty_like(value), p.to(dtype) if q is None else torch.empty_like(c), c


def _shaped(like: Tensor, *outputs: Tensor) -> list[Tensor]:
    """Outputs with the batch of ``like`` again."""
    return [out.reshape(out.shape[:-1] + like.shape[1:]) for out in outputs]
