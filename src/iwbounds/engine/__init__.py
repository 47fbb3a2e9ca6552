"""The engine: draws samples, evaluates densities once, asks for coefficients, attaches them to one value."""

from iwbounds.engine.accumulate import accumulate
from iwbounds.engine.estimate import estimate
from iwbounds.engine.resampling import resampling_variance
from iwbounds.engine.result import Estimate

__all__ = ["Estimate", "accumulate", "estimate", "resampling_variance"]
