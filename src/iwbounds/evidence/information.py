r"""Entropy and mutual information of hierarchical models, from both sides.

With upper and lower bounds U ≥ log q(z) ≥ Λ of the marginal of q(ψ) q(z | ψ), and pairs (z, ψ) drawn from it,

.. math:: E[-U] \le H(z) \le E[-\Lambda], \qquad
          E[\log q(z\mid\psi) - U] \le I(z;\psi) \le E[\log q(z\mid\psi) - \Lambda].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from iwbounds.bounds.base import Direction
from iwbounds.proposals.hierarchical.proposal import HierarchicalProposal

__all__ = ["Interval", "entropy_bounds", "mutual_information_bounds"]

Sides: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Interval:
    """Estimates of a lower and an upper bound of one quantity, in nats, ``(*batch)`` each, with standard errors.

    >>> print(Interval(torch.tensor(1.0), torch.tensor(1.5), torch.tensor(0.01), torch.tensor(0.02)))
    1.0000 ± 0.0100 (lower) … 1.5000 ± 0.0200 (upper) nats
    """

    lower: Tensor
    upper: Tensor
    lower_error: Tensor
    """Standard error of ``lower`` over the samples."""
    upper_error: Tensor
    cap: float = math.inf
    """What ``lower`` cannot exceed, whatever the truth: log(K + 1) for mutual information without a reverse model (the
    form of InfoNCE). A lower bound close to it says that K is too small, not that the truth is there."""

    # Without an annotation, so that it is no field: the same for every interval.
    directions = (Direction.LOWER, Direction.UPPER)
    """Of the two expectations. A single estimate is off by its standard error."""

    def __str__(self) -> str:
        def side(value: Tensor, error: Tensor, name: str) -> str:
            if value.ndim == 0:
                return f"{value:.4f} ± {error:.4f} ({name})"
            return f"{[round(v, 4) for v in value.tolist()]} ({name})"

        cap = "" if math.isinf(self.cap) else f"; the lower side cannot exceed log(K + 1) = {self.cap:.4f}"
        lower, upper = side(self.lower, self.lower_error, "lower"), side(self.upper, self.upper_error, "upper")
        return f"{lower} … {upper} nats{cap}"


def entropy_bounds(
    q: HierarchicalProposal, num_samples: int, num_aux: int | None = None, chunk_size: int | None = None
) -> Interval:
    r"""Both sides of the differential (or discrete) entropy of z, whose density is an integral.

    .. math:: E[-U_K] \;\le\; H(z) = -E[\log q(z)] \;\le\; E[-\Lambda_K]

    Direction: lower and upper; both sides tighten with K, at rate 1/K. Not differentiable: to maximise an entropy, call
    :func:`iwbounds.estimate` on a log-joint of zeros with the ELBO, whose value is the lower side.

    Args:
        q: draws pairs, and bounds log q(z) from both sides.
        num_samples: how many pairs to average over, 2 or more.
        num_aux: K, by default the proposal's; 1 or more.
        chunk_size: pairs in memory at once; None: all.

    Returns:
        An :class:`Interval`, ``(*batch)``.

    Reference: Sobolev and Vetrov (2019), arXiv:1905.03290, section 4.

    >>> from torch.distributions import Normal
    >>> q = HierarchicalProposal(Normal(0.0, 1.0), lambda psi: Normal(psi, 1.0), num_aux=10)
    >>> h = entropy_bounds(q, num_samples=1000)
    >>> bool(h.lower < 0.5 * math.log(4 * math.pi * math.e) + 0.2 < h.upper + 0.4)
    True
    """
    count = _checked_aux(q, num_aux, 1)

    def sides(z: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        return -q.log_prob_upper(z, psi, count), -q.log_prob_lower(z, count)

    return _average(q, sides, num_samples, chunk_size)


def mutual_information_bounds(
    q: HierarchicalProposal, num_samples: int, num_aux: int | None = None, chunk_size: int | None = None
) -> Interval:
    r"""Both sides of the mutual information I(z; ψ) of the model q(ψ) q(z | ψ).

    .. math:: E[\log q(z\mid\psi_0) - U_K] \;\le\; I(z;\psi) \;\le\; E[\log q(z\mid\psi_0) - \Lambda_K]

    Which variable is called what decides what is estimated:

    * *the information that latents carry about data, of a model*: ``mixing`` the prior p(z), ``conditional`` the
      likelihood p(x | z), ``reverse`` a trained encoder. Simulated pairs; tight where the encoder is good.
    * *of an encoder, under the data*: ``mixing`` a sampler of data (held-out data: then nothing is fitted to them),
      ``conditional`` the encoder q(z | x), no reverse model. The lower side has the form of InfoNCE and **cannot exceed
      log(K + 1)**; the result says so in ``cap``.
    * *Barber-Agakov*: ``num_aux=0`` with a reverse model; the lower side is
      :math:`H(\psi) + E[\log\tau(\psi\mid z)]`, and there is no upper side (+inf).

    Direction: lower and upper, both tightening with K. Without a reverse model Λ_K degrades where ψ has many
    dimensions, and then the upper side is loose.

    Args, Returns, Raises: as :func:`entropy_bounds`; ``num_aux`` may be 0 with a reverse model.

    References: Sobolev and Vetrov (2019), arXiv:1905.03290; Barber and Agakov (2003), The IM algorithm; van den Oord,
    Li and Vinyals (2018), Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748, for the cap;
    Poole et al. (2019), On Variational Bounds of Mutual Information, arXiv:1905.06922.

    >>> from torch.distributions import Normal
    >>> q = HierarchicalProposal(Normal(0.0, 1.0), lambda psi: Normal(psi, 1.0), lambda z: Normal(z / 2, 0.5**0.5), 4)
    >>> i = mutual_information_bounds(q, num_samples=20_000)  # exact: log(2) / 2 = 0.3466
    >>> bool((i.lower - 0.3466).abs() < 0.05), bool((i.upper - i.lower).abs() < 1e-4), i.cap
    (True, True, inf)
    """
    # K = 0 is the bound of Barber and Agakov, which needs a reverse model.
    count = _checked_aux(q, num_aux, 0 if q.has_reverse else 1)

    def sides(z: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        log_conditional = q.conditional(psi).log_prob(z)
        # The same pair in both terms: what they share cancels sample by sample, and the error is that of the
        # difference.
        lower = log_conditional - q.log_prob_upper(z, psi, count)
        if count == 0:
            # Without auxiliary draws there is no lower bound of log q, hence no upper side.
            return lower, torch.full_like(lower, torch.inf)
        return lower, log_conditional - q.log_prob_lower(z, count)

    # The pair's own ψ is one of the K + 1 in the mean: U ≥ log q(z | ψ₀) − log(K + 1) for every single pair, and the
    # lower side cannot be more than that difference.
    return _average(q, sides, num_samples, chunk_size, math.inf if q.has_reverse else math.log(count + 1))


def _checked_aux(q: HierarchicalProposal, num_aux: int | None, least: int) -> int:
    count = q.num_aux if num_aux is None else num_aux
    if count < least:
        raise ValueError(f"expected num_aux >= {least}, as both sides are asked for; got {count}.")
    return count


@torch.no_grad()
def _average(
    q: HierarchicalProposal, sides: Sides, num_samples: int, chunk_size: int | None, cap: float = math.inf
) -> Interval:
    if num_samples < 2:
        raise ValueError(f"expected num_samples >= 2, for a standard error; got {num_samples}.")
    size = num_samples if chunk_size is None else chunk_size
    if size < 1:
        raise ValueError(f"expected chunk_size >= 1; got {chunk_size}. None takes all at once.")
    counts = [min(size, num_samples - start) for start in range(0, num_samples, size)]
    pieces = [sides(*q.rsample((count,))) for count in counts]
    (low, low_error), (high, high_error) = (_mean_and_error(torch.cat(side)) for side in zip(*pieces, strict=True))
    return Interval(low, high, low_error, high_error, cap)


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    error = values.std(0) / math.sqrt(values.shape[0])
    # An infinite side has a NaN deviation: nothing is known of it.
    return values.mean(0), error.nan_to_num(torch.inf)
