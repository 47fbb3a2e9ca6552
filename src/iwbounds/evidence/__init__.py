"""Evidence and information, from below and from above."""

from iwbounds.evidence.certify import CertifiedEvidence, certify
from iwbounds.evidence.diagnose import Diagnosis, diagnose, gradient_snr
from iwbounds.evidence.evaluate import evaluate
from iwbounds.evidence.expectation import posterior_expectation
from iwbounds.evidence.health import Health, HealthMonitor, UnhealthyWeights, check_health
from iwbounds.evidence.information import Interval, entropy_bounds, mutual_information_bounds
from iwbounds.evidence.report import EvidenceReport
from iwbounds.evidence.sandwich import Sandwich, Side, sandwich
from iwbounds.evidence.streaming import StreamingWeights
from iwbounds.evidence.upper import upper_bound

__all__ = [
    "CertifiedEvidence",
    "Diagnosis",
    "EvidenceReport",
    "Health",
    "HealthMonitor",
    "Interval",
    "Sandwich",
    "Side",
    "StreamingWeights",
    "UnhealthyWeights",
    "certify",
    "check_health",
    "diagnose",
    "entropy_bounds",
    "evaluate",
    "gradient_snr",
    "mutual_information_bounds",
    "posterior_expectation",
    "sandwich",
    "upper_bound",
]
