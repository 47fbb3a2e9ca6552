r"""The reparameterised gradient with zero-mean control variates, whose strengths are learned from earlier steps.

For reparameterised, independent samples of a fixed support, any smooth function f of the log-weights gives

.. math:: C_f = \sum_k \Bigl[f_k\,\partial_\phi\log q(z_k)\big|_{z_k\text{ fixed}}
                - \frac{\partial f_k}{\partial\log w_k}\,\text{path}_k\Bigr], \qquad E[C_f] = 0,

by the second reparameterisation that makes :class:`DReG`. With g the reparameterised gradient,
:math:`g + \sum_j \lambda_j C_{f_j}` is unbiased for every bound and every λ that does not depend on these samples;
λ = 0 is Reparameterized, f = c with λ = 1 is DReG. The variance is least at the solution of

.. math:: \sum_j E\langle C_i, C_j\rangle\,\lambda_j = -E\langle C_i, g\rangle,

moments that need no centring, as E C = 0. They are estimated for the *location* gradient of each datum, for which
:math:`\partial_\phi \log q = -\partial_z \log q`, from the slopes of the log-densities that a backward pass has at
hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, final

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound
from iwbounds.checks import check_whole_number
from iwbounds.gradients.base import Coefficients, EvaluatedTogether
from iwbounds.gradients.lesson import Lesson, Notes
from iwbounds.gradients.reparameterized import refuse_jumps

__all__ = ["Controlled"]

_ENOUGH = 100
"""Data to have seen before the learned strengths replace DReG's."""


