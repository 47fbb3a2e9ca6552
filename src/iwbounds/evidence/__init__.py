"""Evidence and information, from below and from above."""

from iwbounds.evidence.information import Interval, entropy_bounds, mutual_information_bounds
from iwbounds.evidence.streaming import StreamingWeights
from iwbounds.evidence.upper import upper_bound

__all__ = ["Interval", "StreamingWeights", "entropy_bounds", "mutual_information_bounds", "upper_bound"]
