"""Flows whose density is cheap only while they draw: inverse autoregressive ones, and continuous ones.

A torch ``Distribution`` of zuko is a proposal as it is. An inverse autoregressive flow, however, draws in one pass and
takes one pass *per dimension* to evaluate the density of what it drew; a continuous flow solves its differential
equation twice. ``rsample_and_log_prob`` gives both at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.proposals.base import Proposal
from iwbounds.proposals.distributions import has_path

__all__ = ["from_flow"]


def from_flow(flow: Any) -> Proposal:
    r"""A flow as a proposal that takes the density of its draws from the pass that made them.

    .. math:: z = T(\epsilon), \qquad \log q(z) = \log p(\epsilon) - \log\lvert\det \partial T / \partial\epsilon\rvert

    Made this way log q is a function of the noise, without a derivative at fixed parameters: the gradient is
    :class:`iwbounds.Reparameterized`, and every other is refused. Worth it where the inverse is expensive. With K = 64
    in 16 dimensions an inverse autoregressive flow of three layers took 1/46 of the time to evaluate and 1/8 to train
    (against DReG, 1/9); a continuous flow 0.8 of it. For a masked autoregressive, a coupling or a spline flow it saves
    nothing: pass the flow itself, which keeps DReG.

    Args:
        flow: a distribution with ``rsample_and_log_prob``, such as ``flow()`` or ``flow(context)`` gives in zuko.

    Returns:
        An :class:`iwbounds.Proposal`. At values that it did not draw last, such as posterior draws in
        :func:`iwbounds.sandwich`, it evaluates ``flow.log_prob``. It keeps its last draws until the next.

    Raises:
        TypeError: no such method; a lazy flow, which has to be called first; a flow without a path.

    >>> import iwbounds as iw, zuko
    >>> maf = zuko.flows.MAF(3)
    >>> iaf = zuko.flows.Flow([t.inv for t in maf.transform.transforms], maf.base)
    >>> iw.estimate(lambda z: -z.square().sum(-1), from_flow(iaf()), num_samples=8).value.shape
    torch.Size([])
    """
    if not isinstance(flow, Distribution) or not hasattr(flow, "rsample_and_log_prob"):
        called = " A lazy flow is called first: flow(), or flow(context)." if isinstance(flow, torch.nn.Module) else ""
        raise TypeError(
            f"expected a distribution with rsample_and_log_prob; got {type(flow).__name__}.{called} Other "
            "distributions are proposals as they are."
        )
    if not has_path(flow):
        raise TypeError(f"expected a flow with a reparameterised base; got {type(flow).__name__}. Pass it as it is.")
    remembered = _Remembered(flow)
    return Proposal(
        remembered.sample,
        remembered.log_prob,
        name=type(flow).__name__,
        total_derivative_only=True,
        batch_shape=tuple(flow.batch_shape),
    )


@dataclass
class _Remembered:
    """The flow and its last draws, with their log-density."""

    flow: Any
    drawn: tuple[Tensor, Tensor, int] | None = None
    """Samples, log q, and the samples' version, which changes when they are written to."""
    in_graph: bool = False

    def sample(self, shape: tuple[int]) -> Tensor:
        z, log_q = self.flow.rsample_and_log_prob(shape)
        # _version is private, and the only sign that somebody has written into the samples since.
        self.drawn, self.in_graph = (z, log_q, z._version), torch.is_grad_enabled()
        found: Tensor = z
        return found

    def log_prob(self, z: Tensor) -> Tensor:
        rows = self._rows(z)
        log_q: Tensor = self.flow.log_prob(z) if rows is None or self.drawn is None else self.drawn[1][rows]
        return log_q

    def _rows(self, z: Tensor) -> slice | None:
        """Which of the last draws ``z`` is; None where it is something else."""
        if self.drawn is None or self.drawn[0]._version != self.drawn[2]:
            return None
        drawn = self.drawn[0]
        # Drawn without a graph, log q would pass for one without parameters, and its gradient be missing in silence.
        if torch.is_grad_enabled() and not self.in_graph:
            return None
        if z is drawn:
            return slice(None)
        # A slice of a graph may be one of several (chunks, checkpoints), each to be backed through by itself; without
        # a graph, rows of the same memory are the same numbers.
        if torch.is_grad_enabled() or z.shape[1:] != drawn.shape[1:] or z.stride() != drawn.stride():
            return None
        if z.dtype != drawn.dtype or z.untyped_storage().data_ptr() != drawn.untyped_storage().data_ptr():
            return None
        # An expanded tensor has a stride of 0, by which nothing can be divided.
        start, off = divmod(int(z.storage_offset() - drawn.storage_offset()), max(1, drawn.stride(0)))
        return slice(start, start + len(z)) if off == 0 and 0 <= start <= len(drawn) - len(z) else None
