"""Which code runs: a kernel on CUDA tensors where Triton is installed, plain torch elsewhere. Never imports Triton."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["kernels_available", "plain_only", "runs_kernel"]

HAS_TRITON = importlib.util.find_spec("triton") is not None
OLDEST_CAPABILITY = (7, 5)


def kernels_available(device: torch.device | str | None = None) -> bool:
    """Whether the fused Triton kernels can run on ``device``; None: on any GPU here.

    They run by themselves on CUDA tensors. On CPU tensors they run on request only, in Triton's interpreter, if
    ``TRITON_INTERPRET=1`` is set. Triton is looked for, not imported.

    >>> kernels_available("meta")
    False
    """
    return _obstacle(torch.device("cuda" if device is None else device)) is None


def runs_kernel(x: Tensor, kernel: bool | None = None) -> bool:
    """Whether a kernel computes what is asked of ``x``: as ``kernel`` says, or (None) on CUDA tensors where it can.

    A compiler and ``torch.func`` transforms get plain code, which they fuse or differentiate themselves.

    Raises:
        RuntimeError: ``kernel=True``, and it cannot run; the message says why, and what to do.
    """
    if kernel is None:
        # Cheapest question first: on a CPU nothing else is asked.
        return x.is_cuda and not plain_only(x) and _obstacle(x.device) is None
    obstacle = (_obstacle(x.device) or _transform_obstacle(x)) if kernel else None
    if obstacle is not None:
        raise RuntimeError(f"expected to run a Triton kernel, as kernel=True asks; {obstacle}.")
    return kernel


def plain_only(*tensors: Tensor) -> bool:
    """Whether only plain torch code will do: under a compiler or a ``torch.func`` transform, or for a dual tensor."""
    # Inductor fuses the plain code itself, and cannot look into a launch.
    if torch.compiler.is_compiling():
        return True
    # torch (2.13) has no public question for "inside vmap, grad or jvp"; this is the one private call of the package.
    if torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)  # type: ignore[no-untyped-call]


def _obstacle(device: torch.device) -> str | None:
    """Why no kernel can run on ``device``, and what to do; None where one can."""
    if not HAS_TRITON:
        return "Triton is not installed. Install it (pip install triton), or use a CUDA build of torch, which ships it"
    if device.type == "cuda":
        return _gpu_obstacle(device)
    if device.type == "cpu":
        # Read on every call: tests set it for a while.
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "the tensors are on the CPU. Move them to a GPU, or set TRITON_INTERPRET=1"
    return f"got tensors on {device}. Move them to a CUDA device"


def _gpu_obstacle(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device. Check torch.cuda.is_available()"
    # The limit is NVIDIA's compute capability; AMD's numbers (torch.version.hip) mean something else.
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return f"the GPU's compute capability is below {OLDEST_CAPABILITY}, which Triton needs. Use kernel=False"
    return None


def _transform_obstacle(x: Tensor) -> str | None:
    if plain_only(x):
        return "torch.compile, torch.func and forward-mode AD need plain code. Use kernel=None"
    return None
