"""The reverse importance-weighted bound: the harmonic mean of the weights at draws of the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from iwbounds.bounds.base import Direction
from iwbounds.bounds.power_mean import PowerMean

__all__ = ["ReverseIWAE"]


@final
@dataclass(frozen=True)
class ReverseIWAE(PowerMean):
    r"""Upper bound of log p(x), **only** where the samples are draws of the posterior p(z | x).

    .. math:: U_n = -\log\frac1n\sum_{i=1}^n \frac1{w_i}, \qquad z_i \sim p(z\mid x), \qquad
              c = v = \operatorname{softmax}(-\log w), \qquad h = -v(1-v)

    As a function of the weights it is ``Renyi(2)``, which on draws of the *proposal* is a lower bound: what makes it an
    upper one is where the samples come from. Hence :attr:`needs_posterior_samples`: :func:`iwbounds.estimate` refuses
    it where it draws the samples itself. :func:`iwbounds.sandwich` uses it.

    Direction: upper; :math:`P(U_n < \log p(x) - b) \le e^{-b}`. Both need only that each draw has the posterior's
    distribution, so the states of a stationary Markov chain will do; that E[U_n] does not increase in n takes
    exchangeable draws. Bias: O(1/n). Gradient: the proposal's, by the score at fixed draws; none for the model, whose
    posterior would move. The proposal must have been fitted on other draws; it may be narrower than the posterior.

    Edge cases: a draw outside the proposal's support (log w = +inf) counts 0; a draw with log w = −inf, which the
    posterior cannot make, gives −inf with gradient 0.

    Reference: Newton and Raftery (1994), Approximate Bayesian Inference with the Weighted Likelihood Bootstrap, JRSS B
    56(1), for the harmonic mean; Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using
    bidirectional Monte Carlo, arXiv:1511.02543, for the upper side.

    >>> import torch
    >>> ReverseIWAE()(torch.tensor([0.0, torch.inf]))
    tensor(0.6931)
    """

    direction = Direction.UPPER
    needs_posterior_samples = True

    @property
    def power(self) -> float:
        """−1: the harmonic mean."""
        return -1.0
