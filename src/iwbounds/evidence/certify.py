"""Draw until the evidence is known to a tolerance, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.certificates import BettingCertificate
from iwbounds.checks import check_whole_number
from iwbounds.engine import estimate
from iwbounds.evidence.progress import Progress
from iwbounds.evidence.streaming import means_of_calls
from iwbounds.evidence.weighted import Weighted
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal

__all__ = ["CertifiedEvidence", "certify"]

_FIRST = 100  # samples before the first look
_FEWEST_CALLS = 20  # the same, of randomisations
_GROWTH = 1.2  # a look takes all weights so far: with growing distances, all looks cost six times the last one
_ELEMENTS = 50_000  # samples × data drawn at once


@dataclass(frozen=True)
class CertifiedEvidence:
    """The result of :func:`iwbounds.certify`, per datum.

    >>> print(CertifiedEvidence(torch.tensor(-3.0), torch.tensor(-3.2), 10**6, False, 0.1, 0.99))
    log evidence -3.0000, certified >= -3.2000 (99 %) from 1000000 samples; gave up: gap 0.2000 > tolerance 0.1
    """

    log_evidence: Tensor
    """``(*batch)`` float64 nats: log of the mean weight."""
    lower: Tensor
    """``(*batch)`` float64 nats: log p(x) is above it with probability ``confidence``, for each datum by itself."""
    num_samples: int
    """Drawn, per datum."""
    reached: bool
    """Whether every datum is within the tolerance; False: gave up at ``max_samples``. ``lower`` holds either way."""
    tolerance: float
    confidence: float

    @property
    def gap(self) -> Tensor:
        """``(*batch)``: log evidence minus its certified lower bound, inf where no weight is above zero."""
        # −inf − (−inf), of a datum without a weight above zero, is NaN: an unknown gap is an infinite one.
        return (self.log_evidence - self.lower).nan_to_num(nan=torch.inf, posinf=torch.inf)

    def __str__(self) -> str:
        worst = int(self.gap.flatten().argmax())
        value, lower, gap = (t.flatten()[worst].item() for t in (self.log_evidence, self.lower, self.gap))
        which = f" (worst of {self.gap.numel()} data)" if self.gap.numel() > 1 else ""
        found = f"log evidence {value:.4f}, certified >= {lower:.4f} ({100 * self.confidence:g} %){which}"
        end = "reached" if self.reached else f"gave up: gap {gap:.4f} > tolerance {self.tolerance:g}"
        return f"{found} from {self.num_samples} samples; {end}"


def certify(
    log_joint: LogJoint,
    proposal: Distribution | Proposal | ExtendedProposal,
    tolerance: float = 0.1,
    confidence: float = 0.99,
    max_samples: int = 10**6,
    *,
    chunk_size: int | None = None,
    progress: bool = False,
    samples_per_randomisation: int | None = None,
) -> CertifiedEvidence:
    r"""Draw samples until log p(x) is certified to lie above :math:`\log\hat p` − ``tolerance``.

    Looks at the betting certificate (:func:`iwbounds.lower_confidence_bound`) as the samples come in and stops when it
    is that tight, which the certificate allows: it is valid under optional stopping, for any tail of the weights.

    Args:
        log_joint: latents to ``(K, *batch)`` nats, as in :func:`iwbounds.estimate`.
        proposal: as there; its draws must be independent, unless ``samples_per_randomisation`` is given.
        tolerance: in nats, of every datum in the batch.
        confidence: that ``lower`` is below log p(x), for each datum by itself; for all of N data at once, pass
            1 − (1 − confidence)/N.
        max_samples: give up after so many per datum. The log-weights are kept: 4 or 8 bytes each.
        chunk_size: how many samples to evaluate at once; by default 50 000 samples × data.
        progress: show a bar on standard error.
        samples_per_randomisation: for draws that depend on each other within one call of the proposal, and not between
            calls (:class:`iwbounds.QuasiRandom`, :class:`iwbounds.StratifiedMixture`, antithetic pairs): how many to
            draw in one call. The bet is then on the mean weight of each call, one after the other; some fifty calls are
            the least that certify anything useful.

    Returns:
        A :class:`iwbounds.evidence.CertifiedEvidence` with ``log_evidence``, ``lower``, ``num_samples``, ``reached``.

    Raises:
        ValueError: a proposal with ``independent=False`` and no ``samples_per_randomisation``, a weight that is NaN or
            +inf, or a number out of range.

    Edge cases: a datum without a weight above zero has the certificate −inf, and is never reached.

    Reference: as :mod:`iwbounds.certificates`.

    >>> from torch.distributions import Normal
    >>> log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0))
    >>> result = certify(log_joint, Normal(0.5, 1.0))  # the truth is -1.516
    >>> result.reached, bool(-1.65 < result.lower < -1.516)
    (True, True)
    """
    per_call = 1 if samples_per_randomisation is None else samples_per_randomisation
    _check(tolerance, max_samples, chunk_size, per_call)
    weighted = Weighted.of(log_joint, proposal)
    if samples_per_randomisation is None and not weighted.proposal.independent:
        raise ValueError(
            "expected a proposal with independent draws; this one has independent=False, and the certificate would be "
            "void. If separate calls of it are independent, say how many samples to draw in one: "
            "samples_per_randomisation=64."
        )
    certificate, most = BettingCertificate(confidence), max_samples // per_call
    look = min(_FIRST if per_call == 1 else _FEWEST_CALLS, most)
    with torch.no_grad(), Progress("certify", max_samples, "samples", progress) as bar:
        while True:
            count = look - certificate.count
            if per_call == 1:
                _draw(weighted, certificate, count, chunk_size)
            else:
                _randomise(weighted, certificate, count, per_call, chunk_size)
            found = certificate.log_evidence(), certificate.lower()
            # The same NaN compares False here, so that such a datum is drawn for until the samples run out.
            reached = bool((found[0] - found[1] < tolerance).all())
            bar.advance(look * per_call - bar.done, f"gap {(found[0] - found[1]).max().item():.3f}")
            if reached or look == most:
                return CertifiedEvidence(*found, look * per_call, reached, tolerance, confidence)
            # Looks at growing counts: the bet is valid at each of them, and its bisection is not paid for after every
            # chunk.
            look = min(most, int(_GROWTH * look))


def _check(tolerance: float, max_samples: int, chunk_size: int | None, per_call: int) -> None:
    if not tolerance > 0:
        raise ValueError(f"expected a tolerance above 0 nats; got {tolerance}. 0.1 is a good choice.")
    if max_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"expected max_samples and chunk_size of at least 1; got {max_samples} and {chunk_size}.")
    check_whole_number("samples_per_randomisation", per_call, 1)
    if max_samples < per_call:
        raise ValueError(
            f"expected max_samples to allow one randomisation of {per_call} samples; got {max_samples}. Raise it."
        )


def _randomise(
    weighted: Weighted, certificate: BettingCertificate, count: int, per_call: int, chunk_size: int | None
) -> None:
    """So many more calls of the proposal; the mean weight of each is one bet."""
    calls = weighted.calls(count * per_call, per_call)
    # Averaged call by call: the certificate keeps one number of each, not all their weights.
    certificate.add(torch.cat([means_of_calls(weighted.log_weights(z, chunk_size), per_call) for z in calls]))


def _draw(weighted: Weighted, certificate: BettingCertificate, count: int, chunk_size: int | None) -> None:
    """So many more samples, in chunks of independent draws."""
    step = chunk_size or _FIRST  # the batch is not known before the first draw
    while count:
        size = min(count, step)
        log_w = estimate(weighted.log_joint, weighted.proposal, num_samples=size).log_weights
        certificate.add(log_w)
        count -= size
        # Now that the batch is known: as many samples as keep the log-weights in a cache.
        step = chunk_size or max(_FIRST, _ELEMENTS // max(1, log_w[0].numel()))
