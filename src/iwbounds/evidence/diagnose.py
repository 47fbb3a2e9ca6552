"""One look at a model and its proposal: how tight each bound is, what the weights say, how noisy the gradients are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from iwbounds.bounds.base import Bound
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.jackknife import Jackknife
from iwbounds.checks import Latents, map_latents
from iwbounds.diagnostics import effective_sample_size, pareto_k
from iwbounds.engine import estimate
from iwbounds.evidence.reading import reading_of
from iwbounds.evidence.weighted import Weighted
from iwbounds.gradients.base import Gradient
from iwbounds.gradients.reparameterized import DReG, Reparameterized
from iwbounds.gradients.score import VIMCO, ScoreFunction
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal

__all__ = ["Diagnosis", "Row", "diagnose", "gradient_snr"]

Pair: TypeAlias = tuple[LogJoint, Distribution | Proposal | ExtendedProposal]
Model: TypeAlias = Callable[[Any], Pair]

_LARGEST_FOR_GRADIENTS = 100
_ELEMENTS = 200_000  # log-weights evaluated at once


class Row(NamedTuple):
    """What K samples give, averaged over the data (medians for ESS and k̂), in nats.

    >>> Row(5, -1.2, 0.01, -1.1, 3.0, float("nan"), 0.08).iwae
    -1.2
    """

    num_samples: int
    iwae: float
    error: float
    """Standard error over the draws, NaN where there is one group of K only."""
    jackknife: float
    """First order; no bound. NaN for one sample."""
    ess: float
    pareto_k: float
    predicted_gap: float
    """Var(w)/(2 K p²): how far below log p(x) IWAE is expected to be, to first order."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of :func:`iwbounds.diagnose`: a table, and ``reading``, what to make of it."""

    elbo: float
    rows: tuple[Row, ...]
    snr: dict[str, dict[int, float]]
    """By estimator, then by K: the signal-to-noise ratio of the proposal's gradient."""
    num_data: int
    num_nonfinite: int
    """Data with NaN or +inf among their log-weights."""
    model_snr: dict[int, float] = field(default_factory=dict)
    """By K: the same ratio of the model's gradient, which all these estimators share."""

    @property
    def reading(self) -> tuple[str, ...]:
        """In plain words: what to raise, and what to distrust."""
        return tuple(reading_of(self))

    def __str__(self) -> str:
        head = f"{'K':>7}{'IWAE':>13}{'± draws':>10}{'jackknife':>13}{'ESS':>9}{'k-hat':>7}{'Var/2K':>9}"
        lines = [
            f"{r.num_samples:>7}{r.iwae:>13.4f}{_cell(r.error, 10, 4)}{_cell(r.jackknife, 13, 4)}{r.ess:>9.1f}"
            f"{_cell(r.pareto_k, 7, 2)}{_cell(r.predicted_gap, 9, 4)}"
            for r in self.rows
        ]
        title = f"{self.num_data} data, nats per datum; ELBO {self.elbo:.4f}; medians of ESS and k-hat"
        return "\n".join([title, head, *lines, *self._snr_lines(), *(f"- {line}" for line in self.reading)])

    def _snr_lines(self) -> list[str]:
        table = {f"proposal, {name}": row for name, row in self.snr.items()}
        if self.model_snr:
            table["model, any of these" if table else "model"] = self.model_snr
        if not table:
            return []
        # The rows differ: VIMCO has no K = 1, and a stratified mixture multiples of J alone.
        counts = sorted({k for row in table.values() for k in row})
        head = f"{'signal/noise of the gradient':<40}" + "".join(f"{f'K = {k}':>10}" for k in counts)
        lines = [
            f"{name:<40}" + "".join(_cell(row.get(k, math.nan), 10, 2) for k in counts) for name, row in table.items()
        ]
        return [head, *lines]

    def plot(self, axes: Any = None) -> Any:
        """Bounds and signal-to-noise ratios against K (matplotlib): see :func:`iwbounds.plots.plot_diagnosis`."""
        # Here, not above: matplotlib is optional, and the pictures stand on a floor over this one.
        from iwbounds.plots.diagnosis import plot_diagnosis

        return plot_diagnosis(self, axes)


