"""Log-densities summed over the event, with a backward that keeps no temporary of the size of the event."""

from iwbounds.densities.bernoulli import bernoulli_logits
from iwbounds.densities.gaussian import diagonal_gaussian

__all__ = ["bernoulli_logits", "diagonal_gaussian"]
