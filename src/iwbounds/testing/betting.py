r"""E-processes: the wealth of a bettor against a hypothesis, valid whenever one looks and whenever one stops.

A non-negative statistic E with :math:`\mathbb E[E] \le 1` under the hypothesis is an *e-value*. A bettor who stakes the
share λ of the wealth on each of a sequence of them holds

.. math:: W_n = \prod_{t\le n} (1 + \lambda (E_t - 1)),

a non-negative supermartingale that starts at 1. By Ville's inequality
:math:`P(\exists n: W_n \ge 1/\alpha) \le \alpha`, so rejecting at the first such n is a level-α test without a fixed
sample size, a variance, or an asymptotic argument. An average of such wealths is one too: a fixed set of shares, or of
alternatives, is played at once, and costs the logarithm of its size.

Reference: Ramdas, Grünwald, Vovk and Shafer (2023), Game-theoretic statistics and safe anytime-valid inference,
arXiv:2210.01948.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from iwbounds.logspace.mean import log_mean_exp

__all__ = ["EProcess", "check_alpha", "guesses", "stakes", "symmetric_bets"]

_SHARES = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
_GUESS_SHARES = (0.2, 0.8)
_SYMMETRIC_STAKES = (0.05, 0.1, 0.2, 0.4, 0.8)


class EProcess:
    """The average wealth of several bettors, in nats, and the first time that it reaches 1/α.

    >>> process = EProcess(alpha=0.01)
    >>> process.add(torch.full((1, 10), math.log(2.0)))
    >>> process.rejected_at, round(process.log_wealth, 2)
    (7, 6.93)
    """

    def __init__(self, alpha: float) -> None:
        self.threshold = -math.log(check_alpha(alpha))
        self.count = 0
        """How many e-values have been seen."""
        self.rejected_at: int | None = None
        """After how many of them the hypothesis was rejected."""
        self.log_wealth = 0.0
        """Of the average bettor, now (not at its highest)."""
        self.best = 0
        """The richest bettor when the hypothesis was rejected, or now."""
        self._bettors: Tensor | None = None

    def add(self, log_factors: Tensor) -> None:
        """Take in ``(bettors, n)``: what n successive e-values multiply each bettor's wealth by, in nats."""
        steps = log_factors.detach().to("cpu", torch.float64)
        if steps.isnan().any():
            # A wealth of NaN never reaches 1/α: it would pass for the absence of evidence.
            raise ValueError(f"expected numbers to bet on; got {int(steps.isnan().sum())} NaN.")
        if steps.shape[1] == 0:
            return
        start = steps.new_zeros(steps.shape[0]) if self._bettors is None else self._bettors
        path = start.unsqueeze(1) + steps.cumsum(1)
        # The mean of the wealths, not of their logs: an average of supermartingales is one, whatever a single bettor
        # loses.
        average = log_mean_exp(path)
        if self.rejected_at is None:
            self._note(path, average)
        self._bettors, self.log_wealth = path[:, -1], float(average[-1])
        self.count += steps.shape[1]

    def _note(self, path: Tensor, average: Tensor) -> None:
        crossed = (average >= self.threshold).nonzero()
        # The first crossing counts, wherever the wealth goes afterwards.
        at = int(crossed[0]) if len(crossed) else path.shape[1] - 1
        self.best = int(path[:, at].argmax())
        if len(crossed):
            self.rejected_at = self.count + at + 1


def stakes(log_e: Tensor, shares: Sequence[float] = _SHARES) -> Tensor:
    """Factors ``(shares, n)``, in nats, of staking each of a few shares on e-values ``exp(log_e)`` of shape ``(n,)``.

    A share below one keeps the bettor alive through e-values of 0, and above all through heavy-tailed ones.
    """
    log_e = log_e.detach().to("cpu", torch.float64)
    share = torch.tensor(shares, dtype=torch.float64).unsqueeze(1)
    # log(1 − λ + λ e^{log e}): in logs, since e may be far beyond the range of a float.
    return torch.logaddexp((-share).log1p(), share.log() + log_e)


def guesses(log_odds: Tensor, alternatives: Tensor) -> Tensor:
    r"""Factors ``(2 alternatives, n)``, in nats, of guessing which member of a set is the one at index 0.

    Under the hypothesis member k is the one sought with probability :math:`\operatorname{softmax}(\text{odds})_k` given
    the unordered set. An alternative's probability of the right member, over the hypothesis', is an e-value; two shares
    are staked on it.

    Args:
        log_odds: ``(members, n)``, −inf for members that the hypothesis excludes.
        alternatives: ``(alternatives, members, n)``: other log-odds. Members that the hypothesis excludes are out.

    The bettors of one alternative are neighbours.
    """
    guessed = alternatives.masked_fill(log_odds.isneginf(), -torch.inf).log_softmax(1)[:, 0]
    log_e = guessed - log_odds.log_softmax(0)[0]
    factors = stakes(log_e.flatten(), _GUESS_SHARES).reshape(-1, *log_e.shape)
    return factors.transpose(0, 1).flatten(0, 1)


def symmetric_bets(differences: Tensor, scale: Tensor) -> Tensor:
    r"""Factors ``(bettors, n)``, in nats, against differences ``(n, statistics)`` that are symmetric around 0.

    .. math:: \exp(\lambda D - \tfrac12 \lambda^2 D^2)

    has a mean of at most 1 for every symmetric D, whatever its tails: :math:`\cosh(y) \le e^{y^2/2}`. The stakes λ, of
    both signs, are multiples of 1/``scale``, which must not depend on ``differences``. Where the scale is 0 only their
    signs are bet on, and outliers are cut at 1e6 scales: odd functions of D, so the symmetry stays.

    Reference: de la Peña (1999), A general class of exponential inequalities for martingales and ratios.
    """
    positive = torch.tensor(_SYMMETRIC_STAKES, dtype=torch.float64)
    stake = torch.cat([positive, -positive]).reshape(-1, 1, 1)
    differences, scale = differences.to("cpu", torch.float64), scale.to("cpu", torch.float64)
    # A scale of 0, from a burn-in that saw no difference at all, would make the first difference infinite.
    standardized = torch.where(scale > 0, differences / scale, differences.sign()).clamp(-1e6, 1e6)
    bet = stake * standardized
    return (bet - bet.square() / 2).transpose(1, 2).flatten(0, 1)


def check_alpha(alpha: float) -> float:
    """``alpha``, known to be a probability of false alarm.

    Raises:
        ValueError: not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"expected a false-alarm probability alpha in (0, 1); got {alpha}. 1e-6 is a good choice.")
    return float(alpha)