def _cell(value: float, width: int, digits: int) -> str:
    return f"{'–' if math.isnan(value) else f'{value:.{digits}f}':>{width}}"


def diagnose(
    model: Model,
    x: Any,
    num_samples: Sequence[int] = (1, 10, 100, 1000),
    *,
    parameters: Iterable[Tensor] | None = None,
    model_parameters: Iterable[Tensor] | None = None,
    repeats: int = 30,
) -> Diagnosis:
    r"""What more samples would give, whether to believe the evidence, and which gradient to train with.

    For each K: IWAE (averaged over groups of K of one set of max(K) samples), the first-order jackknife, effective
    sample size, Pareto's k̂, and the gap :math:`\operatorname{Var}(w)/(2K p(x)^2)` that theory predicts. Then the
    signal-to-noise ratio of the proposal's gradient under each estimator that fits the proposal, and of the model's,
    which is the same coefficients c whatever the estimator, K ≤ 100.

    Args:
        model: data to ``(log_joint, proposal)``; called once for the weights, and once per gradient.
        x: a small batch of data, whatever ``model`` takes.
        num_samples: the K's.
        parameters: of the proposal, for the gradients. None: those parameters of an ``nn.Module`` that log q depends
            or its samples depend on; without any, they are left out.
        model_parameters: of the log-joint. None: those of an ``nn.Module`` that log p(x, z) depends on at fixed z.
        repeats: gradients per estimator and K, 2 or more.

    Returns:
        A :class:`iwbounds.evidence.Diagnosis`: ``print`` it. No ``.grad`` is touched.

    Raises:
        ValueError: no K, a K below 1, or ``repeats`` below 2.

    References: Rainforth et al. (2018), Tighter variational bounds are not necessarily better, arXiv:1802.04537, for
    the ratio; Domke and Sheldon (2018), Importance weighting and variational inference, arXiv:1808.09034, theorem 3,
    for the gap.

    >>> from torch.distributions import Normal
    >>> def model(x):
    ...     return lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x), Normal(x / 2, 0.5**0.5)
    >>> diagnose(model, torch.zeros(20)).reading[0]
    'Every bound is tight: one sample gives log p(x) to 0.01 nats.'
    """
    counts = sorted({int(k) for k in num_samples})
    if not counts or counts[0] < 1 or repeats < 2:
        raise ValueError(f"expected num_samples of at least 1 and repeats >= 2; got {num_samples!r} and {repeats}.")
    log_w = _log_weights(Weighted.of(*model(x)), counts[-1])
    # By datum: one NaN in a batch would make every mean of the table NaN.
    finite = (~(log_w.isnan() | log_w.isposinf())).all(0)
    # Thirty gradients at K = 1000 would take longer than all the rest, and say what K = 100 says.
    few = [k for k in counts if k <= _LARGEST_FOR_GRADIENTS]
    of_proposal, of_model = (None if p is None else list(p) for p in (parameters, model_parameters))
    snr = _snr_table(model, x, few, of_proposal, repeats)
    kept = log_w[:, finite]
    # Var(w)/p² from the effective sample size, which is one ratio of the same two sums.
    ratio = len(kept) / effective_sample_size(kept) - 1  # Var(w)/p²; inf for a datum without a weight
    rows = tuple(_row(kept, k, ratio) for k in counts) if kept.numel() else ()
    elbo = ELBO()(kept).mean().item() if kept.numel() else math.nan
    of_both = _model_snr(model, x, few, of_model, repeats)
    return Diagnosis(elbo, rows, snr, log_w.shape[1], int((~finite).sum()), of_both)


