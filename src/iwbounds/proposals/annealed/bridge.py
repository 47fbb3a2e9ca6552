r"""The densities a chain goes between, and their values and slopes at its states, with two kinds of gradient apart.

A state z depends on the parameters λ through the path that led to it, and so do :math:`\log p(x,z)`, :math:`\log q(z)`,
their slopes and a network's output; all of them depend on their own parameters explicitly besides. The c − h rule
treats the two apart. So each function is evaluated once, at a copy of z outside the graph, and handed on twice:

* **fixed**: as it is. Its derivative is the explicit one, z held fixed.
* **live**: joined to the graph of z. Its derivative is the total one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iwbounds.checks import check_log_joint, check_log_q
from iwbounds.proposals.annealed.schedule import StepSize, number_at
from iwbounds.proposals.base import LogJoint, Proposal

__all__ = [
    "Bridge",
    "State",
    "Term",
    "Values",
    "has_parameters",
    "over_event",
    "slope_of",
    "standard_normal_like",
    "sum_event",
    "uniform_like",
]

Term = Callable[[Tensor], Tensor | None]
"""A function of z beside the densities, such as a network at a given step; None where there is none."""


class Values(NamedTuple):
    """What a transition needs to know of a state."""

    log_p: Tensor
    """log p(x, z), ``(K, *batch)``."""
    log_q: Tensor
    """log q(z), ``(K, *batch)``."""
    slope_p: Tensor
    """∂ log p/∂z, in the shape of z."""
    slope_q: Tensor
    terms: tuple[Tensor | None, ...] = ()

    def slope(self, beta: Tensor) -> Tensor:
        """∂ log π_β/∂z."""
        return beta * self.slope_p + (1 - beta) * self.slope_q


class State(NamedTuple):
    """A state of the chain."""

    z: Tensor
    live: Values
    """In the graph of z and of the parameters."""
    fixed: Values
    """In the graph of the parameters alone."""


@dataclass(frozen=True)
class Bridge:
    """p(x, ·), q, and the T steps between them."""

    log_joint: LogJoint
    initial: Proposal
    num_steps: int
    betas: Tensor
    """``(T + 1,)`` or ``(T + 1, *batch)``."""

    def start(self, num_samples: int) -> Tensor:
        """z_0 ~ q.

        Raises:
            TypeError: the initial proposal's latents are not one tensor.
        """
        z = self.initial.sample((num_samples,))
        if not isinstance(z, Tensor) or not z.is_floating_point():
            found = f"one of {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(
                f"expected the initial proposal of a chain to draw one floating tensor, which moves along slopes; got "
                f"{found}. Stack the parts of the latent into one tensor, and split it inside log_joint."
            )
        return z

    def beta(self, step: int, z: Tensor, log_density: Tensor) -> Tensor:
        """The β of transition ``step``, half way between its two ends: of the same accuracy in both directions."""
        beta = ((self.betas[step] + self.betas[step + 1]) / 2).to(z)
        return over_event(beta, z, log_density) if beta.ndim else beta

    def size(self, step_size: StepSize, step: int, z: Tensor) -> Tensor:
        """The step size of transition ``step``."""
        return number_at("step_size", step_size, step, z)

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z), each ``(K, *batch)``, of known shapes."""
        log_q = check_log_q(self.initial.log_prob(z), z, self.initial.batch_shape)
        return check_log_joint(self.log_joint(z), log_q), log_q

    def at(self, z: Tensor, *terms: Term) -> State:
        """The state z; one call of the log-joint."""
        # Asked before enable_grad: whether the caller wants a graph of the values, and not only slopes.
        track = torch.is_grad_enabled()
        values, copy = self._at_copy(z, terms, track)
        if not track:
            return State(z, values, values)
        flat = [*values[:4], *values.terms]
        # What leads to the copy alone would be walked in vain by a backward for parameters.
        explicit = [v if v is None or has_parameters(v, copy) else v.detach() for v in flat]
        live = _joined(z, copy, flat, explicit) if z.requires_grad else explicit
        return State(z, _values(live), _values(explicit))

    def _at_copy(self, z: Tensor, terms: tuple[Term, ...], track: bool) -> tuple[Values, Tensor]:
        # Slopes are derivatives: they are taken under no_grad too, of a copy that is a leaf.
        with torch.enable_grad():
            copy = z.detach().requires_grad_()
            log_p, log_q = self.log_densities(copy)
            slope_p = slope_of(log_p, copy, "log_joint", track)
            slope_q = slope_of(log_q, copy, "the initial proposal's log_prob", track)
        # Terms know of gradient modes by themselves: a network under no_grad makes no graph.
        others = tuple(term(copy) for term in terms)
        densities = (log_p, log_q, slope_p, slope_q) if track else (log_p.detach(), log_q.detach(), slope_p, slope_q)
        return Values(*densities, others), copy


