"""A bound's derivatives by autograd of its own ``__call__``, whatever closed form it has."""

from __future__ import annotations

from torch import Tensor

import iwbounds as iw


def by_autograd(bound: iw.Bound, log_w: Tensor):
    """Value, c and c − h as :meth:`iwbounds.Bound.differentiate` makes them for a user's bound."""
    return iw.Bound.differentiate(bound, log_w, path=True)


def autograd_derivatives(bound: iw.Bound, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """c and h."""
    _, c, c_minus_h = by_autograd(bound, log_w)
    return c, c - c_minus_h
