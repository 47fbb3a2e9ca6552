"""Draw until the evidence is known to a tolerance, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.certificates import BettingCertificate
from iwbounds.engine import estimate
from iwbounds.evidence.progress import Progress
from iwbounds.proposals import LogJoint, Proposal, as_proposal

__all__ = ["CertifiedEvidence", "certify"]

_FIRST = 100  # samples before the first look
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
    proposal: Distribution | Proposal,
    tolerance: float = 0.1,
    confidence: float = 0.99,
    max_samples: int = 10**6,
    *,
    chunk_size: int | None = None,
    progress: bool = False,
) -> CertifiedEvidence:
    r"""Draw samples until log p(x) is certified to lie above :math:`\log\hat p` − ``tolerance``.

    Looks at the betting certificate (:func:`iwbounds.lower_confidence_bound`) as the samples come in and stops when it
    is that tight, which the certificate allows: it is valid under optional stopping, for any tail of the weights.

    Args:
        log_joint: latents to ``(K, *batch)`` nats, as in :func:`iwbounds.estimate`.
        proposal: as there; its draws must be independent.
        tolerance: in nats, of every datum in the batch.
        confidence: that ``lower`` is below log p(x), for each datum by itself; for all of N data at once, pass
            1 − (1 − confidence)/N.
        max_samples: give up after so many per datum. The log-weights are kept: 4 or 8 bytes each.
        chunk_size: how many samples to evaluate at once; by default 50 000 samples × data.
        progress: show a bar on standard error.

    Returns:
        A :class:`iwbounds.evidence.CertifiedEvidence` with ``log_evidence``, ``lower``, ``num_samples``, ``reached``.

    Raises:
        ValueError: a proposal with ``independent=False``, a weight that is NaN or +inf, or a number out of range.

    Edge cases: a datum without a weight above zero has the certificate −inf, and is never reached.

    Reference: as :mod:`iwbounds.certificates`.

    >>> from torch.distributions import Normal
    >>> log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0))
    >>> result = certify(log_joint, Normal(0.5, 1.0))  # the truth is -1.516
    >>> result.reached, bool(-1.65 < result.lower < -1.516)
    (True, True)
    """
    _check(proposal, tolerance, max_samples, chunk_size)
    certificate = BettingCertificate(confidence)
    look = min(_FIRST, max_samples)
    with torch.no_grad(), Progress("certify", max_samples, "samples", progress) as bar:
        while True:
            _draw(log_joint, proposal, certificate, look - certificate.count, chunk_size)
            found = certificate.log_evidence(), certificate.lower()
            reached = bool((found[0] - found[1] < tolerance).all())
            bar.advance(look - bar.done, f"gap {(found[0] - found[1]).max().item():.3f}")
            if reached or look == max_samples:
                return CertifiedEvidence(*found, certificate.count, reached, tolerance, confidence)
            look = min(max_samples, int(_GROWTH * look))


def _check(proposal: Distribution | Proposal, tolerance: float, max_samples: int, chunk_size: int | None) -> None:
    if not tolerance > 0:
        raise ValueError(f"expected a tolerance above 0 nats; got {tolerance}. 0.1 is a good choice.")
    if max_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"expected max_samples and chunk_size of at least 1; got {max_samples} and {chunk_size}.")
    if not getattr(as_proposal(proposal), "independent", True):
        raise ValueError(
            "expected a proposal with independent draws; this one has independent=False, and the certificate would be "
            "void. Pass one log-mean-weight per independent randomisation to iwbounds.lower_confidence_bound."
        )


def _draw(
    log_joint: LogJoint,
    proposal: Distribution | Proposal,
    certificate: BettingCertificate,
    count: int,
    chunk_size: int | None,
) -> None:
    """So many more samples, in chunks of independent draws."""
    step = chunk_size or _FIRST  # the batch is not known before the first draw
    while count:
        size = min(count, step)
        log_w = estimate(log_joint, proposal, num_samples=size).log_weights
        certificate.add(log_w)
        count -= size
        step = chunk_size or max(_FIRST, _ELEMENTS // max(1, log_w[0].numel()))