def slope_of(log_density: Tensor, z: Tensor, name: str, create_graph: bool = False) -> Tensor:
    """∂ log-density/∂z for every sample and datum, from one backward: none depends on the latents of another.

    Raises:
        ValueError: there is no derivative.
    """
    found = None
    if log_density.requires_grad:
        # create_graph where a path is learned: the slope is then a function that is differentiated once more.
        # A log-joint that is flat in z has no gradient to give: told below, instead of an error of autograd's.
        (found,) = torch.autograd.grad(log_density.sum(), z, create_graph=create_graph, allow_unused=True)
    if found is None:
        raise ValueError(
            f"expected {name} to be differentiable in the latents, as a chain follows its slope; it has no derivative "
            "there (computed under torch.no_grad(), from detached latents, or constant). Keep z in its graph."
        )
    return found


def standard_normal_like(z: Tensor) -> Tensor:
    """The noise of a transition."""
    return torch.randn_like(z)


def uniform_like(x: Tensor) -> Tensor:
    """Numbers in [0, 1) for Metropolis decisions and lengths of steps."""
    return torch.rand_like(x)


def sum_event(x: Tensor, log_density: Tensor) -> Tensor:
    """Over all axes of a latent but the samples' and the batch's."""
    return x if x.ndim == log_density.ndim else x.flatten(log_density.ndim).sum(-1)


def over_event(x: Tensor, z: Tensor, log_density: Tensor) -> Tensor:
    """``(*batch)`` or ``(K, *batch)`` with an axis of size one for each of the event's."""
    return x.reshape(*x.shape, *[1] * (z.ndim - log_density.ndim))


def _values(flat: list[Any]) -> Values:
    log_p, log_q, slope_p, slope_q, *terms = flat
    return Values(log_p, log_q, slope_p, slope_q, tuple(terms))


def has_parameters(value: Tensor, copy: Tensor) -> bool:
    """Whether the graph of ``value`` has another leaf than ``copy``."""
    # The graph is walked, not differentiated: which leaves it has is all that is asked.
    seen, pending = set(), [value.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # Only the node that accumulates a leaf's gradient has this attribute.
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not copy:
            return True
        pending += [following for following, _ in node.next_functions]
    return False


def _joined(z: Tensor, copy: Tensor, values: list[Tensor | None], explicit: list[Tensor | None]) -> list[Tensor | None]:
    """The values in the graph of z and of the parameters that ``explicit`` leads to."""
    found = [(v, e) for v, e in zip(values, explicit, strict=True) if v is not None and e is not None]
    ends = _Ends([v for v, _ in found], copy, keep_graph=any(e.requires_grad for _, e in found))
    outputs = iter(_Joined.apply(z, ends, *[e for _, e in found]))  # type: ignore[no-untyped-call]
    return [None if v is None else next(outputs) for v in values]


@dataclass
class _Ends:
    """Values and the copy of z that they are functions of; in an object, so that autograd takes neither for inputs."""

    values: list[Tensor]
    copy: Tensor
    keep_graph: bool
    """Whether another backward, that for the parameters, walks the same graph afterwards."""


class _Joined(torch.autograd.Function):
    """Values of a copy of z, in the graph of z."""

    @staticmethod
    def forward(ctx: Any, _z: Tensor, ends: _Ends, *explicit: Tensor) -> tuple[Tensor, ...]:
        ctx.ends = ends
        # Most steps use some of the values: zeros for the others would be pulled through the whole log-joint.
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for value in explicit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ends = ctx.ends
        used = [(v, g) for v, g in zip(ends.values, grads, strict=True) if g is not None and v.requires_grad]
        slope = None
        if used:
            values, given = zip(*used, strict=True)
            (slope,) = torch.autograd.grad(values, ends.copy, given, retain_graph=ends.keep_graph, allow_unused=True)
        # What arrives goes on to the explicit values too, where autograd adds it to their own before it walks on.
        return slope, None, *grads
