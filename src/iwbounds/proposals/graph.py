"""What a proposal does to the autograd graph of a tensor without changing its values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["cut", "gradient_only"]


def gradient_only(x: Tensor) -> Tensor:
    """Zero, with the gradient of ``x``; without one where ``x`` is infinite (inf − inf would be NaN)."""
    # nan_to_num also stops the gradient of what it replaces.
    return (x - x.detach()).nan_to_num(0.0)


def cut(z: Tensor) -> Tensor:
    """The same tensor with a node of its own, where a slope can be taken, and from which no gradient flows back.

    Unlike ``z.detach()`` it stays in the graph: what is made of it is walked with the rest in a backward.
    """
    return _Cut.apply(z)  # type: ignore[no-any-return, no-untyped-call]


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> None:
        return None
