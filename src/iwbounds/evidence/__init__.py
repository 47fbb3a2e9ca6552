"""Evidence and information, from below and from above."""

from iwbounds.evidence.certify import CertifiedEvidence, certify
from iwbounds.evidence.evaluate import evaluate
from iwbounds.evidence.information import Interval, entropy_bounds, mutual_information_bounds
from iwbounds.evidence.report import EvidenceReport
from iwbounds.evidence.streaming import StreamingWeights
from iwbounds.evidence.upper import upper_bound

__all__ = [
    "CertifiedEvidence",
    "EvidenceReport",
    "Interval",
    "StreamingWeights",
    "certify",
    "entropy_bounds",
    "evaluate",
    "mutual_information_bounds",
    "upper_bound",
]
