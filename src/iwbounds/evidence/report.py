"""What an evaluation found: per-datum evidence, its error, what is certified, and whether to believe it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.certificates import mean_confidence_bound
from iwbounds.diagnostics import pareto_k_threshold
from iwbounds.evidence.streaming import StreamingWeights

__all__ = ["EvidenceReport", "write_atomically"]

_LEVELS = (0.05, 0.5, 0.95)


# eq=False: tensors compare elementwise, and the == that dataclass writes would raise.
@dataclass(frozen=True, eq=False)
class EvidenceReport:
    """The result of :func:`iwbounds.evaluate`; per-datum fields are ``(N,)``, on the CPU, ordered by ``index``.

    Reports of other data, or of other samples of the same data, merge with ``+`` (:meth:`merge`).

    >>> from torch.distributions import Normal
    >>> import iwbounds as iw
    >>> def model(x):
    ...     q = Normal(x / 2, 0.5**0.5)  # the exact posterior: every weight is p(x)
    ...     return lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x), q
    >>> report = iw.evaluate(model, torch.zeros(200), num_samples=10, progress=False, seed=0)
    >>> round(report.nll, 4), round(report.certified_nll, 4)
    (1.2655, 1.2885)
    """

    index: Tensor
    """``(N,)`` int64: which datum each row is."""
    weights: StreamingWeights
    """Sums of the weights of each datum, which other samples of the same data can be added to."""
    bound_values: Tensor | None
    """Per-datum values of a bound other than IWAE, which cannot be merged over samples; else None."""
    dead_weights: Tensor
    """``(N,)``: how many weights of each datum are zero."""
    bad_weights: Tensor
    """``(N,)``: how many weights of each datum are NaN or +inf."""
    bound: str
    direction: Direction
    confidence: float
    refusals: tuple[str, ...]
    """Why nothing is certified, apart from bad weights; empty where something is."""
    batches: tuple[tuple[int, int, str], ...]
    """First index, one past the last, and a digest of the values, of every batch of data."""
    draws: tuple[tuple[int, int, int], ...]
    """Seed, first sample, and one past the last, of what was drawn for each datum."""
    samples_per_randomisation: int = 1
    """What ``weights`` counts as one: the mean weight of so many samples, drawn in one call."""
    independent: bool = True
    """Whether what ``weights`` counts is independent."""

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.index)

    @property
    def num_samples(self) -> int:
        """Samples per datum."""
        return self.weights.count * self.samples_per_randomisation

    @property
    def seed(self) -> int:
        """What ``evaluate`` must be given to find the same numbers."""
        return self.draws[0][0]

    @property
    def log_evidence(self) -> Tensor:
        """``(N,)`` float64 nats: the bound's value for each datum."""
        return self.weights.log_mean() if self.bound_values is None else self.bound_values

    # A cached_property writes into __dict__, past what frozen forbids; safe, as no field ever changes.
    @cached_property
    def nll(self) -> float:
        """Mean over the data of −log evidence, in nats: never below the truth in expectation for a lower bound."""
        return -self.log_evidence.mean().item()

    @property
    def standard_error(self) -> float:
        """Of :attr:`nll` over the data: how much another test set of this size would differ. NaN for one datum."""
        return (self.log_evidence.std() / math.sqrt(self.num_data)).item() if self.num_data > 1 else math.nan

    @property
    def sampling_error(self) -> float:
        r"""Of :attr:`nll` over the draws, for these data: :math:`\frac1N\sqrt{\sum_i (1/\mathrm{ESS}_i - 1/K)}`.

        From the delta method: it says nothing where k̂ is above its threshold. NaN for dependent draws without
        independent randomisations, from which it cannot be known.
        """
        if not self.independent:
            return math.nan
        # Var(log p̂_i) ≈ Var(w)/(K p²) = 1/ESS_i − 1/K; equal weights may leave it below 0 by rounding.
        return ((1 / self.ess - 1 / self.weights.count).clamp_min(0).sum().sqrt() / self.num_data).item()

    @property
    def slack(self) -> float:
        """What the certificate costs, log(1/δ)/N nats per datum."""
        return -math.log(1 - self.confidence) / self.num_data

    @cached_property
    def certified_nll(self) -> float | None:
        r"""The mean over these data of −log p(x) is below it, with probability ``confidence``; None if not certified.

        Markov's inequality over independent estimates: :attr:`nll` plus the :attr:`slack`, for IWAE. For other lower
        bounds, the smaller of bound and IWAE counts for each datum. Void for the best of several runs.
        """
        if self.reasons_against_certifying:
            return None
        # Whatever a bound claims of itself, it is its being below the log of an unbiased estimate that counts here.
        # Markov holds for the log of an unbiased estimate and for whatever is below it, datum by datum.
        return -mean_confidence_bound(torch.minimum(self.log_evidence, self.weights.log_mean()), self.confidence)

    @property
    def reasons_against_certifying(self) -> tuple[str, ...]:
        """Empty where :attr:`certified_nll` is a number."""
        if not self.num_nonfinite:
            return self.refusals
        return (*self.refusals, f"{self.num_nonfinite} data have weights that are NaN or +inf")

    def require_certificate(self) -> float:
        """:attr:`certified_nll`, or an error that says why there is none.

        Raises:
            ValueError: nothing is certified.
        """
        if self.certified_nll is None:
            raise ValueError(f"expected a certified NLL; there is none: {'; '.join(self.reasons_against_certifying)}.")
        return self.certified_nll

    @property
    def ess(self) -> Tensor:
        """``(N,)`` effective sample sizes, 1..K (or up to the number of randomisations); 0 where all are zero."""
        return self.weights.ess()

    @cached_property
    def pareto_k(self) -> Tensor:
        """``(N,)`` shapes k̂ of the tails of the weights; NaN below 25 samples."""
        return self.weights.pareto_k()

    @property
    def pareto_k_threshold(self) -> float:
        """min(1 − 1/log10 K, 0.7): above it a datum's evidence is not to be trusted."""
        return pareto_k_threshold(self.weights.count)

    @property
    def num_untrusted(self) -> int:
        """Data whose k̂ is above the threshold."""
        # NaN, of too few samples, compares False: unknown is not counted as bad.
        return int((self.pareto_k > self.pareto_k_threshold).sum())

    @property
    def num_dead(self) -> int:
        """Data none of whose samples has a weight above zero: their log evidence is −inf."""
        return int((self.dead_weights == self.num_samples).sum())

    @property
    def num_nonfinite(self) -> int:
        """Data with a weight that is NaN or +inf: a mistake of the model, never of the sampling."""
        return int((self.bad_weights > 0).sum())

    def worst(self, count: int = 5) -> list[tuple[int, float]]:
        """Index and −log evidence of the data that the model explains least, the worst first; NaN before all."""
        nll = -self.log_evidence
        # NaN sorts as the worst: it is the datum that most needs looking at.
        order = nll.nan_to_num(nan=torch.inf, posinf=torch.inf).argsort(descending=True, stable=True)[:count]
        return [(int(self.index[i]), nll[i].item()) for i in order]

    def __str__(self) -> str:
        lines = [f"{key:<13}{text}" for key, text in self._lines()]
        return "\n".join([f"Evidence of {self.num_data} data: {self.bound}, {self._drawn()} each", *lines])

    def _drawn(self) -> str:
        if self.samples_per_randomisation > 1:
            return f"{self.weights.count} randomisations of {self.samples_per_randomisation} samples"
        # What is exact chooses the number itself; the first level's samples are those that all data have.
        return f"{self.num_samples} samples{' or more' if self.direction is Direction.EXACT else ''}"

    def _lines(self) -> list[tuple[str, str]]:
        worst = ", ".join(f"#{i} ({nll:.2f})" for i, nll in self.worst())
        above = f"{self.num_untrusted} above {self.pareto_k_threshold:.2f}"
        sides = {"lower": "never below the truth on average", "upper": "never above the truth on average"}
        side = (sides | {"exact": "unbiased"}).get(self.direction.value, "not a bound")
        return [
            ("NLL", f"{self.nll:.4f} ± {self.standard_error:.4f} nats per datum (over data)"),
            ("", f"± {self.sampling_error:.4f} from sampling; {side}"),
            ("certified", self._certified_line()),
            ("ESS", f"{_quantiles(self.ess, '.1f')} of {self.weights.count} (5, 50, 95 % of the data)"),
            (
                "Pareto k",
                f"{_quantiles(self.pareto_k, '.2f')}; {above}",
            ),
            ("dead", f"{self.num_dead} data ({self._dead_share():.2%} of all weights are zero)"),
            ("non-finite", f"{self.num_nonfinite} data"),
            ("worst data", worst),
            ("seed", str(self.seed)),
        ]

    def _certified_line(self) -> str:
        if self.certified_nll is None:
            return "nothing: " + "; ".join(self.reasons_against_certifying)
        sure = f"{100 * self.confidence:g} %"
        return f"NLL ≤ {self.certified_nll:.4f} with {sure} confidence (Markov; slack {self.slack:.4f})"

    def _dead_share(self) -> float:
        return self.dead_weights.sum().item() / (self.num_data * self.num_samples)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and lists, for JSON: the summary, and under ``"data"`` one list per per-datum field."""
        names = ("num_data", "num_samples", "nll", "standard_error", "sampling_error", "certified_nll", "confidence")
        more = ("slack", "num_dead", "num_nonfinite", "num_untrusted", "pareto_k_threshold", "bound", "seed")
        summary = {name: getattr(self, name) for name in (*names, *more)}
        data = {name: getattr(self, name).tolist() for name in ("index", "log_evidence", "ess", "pareto_k")}
        return summary | {
            "direction": self.direction.value,
            "reasons_against_certifying": list(self.reasons_against_certifying),
            "worst": self.worst(),
            "data": data,
        }

    def plot(self, axes: Any = None) -> Any:
        """The report as a figure (matplotlib): see :func:`iwbounds.plots.plot_report`."""
        # Here, not above: matplotlib is optional, and the pictures stand on a floor over this one.
        from iwbounds.plots.report import plot_report

        return plot_report(self, axes)

    def merge(self, *others: EvidenceReport) -> EvidenceReport:
        """The report of all: of other data, or of other samples of the same data, in any order. ``+`` merges two.

        Samples of the same data can be added for IWAE only. k̂ stays exact until four times the samples are merged,
        then its tail is as long as the parts have kept.

        Raises:
            ValueError: the reports are of different bounds or confidences; they overlap; other data under the same
                index; or the same samples twice.
        """
        merged = self
        for other in others:
            merged = _merge_two(merged, other)
        return merged

    def __add__(self, other: EvidenceReport) -> EvidenceReport:
        return self.merge(other)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings, for ``torch.save``."""
        state = {name: getattr(self, name) for name in self.__dataclass_fields__}
        # Plain values in place of our classes, which loading with weights_only refuses.
        return state | {"weights": self.weights.state_dict(), "direction": self.direction.value}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> EvidenceReport:
        """The report that :meth:`state_dict` wrote."""
        weights, direction = StreamingWeights.from_state_dict(state["weights"]), Direction(state["direction"])
        return cls(**state | {"weights": weights, "direction": direction})

    def save(self, path: str | Path) -> None:
        """Write the report, whole or not at all."""
        write_atomically({"report": self.state_dict()}, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> EvidenceReport:
        """The report that :meth:`save` wrote, or a finished ``state_file``.

        Raises:
            ValueError: the evaluation that wrote the file has not finished.
        """
        # weights_only: a report may come from anywhere, and unpickling could run whatever is in it.
        state = torch.load(path, weights_only=True)
        # Only a state file has the entry; what save wrote is finished.
        if not state.get("finished", True):
            raise ValueError(f"expected a finished report in {path}; the evaluation stopped early: run it to its end.")
        return cls.from_state_dict(state["report"])


def write_atomically(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` beside ``path``, then a rename: whoever reads finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a rename is atomic within one file system only; by process, so that two do not share it.
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(state, beside)
    os.replace(beside, path)


def _quantiles(values: Tensor, form: str) -> str:
    known = values[~values.isnan()]
    if not len(known):
        return "unknown"
    return " / ".join(format(_quantile(known, level), form) for level in _LEVELS)


def _quantile(values: Tensor, level: float) -> float:
    """The nearest order statistic: interpolation between −inf and a number would be NaN."""
    return values.sort().values[round(level * (len(values) - 1))].item()


def _merge_two(first: EvidenceReport, second: EvidenceReport) -> EvidenceReport:
    for name in ("bound", "confidence", "samples_per_randomisation"):
        mine, theirs = getattr(first, name), getattr(second, name)
        if mine != theirs:
            raise ValueError(f"expected reports of one {name} to merge; got {mine} and {theirs}.")
    # All in common or none: half of the data with twice the samples would be a report of two accuracies.
    same = torch.isin(first.index, second.index)
    if not same.any():
        return _other_data(first, second)
    if not (same.all() and first.num_data == second.num_data):
        raise ValueError(
            f"expected reports of the same data or of none in common; {int(same.sum())} of {first.num_data} are in "
            "both. Number the data apart: iwbounds.evaluate(…, first_datum=…)."
        )
    return _other_samples(first, second)


def _other_data(first: EvidenceReport, second: EvidenceReport) -> EvidenceReport:
    if first.num_samples != second.num_samples:
        raise ValueError(
            f"expected the same number of samples of all data; got {first.num_samples} and {second.num_samples}. "
            "Merge the reports of the same data first."
        )
    index = torch.cat([first.index, second.index])
    order = index.argsort()

    def both(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])[order]

    return replace(
        first,
        index=index[order],
        weights=_side_by_side(first.weights, second.weights, order),
        bound_values=None if first.bound_values is None else both("bound_values"),
        dead_weights=both("dead_weights"),
        bad_weights=both("bad_weights"),
        independent=first.independent and second.independent,
        refusals=_union(first.refusals, second.refusals),
        batches=_union(first.batches, second.batches),
        draws=_union(first.draws, second.draws),
    )


def _side_by_side(first: StreamingWeights, second: StreamingWeights, order: Tensor) -> StreamingWeights:
    parts = {
        name: torch.cat([getattr(first, name), getattr(second, name)])[order]
        for name in ("maximum", "total", "squares")
    }
    capacity = min(first.capacity, second.capacity)
    largest = None
    if first.largest is not None and second.largest is not None:
        # One tensor holds the tails of all data: as long as the shorter of the two.
        kept = min(len(first.largest), len(second.largest))
        largest = torch.cat([first.largest[:kept], second.largest[:kept]], dim=1)[:, order]
    return StreamingWeights(**parts, count=first.count, largest=largest, capacity=capacity)


def _other_samples(first: EvidenceReport, second: EvidenceReport) -> EvidenceReport:
    if first.batches != second.batches:
        raise ValueError(
            "expected the same data, in the same batches, under the same index; the two reports differ in their values "
            "or batches. Number different data apart: iwbounds.evaluate(…, first_datum=…)."
        )
    if first.bound_values is not None:
        raise ValueError(f"expected IWAE to merge samples of the same data; {first.bound} needs all weights at once.")
    if _overlap(first.draws, second.draws):
        raise ValueError(
            f"expected other samples of the same data; both reports hold samples of seed {first.seed} that are the "
            "same. Use another seed, or iwbounds.evaluate(…, first_sample=…)."
        )
    return replace(
        first,
        weights=first.weights + second.weights,
        dead_weights=first.dead_weights + second.dead_weights,
        bad_weights=first.bad_weights + second.bad_weights,
        independent=first.independent and second.independent,
        refusals=_union(first.refusals, second.refusals),
        draws=_union(first.draws, second.draws),
    )


def _overlap(first: tuple[tuple[int, int, int], ...], second: tuple[tuple[int, int, int], ...]) -> bool:
    # The same seed and a sample number in common: the same draws, which would count twice.
    return any(a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2]) for a in first for b in second)


def _union(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sorted, so that merging in another order gives the same report."""
    return tuple(sorted({*first, *second}))