@torch.no_grad()
def _log_weights(weighted: Weighted, count: int) -> Tensor:
    """``(count, data)`` float64, in pieces where the draws are independent."""
    parts: list[Tensor] = []
    # Dependent draws are even (stratified, quasi-random) as one call only.
    whole = not weighted.proposal.independent
    step = count if whole else min(16, count)
    while count:
        step = min(step, count)
        parts.append(
            estimate(weighted.log_joint, weighted.proposal, num_samples=step).log_weights.reshape(step, -1).double()
        )
        count -= step
        # The batch is known from the first piece on.
        step = max(16, _ELEMENTS // max(1, parts[0].shape[1]))
    return torch.cat(parts)


def _row(log_w: Tensor, count: int, ratio: Tensor) -> Row:
    # Groups of one set of samples: for small K there are many, and the curve is comparable along K.
    groups = len(log_w) // count
    grouped = log_w[: groups * count].reshape(groups, count, -1).transpose(0, 1)
    # Over the data first: the error is that of the mean over groups, of these data.
    iwae = IWAE()(grouped).mean(1)
    jackknife = Jackknife(1)(grouped).mean().item() if count > 1 else math.nan
    error = (iwae.std() / math.sqrt(groups)).item() if groups > 1 else math.nan
    shape = pareto_k(grouped).flatten()
    # NaN where a group has fewer than 25 samples, or dead weights in its tail: the median is of what is known.
    shape = shape[~shape.isnan()]
    return Row(
        count,
        iwae.mean().item(),
        error,
        jackknife,
        effective_sample_size(grouped).flatten().median().item(),
        shape.median().item() if len(shape) else math.nan,
        # Domke and Sheldon's theorem 3: K (log p(x) − E IWAE_K) tends to Var(w)/(2 p²).
        ratio.mean().item() / (2 * count),
    )


def gradient_snr(
    build: Callable[[], Pair],
    parameters: Iterable[Tensor],
    bound: Bound = IWAE(),
    gradient: Gradient | None = None,
    num_samples: int = 64,
    repeats: int = 100,
) -> float:
    r"""Signal-to-noise ratio of a gradient estimator, over all the parameters together.

    .. math:: \mathrm{SNR} = \frac{\lVert E g\rVert}{\sqrt{E\lVert g - E g\rVert^2}}

    from ``repeats`` gradients of the mean bound; the noise of the mean, E‖g − Eg‖²/repeats, is taken off ‖mean‖². With
    n data or repeats averaged it grows by √n. For the proposal's parameters the reparameterised gradient's falls as
    K^(−1/2), DReG's rises as K^(1/2).

    Args:
        build: makes ``(log_joint, proposal)`` anew, in a fresh graph, for every gradient: ``lambda: model(x)``.
        parameters: tensors that require grad: those of the proposal or of the model, not both, as their ratios differ.
        bound, gradient, num_samples: as in :func:`iwbounds.estimate`.
        repeats: 2 or more.

    Returns:
        The ratio; 0 where no signal rises above the noise, +inf for gradients without noise. No ``.grad`` is touched.

    Raises:
        ValueError: ``repeats`` below 2, no parameters, or a gradient that does not fit.

    Reference: Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh (2018), Tighter variational bounds are not
    necessarily better, arXiv:1802.04537, eq. 6 (there per component).

    >>> from torch.distributions import Normal
    >>> loc = torch.zeros(100, requires_grad=True)
    >>> build = lambda: (lambda z: Normal(5.0, 1.0).log_prob(z), Normal(loc, 1.0))
    >>> gradient_snr(build, [loc], ELBO(), num_samples=1) > 10  # ∂ log w / ∂ loc is 5, whatever the draw
    True
    """
    leaves = list(parameters)
    if repeats < 2 or not leaves:
        raise ValueError(f"expected repeats >= 2 and at least one parameter; got {repeats} and {len(leaves)}.")
    first = _gradient(build, leaves, bound, gradient, num_samples)
    # The first gradient's own difference is 0: it is one of the repeats, and adds nothing to the sums.
    total, squares = torch.zeros_like(first), 0.0
    for _ in range(repeats - 1):
        # Relative to the first: a variance far below the square of the mean keeps its digits.
        difference = _gradient(build, leaves, bound, gradient, num_samples) - first
        total += difference
        squares += difference.square().sum().item()
    mean = total / repeats
    variance = (squares - repeats * mean.square().sum().item()) / (repeats - 1)
    # ‖mean‖² overestimates ‖E g‖² by the variance of the mean.
    signal = (first + mean).square().sum().item() - variance / repeats
    if variance <= 0:
        return math.inf if signal > 0 else 0.0
    return math.sqrt(max(0.0, signal) / variance)


def _gradient(
    build: Callable[[], Pair],
    leaves: list[Tensor],
    bound: Bound,
    gradient: Gradient | None,
    num_samples: int,
) -> Tensor:
    with torch.enable_grad():
        value = estimate(*build(), bound, gradient, num_samples=num_samples).value.mean()
        # A parameter that this bound does not reach has a gradient of 0, and is no error.
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]
    # float64: the variance is what is left of large sums of squares.
    return torch.cat([g.detach().flatten().double() for g in flat])