@final
class Controlled(EvaluatedTogether):
    r"""The reparameterised gradient with control variates :math:`C_f` for :math:`f = c, c^2, \dots`.

    .. math:: a_k = c_k, \qquad b_k = c_k - \sum_j \lambda_j\, j\, c_k^{j-1} h_k, \qquad
              s_k = -c_k + \sum_j \lambda_j c_k^j

    Unbiased for every smooth bound, for model and proposal parameters, as the strengths λ come from earlier steps.
    At the best λ its variance is never above that of :class:`Reparameterized` (λ = 0) or :class:`DReG`
    (λ = (1, 0, …)), both of which it contains; a learned λ comes close, and is not promised to be better. Starts as
    DReG, until 100 data have been seen. The gain is largest where the proposal is too narrow or too wide; near the
    posterior the first strength tends to DReG's.

    An object keeps what it has learned for each bound and K: use *one* object for the whole training (and another for
    another model), and save ``state_dict()`` with the optimiser's. Its moments are those of the location of each datum:
    for other parameters the best λ is not quite the same.

    λ is read once, when :func:`iwbounds.estimate` or :func:`iwbounds.accumulate` is called, and learned at the end of
    the backward (once per ``accumulate``), where the slopes of the two densities come by anyway: no density is
    evaluated twice for it. With ``backward_samples`` it learns on the few: their sums have the expectation of all, and
    their second moments are those of the gradient that is made. Data count as the loss weighs them. The ranks of a
    ``process_group`` learn the same. In data-parallel training without one each object learns from its own data, and
    each gradient is unbiased; :meth:`average_over_ranks` makes the strengths the same.

    Args:
        basis: how many powers of c, at least 1.
        decay: in [0, 1): how much of the moments is kept from one step to the next.
        strengths: λ by hand, ``basis`` numbers; nothing is learned.

    Edge cases: data whose slopes are not all finite teach nothing. Where a control variate is zero, or a multiple of
    another (c is constant for the ELBO and for K = 1), a small ridge towards DReG decides.

    Raises:
        ValueError: ``basis`` below 1, ``decay`` outside [0, 1), as many ``strengths`` as not ``basis``; the bound says
            ``smooth = False``; the proposal is extended (hierarchical), mixed, dependent, of a moving support, or has
            no derivative at fixed parameters.
        RuntimeError: under ``torch.compile``, which cannot trace a backward that learns; with ``strengths`` it can.

    References: the second reparameterisation is that of Tucker, Lawson, Gu and Maddison (2019), arXiv:1810.04152;
    control variates for pathwise gradients are those of Geffner and Domke (2020), Approximation Based Variance
    Reduction for Reparameterization Gradients, arXiv:2007.14634. The family and its basis are this library's.

    >>> from iwbounds import IWAE
    >>> Controlled(strengths=(0.5, 0.0)).coefficients(IWAE(), torch.zeros(2, 1)).score.squeeze(1)
    tensor([-0.2500, -0.2500])
    """

    pathwise = True
    takes_extended = False

    def __init__(self, basis: int = 2, decay: float = 0.95, strengths: Sequence[float] | None = None) -> None:
        basis = check_whole_number("basis", basis, 1, "2 takes c and c².")
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay in [0, 1); got {decay}.")
        if strengths is not None and len(strengths) != basis:
            raise ValueError(f"expected {basis} strengths, one for each power of c; got {len(strengths)}.")
        self.basis, self.decay = basis, decay
        self.strengths = None if strengths is None else tuple(float(s) for s in strengths)
        self._learned: dict[str, _Moments] = {}

    @property
    def learns(self) -> bool:  # type: ignore[override]
        """Whether the strengths are learned, and not given."""
        return self.strengths is None

    def check(self, bound: Bound) -> None:
        refuse_jumps(self, bound)

    def bounded_ratio(self, bound: Bound) -> bool:
        return bound.bounded_ratio  # b/a = 1 − Σ λ_j j c^{j−1} h/c, and h/c = 1 − (c − h)/c

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        refuse_jumps(self, bound)
        value, c, c_minus_h = bound.differentiate(log_w, path=True)
        assert c_minus_h is not None
        # From the bound's own c − h: h may cancel here, where only strengths depend on it, and not the path below.
        h = c - c_minus_h
        strengths = self.strengths_for(bound, len(log_w)).to(c.device, c.dtype).unbind()
        # 1 − Σ λ_j j c^{j−1}: at DReG's λ it is 0, and c − h comes out without a subtraction.
        rest = 1 - sum(strength * (j + 1) * c**j for j, strength in enumerate(strengths))
        path = c_minus_h + rest * h
        score = sum((strength * c ** (j + 1) for j, strength in enumerate(strengths)), -c)
        # λ was read above, before these samples teach anything: that is what keeps the estimator unbiased.
        lesson = self._lesson(_key(bound, len(log_w)), c, h) if self.learns else None
        return value, Coefficients(model=c, path=path, score=score, lesson=lesson)

    def strengths_for(self, bound: Bound, num_samples: int) -> Tensor:
        """λ ``(basis,)`` float64: those given, those learned for this bound and K, or DReG's until enough is seen."""
        if self.strengths is not None:
            return torch.tensor(self.strengths, dtype=torch.float64)
        learned = self._learned.get(_key(bound, num_samples))
        return _first(self.basis) if learned is None or learned.count < _ENOUGH else learned.best()

    def observe(self, bound: Bound, log_w: Tensor, slope_p: Tensor, slope_q: Tensor) -> None:
        r"""Learn from a batch by hand; its moments count from the next :meth:`update` on.

        A backward of :func:`iwbounds.estimate` does both by itself. Never do it before the coefficients at these
        samples are made: λ must not depend on the samples that it weighs.

        Args:
            bound: as given to :meth:`coefficients`.
            log_w: ``(K, *batch)``, detached.
            slope_p: :math:`\partial_z \log p(x, z)`, ``(K, *batch, *event)``; several latents concatenated.
            slope_q: :math:`\partial_z \log q(z)` at fixed parameters, of the same shape.
        """
        lesson = self.coefficients(bound, log_w).lesson
        if lesson is not None:
            lesson.notes.upstream = torch.ones_like(log_w[0])
            listeners = [lesson.of_p(1), lesson.of_q(1)]  # both, before the first is told: the last one hands all in
            for listener, slope in zip(listeners, (slope_p, slope_q), strict=True):
                listener(0, slope.detach())

    def _lesson(self, key: str, c: Tensor, h: Tensor) -> Lesson:
        """What to multiply the slopes by for g and every C_f, with respect to the location of each datum.

        There ∂ log q = −slope_q and path = slope_p − slope_q; g = c path − c ∂ log q = c slope_p.
        """
        # C_j of f = c^j is f ∂ log q − j c^(j−1) h path: its two slopes are sorted into those of log p and of log q.
        on_p = torch.stack([c, *(-(j + 1) * c**j * h for j in range(self.basis))])
        on_q = torch.stack([torch.zeros_like(c), *((j + 1) * c**j * h - c ** (j + 1) for j in range(self.basis))])
        return Lesson(on_p, on_q, Notes(functools.partial(self._learn, key), self._commit))

    @torch.no_grad()
    def _learn(self, key: str, sums: Tensor) -> None:
        """Second moments of g and every C_f, ``(1 + basis, *batch, events)``, over data; kept aside until committed."""
        # float64: moments are added up over thousands of steps, and c² may be smaller by K² than c.
        data = sums.reshape(len(sums), -1, sums.shape[-1]).double()
        # A datum is in with all of its sums or with none: moments of different data would not belong together.
        finite = data.isfinite().all(-1).all(0).unsqueeze(-1)
        data = torch.where(finite, data, 0.0)
        # Inner products over the event, summed over data: the total variance is what is to be small.
        moments = torch.einsum("ibe,jbe->ij", data, data)
        self._learned.setdefault(key, _Moments(self.basis)).add(moments, data.shape[1])

    def _commit(self) -> None:
        for learned in self._learned.values():
            learned.commit(self.decay)

    def update(self, value: Tensor) -> None:  # noqa: ARG002
        """Let count what was observed since the last step; the engine calls it where the parts of a batch are one."""
        self._commit()

    def pool(self, gather: Callable[[Any], list[Any]]) -> None:
        # Objects, not tensors: a process without data has seen no bound, and would not know what the others add up.
        mine = {key: part.taken() for key, part in self._learned.items()}
        for theirs in gather(mine):
            for key, (moments, count) in theirs.items():
                self._learned.setdefault(key, _Moments(self.basis)).add(moments, count)

    @torch.no_grad()
    def average_over_ranks(self, group: Any = None) -> None:
        """Average over the processes of a ``torch.distributed`` group what each has learned; calling it again changes
        nothing.

        For data-parallel training, where every rank learns from its own data: call it on every rank after the
        backward. Strengths that differ bias nothing; this makes them the same, and less noisy.

        Raises:
            ValueError: the ranks have learned for different bounds or numbers of samples.
        """
        keys: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(keys, sorted(self._learned), group)
        if any(other != keys[0] for other in keys):
            raise ValueError(f"expected every rank to have learned for the same bounds and K; got {keys}.")
        for key in keys[0]:
            self._learned[key].average(group)

    def explain(self) -> str:
        """λ for each bound and K, the data behind it, and the second moments of what it replaces, for the location."""
        if self.strengths is not None:
            return f"strengths {_numbers(self.strengths)}, fixed by hand"
        lines = [learned.explain(key) for key, learned in self._learned.items()]
        return "\n".join(lines or ["nothing seen yet: DReG"])

    def state_dict(self) -> dict[str, Any]:
        """What has been learned, to be saved beside the optimiser's state."""
        return {key: learned.state() for key, learned in self._learned.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict` of an object with the same ``basis``.

        Raises:
            ValueError: the state is of another ``basis``.
        """
        size = (1 + self.basis, 1 + self.basis)
        for key, part in state.items():
            if tuple(part["moments"].shape) != size:
                raise ValueError(
                    f"expected moments of shape {size} for basis={self.basis}; got {tuple(part['moments'].shape)} for "
                    f"{key}. Make the object with basis={part['moments'].shape[0] - 1}."
                )
        self._learned = {key: _Moments(self.basis, **part) for key, part in state.items()}

    def __repr__(self) -> str:
        given = "" if self.strengths is None else f", strengths={self.strengths}"
        return f"Controlled(basis={self.basis}, decay={self.decay}{given})"


class _Moments:
    """Second moments of (g, C_1, C_2, …), averaged over data and, with a decay, over steps."""

    def __init__(self, basis: int, moments: Tensor | None = None, weight: float = 0.0, count: int = 0) -> None:
        self.moments = torch.zeros(1 + basis, 1 + basis, dtype=torch.float64) if moments is None else moments.clone()
        self.weight, self.count = weight, count
        self._waiting: Tensor | None = None
        self._waiting_count = 0

    def add(self, moments: Tensor, count: int) -> None:
        """Sums over ``count`` data, kept aside until :meth:`commit`."""
        self._waiting = moments if self._waiting is None else self._waiting + moments
        self._waiting_count += count

    def taken(self) -> tuple[Tensor, int]:
        """What is kept aside, which is then no longer; on the CPU."""
        waiting = torch.zeros_like(self.moments) if self._waiting is None else self._waiting
        count, self._waiting, self._waiting_count = self._waiting_count, None, 0
        return waiting.cpu(), count

    def commit(self, decay: float) -> None:
        if self._waiting is None:
            return
        # Unnormalised, beside their weight: λ is a ratio of moments, and needs no bias correction.
        self.moments = decay * self.moments.to(self._waiting.device) + self._waiting
        self.weight = decay * self.weight + self._waiting_count
        self.count += self._waiting_count
        self._waiting, self._waiting_count = None, 0

    def average(self, group: Any) -> None:
        """Over ranks: the moments and their weight, so that λ is that of all data."""
        # One exchange for all three numbers, so that no rank can mix two states.
        mine = torch.cat([self.moments.flatten(), self.moments.new_tensor([self.weight, self.count])])
        torch.distributed.all_reduce(mine, group=group)
        mine /= torch.distributed.get_world_size(group)
        self.moments = mine[:-2].reshape(self.moments.shape)
        self.weight, self.count = mine[-2].item(), round(mine[-1].item())

    def best(self) -> Tensor:
        """The λ of least second moment, by a ridge towards DReG's.

        The ridge makes the system regular where one control variate is zero or a multiple of another; elsewhere it is
        too small to matter.
        """
        r, gram, start = (
            self.moments[1:, 0],
            self.moments[1:, 1:],
            _first(len(self.moments) - 1).to(self.moments.device),
        )
        diagonal = gram.diagonal()
        scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()  # unit diagonal: c² may be smaller by K² than c
        system = scale.unsqueeze(1) * gram * scale
        ridge = 1e-6 * torch.eye(len(scale), dtype=system.dtype, device=system.device)
        # solve_ex with no check: one would wait for the GPU. The ridge makes the system positive definite.
        step = torch.linalg.solve_ex(system + ridge, scale * -(r + gram @ start)).result
        best: Tensor = start + scale * step
        return best

    def explain(self, key: str) -> str:
        """One line."""
        if self.count < _ENOUGH:
            return f"{key}: DReG, as {self.count} of {_ENOUGH} data have been seen"
        strengths = self.best()
        mine, plain, doubly = (self._second_moment(s) for s in (strengths, 0 * strengths, _first(len(strengths))))
        return (
            f"{key}: strengths {_numbers(strengths.tolist())} from {self.count} data; second moment of the location "
            f"gradient {mine:.3g}, of Reparameterized {plain:.3g}, of DReG {doubly:.3g}"
        )

    def state(self) -> dict[str, Any]:
        return {"moments": self.moments.clone(), "weight": self.weight, "count": self.count}

    def _second_moment(self, strengths: Tensor) -> float:
        # The second moment of g + Σ λ_j C_j is the quadratic form of (1, λ).
        full = torch.cat([strengths.new_ones(1), strengths.to(self.moments.device)])
        return (full @ self.moments @ full).item() / self.weight


def _first(basis: int) -> Tensor:
    """DReG's λ, (1, 0, …)."""
    return torch.eye(1, basis, dtype=torch.float64)[0]


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"


def _key(bound: Bound, num_samples: int) -> str:
    """A bound by its class and settings, the same in another process; K.

    Tensors are left out: those are what a random bound has drawn for one call.
    """
    return f"{_described(bound)}, K = {num_samples}"


def _described(bound: Bound) -> str:
    names = [f.name for f in fields(bound)] if is_dataclass(bound) else sorted(vars(bound))
    settings = ((name, getattr(bound, name)) for name in names)
    shown = (
        f"{name}={_described(value) if isinstance(value, Bound) else value!r}"
        for name, value in settings
        if isinstance(value, Bound | int | float | str | tuple)
    )
    return f"{type(bound).__name__}({', '.join(shown)})"
