"""A diagnosis in plain words: what to raise, and what to distrust."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from iwbounds.diagnostics import pareto_k_threshold
from iwbounds.gradients.reparameterized import Reparameterized

if TYPE_CHECKING:
    from iwbounds.evidence.diagnose import Diagnosis  # which asks for its reading from here

__all__ = ["reading_of"]


def reading_of(found: Diagnosis) -> list[str]:
    """What to raise, and what to distrust; one sentence or two for each subject."""
    if found.num_nonfinite:
        return [
            f"{found.num_nonfinite} data have NaN or +inf log-weights, a mistake of the model: find it with "
            "iwbounds.testing.check_contract. The table leaves them out.",
            *(_reading_of_weights(found) if found.rows else []),
        ]
    return [*_reading_of_weights(found), *_reading_of_gradients(found.snr), *_reading_of_model(found.model_snr)]


def _reading_of_model(snr: dict[int, float]) -> list[str]:
    if not snr:
        return []
    most = max(snr)
    lines = [f"At K = {most}, the model's gradient has a ratio of {snr[most]:.2f}."]
    if snr[most] < 0.1:
        lines[0] += " Larger batches raise it, with the square root of their size."
    return lines


def _reading_of_weights(found: Diagnosis) -> list[str]:
    last = found.rows[-1]
    threshold = pareto_k_threshold(last.num_samples)
    # k̂ is NaN below 25 samples, and fails the comparison: no verdict by it.
    if last.num_samples > 1 and (last.ess < 2 or last.pareto_k > threshold):
        return [
            f"Distrust the evidence: at K = {last.num_samples} the median ESS is {last.ess:.1f} and k-hat "
            f"{last.pareto_k:.2f} (threshold {threshold:.2f}). The proposal misses part of the posterior or its tails "
            "are too light: improve it (a wider or more flexible family, a smaller learning rate) before raising K.",
            "Var/2K is then an underestimate, and every bound may be far below log p(x).",
        ]
    gap = last.predicted_gap
    if not math.isfinite(gap):
        return ["Some data have no weight above zero: their bound is −inf. The proposal misses their posterior."]
    # The gap falls as 1/K: K times it is that of a single sample, the ELBO's.
    if gap * last.num_samples < 0.01:
        return ["Every bound is tight: one sample gives log p(x) to 0.01 nats."]
    lines = [
        # IWAE plus its gap stands for log p(x), from which the ELBO's own distance follows.
        f"At K = {last.num_samples}, IWAE is about {gap:.4f} nats below log p(x), and the ELBO about "
        f"{last.iwae + gap - found.elbo:.4f}."
    ]
    if gap > 0.01:
        lines.append(
            f"For 0.01 nats raise K to about {_rounded(gap * last.num_samples / 0.01)}, or improve the proposal."
        )
    # The jackknife's correction is a second estimate of the same gap: where the two differ, higher orders count.
    off = abs(last.jackknife - last.iwae - gap) if last.num_samples > 1 else 0.0
    if gap > 0.5 or off > 0.1:
        lines.append("The gap is too large for its first-order formula, and for the jackknife, to be exact: a guess.")
    return lines


def _rounded(count: float) -> int:
    """Two digits: more would pretend to a precision that a variance of weights does not have."""
    power = 10 ** max(0, int(math.log10(count)) - 1)
    return int(math.ceil(count / power) * power)


def _reading_of_gradients(snr: dict[str, dict[int, float]]) -> list[str]:
    if not snr:
        return []
    counts = sorted({k for row in snr.values() for k in row})
    at = {name: row[counts[-1]] for name, row in snr.items() if counts[-1] in row}
    best = max(at, key=lambda name: at[name])
    lines = [f"At K = {counts[-1]}, {best} has the clearest gradient for the proposal (ratio {at[best]:.2f})."]
    plain = snr.get(repr(Reparameterized()))
    # In theory K^(−1/2) (Rainforth et al. 2018, theorem 1): 0.7 is what a doubling of K costs.
    if plain and len(plain) > 1 and plain[counts[-1]] < 0.7 * plain[counts[0]]:
        lines.append("The reparameterised gradient loses its signal as K grows: train the proposal with DReG().")
    if at[best] < 0.1:
        lines.append("It is noise to nine parts in ten: larger batches, or the ELBO, until the proposal is closer.")
    return lines