def _snr_table(
    model: Model, x: Any, counts: list[int], leaves: list[Tensor] | None, repeats: int
) -> dict[str, dict[int, float]]:
    weighted = _with_graph(model, x)
    leaves = _proposal_parameters(model, weighted) if leaves is None else leaves
    table: dict[str, dict[int, float]] = {}
    for gradient in _candidates(weighted.proposal) if leaves else ():
        for k in _possible(weighted.proposal, gradient, counts):
            snr = gradient_snr(lambda: model(x), leaves, IWAE(), gradient, k, repeats)
            table.setdefault(repr(gradient), {})[k] = snr
    return table


def _model_snr(model: Model, x: Any, counts: list[int], leaves: list[Tensor] | None, repeats: int) -> dict[int, float]:
    weighted = _with_graph(model, x)
    leaves = _model_parameters(model, weighted) if leaves is None else leaves
    fitting = _candidates(weighted.proposal)
    if not leaves or not fitting:
        return {}
    # Any will do: what an estimator sends to the model is c, the derivative of the bound, in each of them.
    possible = _possible(weighted.proposal, fitting[0], counts)
    return {k: gradient_snr(lambda: model(x), leaves, IWAE(), fitting[0], k, repeats) for k in possible}


def _with_graph(model: Model, x: Any) -> Weighted:
    """As training sees it: a hierarchy extends itself otherwise where no gradient is asked for."""
    with torch.enable_grad():
        return Weighted.of(*model(x))


def _candidates(proposal: Proposal) -> list[Gradient]:
    """The unbiased estimators that fit the proposal."""
    found: list[Gradient] = [Reparameterized()] if proposal.pathwise else []
    if proposal.total_derivative_only:
        return found
    if proposal.fixed_support and proposal.independent:
        # What needs a fixed support and independent draws joins only where both are given.
        found += [DReG()] if found else [ScoreFunction()]
        found.append(VIMCO())
    return found


def _possible(proposal: Proposal, gradient: Gradient, counts: list[int]) -> list[int]:
    """The K's that both can take: VIMCO compares with other samples, a stratified mixture draws in equal parts."""
    found = [k for k in counts if k > 1 or not isinstance(gradient, VIMCO)]
    return [k for k in found if proposal.independent or _draws(proposal, k)]


@torch.no_grad()
def _draws(proposal: Proposal, count: int) -> bool:
    try:
        proposal.sample((count,))
    # What refuses a number of samples raises this; any other error is a fault of the model, and goes on.
    except ValueError:
        return False
    return True


def _proposal_parameters(model: object, weighted: Weighted) -> list[Tensor]:
    """The module's parameters that the draws or log q depend on."""
    proposal = weighted.proposal
    return _found(model, lambda: sum(part.sum() for part in proposal.log_prob_parts(_sample(proposal))))


def _model_parameters(model: object, weighted: Weighted) -> list[Tensor]:
    """The module's parameters that log p(x, z) depends on at fixed z."""

    def log_p() -> Tensor:
        # Detached: log p also depends on the proposal's parameters, but through z alone.
        z = map_latents(Tensor.detach, weighted.visible(_sample(weighted.proposal)))
        return weighted.of_z(z).sum()

    return _found(model, log_p)


def _sample(proposal: Proposal) -> Latents:
    """One draw, or as few as the proposal makes at once."""
    return proposal.sample((next((k for k in range(1, 65) if proposal.independent or _draws(proposal, k)), 1),))


def _found(model: object, log_density: Callable[[], Any]) -> list[Tensor]:
    """The module's parameters that a log-density has a gradient for; none where there is no module."""
    # Only a module says what its parameters are; of a function they have to be passed.
    candidates = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    if not candidates:
        return []
    with torch.enable_grad():
        value = log_density()
        if not isinstance(value, Tensor) or not value.requires_grad:
            return []
        grads = torch.autograd.grad(value, candidates, allow_unused=True)
    return [p for p, g in zip(candidates, grads, strict=True) if g is not None]
