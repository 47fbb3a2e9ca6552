r"""Lower bounds of the evidence that hold with a stated probability, whatever the tail of the weights.

Weights :math:`w_i \ge 0` are independent with mean p. A bettor who believes that p is too small stakes the share λ of
the wealth on each weight:

.. math:: W_n(p) = \frac1{12} \sum_{j=1}^{12} \prod_{i \le n} \Bigl(1 + \lambda_j \Bigl(\frac{w_i}{p} - 1\Bigr)\Bigr),
          \qquad \lambda_j = 2^{-j}.

At the true p this is a non-negative martingale that starts at 1, so by Ville's inequality it reaches 1/δ *ever* with a
probability of at most δ. W falls in p; hence :math:`p_L = \sup\{p : W_n(p) \ge 1/\delta\}` exceeds the truth with a
probability of at most δ, and so does the largest :math:`p_L` over all n that anybody looked at. No variance is needed.

Reference: Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by betting, arXiv:2010.09686,
for the idea; here the upper end of the range is infinite, so one bets on one side only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from iwbounds.logspace.mean import log_mean_exp_with_weights, promoted

__all__ = ["BettingCertificate", "check_confidence", "lower_confidence_bound", "mean_confidence_bound"]

# The best stake is about gap over variance, which nobody knows beforehand: among powers of 2 one is within a factor of
# √2 of it, and playing twelve at once costs log 12 nats of wealth.
_STAKES = [2.0**-j for j in range(1, 13)]
_CHUNK_ELEMENTS = 2**16  # half a megabyte of float64: the passes of all twelve stakes over it stay in the cache
_MARGIN = 1e-7  # aimed at above log 1/δ, so that rounding cannot leave the answer on the wrong side of it
_MAX_STEPS = 200


def lower_confidence_bound(log_weights: Tensor, confidence: float = 0.99) -> Tensor:
    r"""A number that log p(x) is below with probability at most 1 − ``confidence``: a certificate, per datum.

    .. math:: \log p_L = \sup\{\log p : \log W_n(p) \ge \log 1/\delta\}

    with the wealth W of :mod:`iwbounds.certificates`. It holds for every number of samples and for any tail of the
    weights, infinite variance included, and also when n was chosen by looking at the weights (optional stopping).
    It uses the wealth after the last sample only, so the order of the samples does not matter; the larger of several
    such bounds of one growing set of weights is a certificate too (``BettingCertificate`` takes it).

    The weights must be independent along axis 0, with mean p(x): draws of the proposal itself. The bound is void for
    smoothed weights, for dependent draws (quasi-random, stratified, chains; there, pass one log-mean-weight per
    independent randomisation), and for the best of several runs unless 1 − ``confidence`` is divided among them.

    Args:
        log_weights: ``(K, *batch)`` nats.
        confidence: of each datum by itself, in (0, 1).

    Returns:
        ``(*batch)`` float64 nats. Never above the log of the mean weight.

    Raises:
        ValueError: a weight is NaN or +inf (nothing can be certified then), or ``confidence`` is not in (0, 1).
        TypeError: not a floating tensor.

    Edge cases: −inf weights are fine; a datum that has nothing else gets −inf. One sample certifies about 7 nats less
    than its own log-weight at 99 %.

    Reference: as :mod:`iwbounds.certificates`.

    >>> log_w = torch.randn(1000, generator=torch.Generator().manual_seed(0)) - 0.5  # mean weight 1
    >>> round(lower_confidence_bound(log_w).item(), 2)
    -0.07
    """
    certificate = BettingCertificate(confidence)
    certificate.add(log_weights)
    return certificate.lower()


def mean_confidence_bound(log_evidence: Tensor, confidence: float = 0.99) -> float:
    r"""A number that the mean over data of log p(x) is below with probability at most 1 − ``confidence``.

    .. math:: \frac1N \sum_i \log\hat p_i - \frac1N \log\frac1\delta

    By Markov's inequality: :math:`\prod_i \hat p_i / p_i` has a mean of at most 1 where the estimates are independent,
    non-negative, and each of mean at most p. For a mean over many data this costs less than betting on each.

    Args:
        log_evidence: ``(N,)`` nats, each the log of an independent estimate whose mean does not exceed p(x_i).
        confidence: in (0, 1).

    Raises:
        ValueError: an estimate is NaN or +inf, there are none, or ``confidence`` is not in (0, 1).

    Reference: Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood, arXiv:1511.02543, section 2.

    >>> round(mean_confidence_bound(torch.full((100,), -20.0)), 3)
    -20.046
    """
    log_evidence = promoted(log_evidence.detach()).double().flatten()
    _check_finite(log_evidence, "log_evidence")
    return (log_evidence.mean() - math.log(1 / (1 - check_confidence(confidence))) / len(log_evidence)).item()


class BettingCertificate:
    """The certificate of weights that arrive in parts, each datum's as large as it ever was.

    Look at :meth:`lower` whenever you like, and stop when you like. The weights are kept, in their own dtype: finding
    the bound anew takes all of them.

    >>> certificate = BettingCertificate()
    >>> for part in torch.zeros(1000).split(300): certificate.add(part)
    >>> certificate.count, round(certificate.lower().item(), 3)
    (1000, -0.0...)
    """

    def __init__(self, confidence: float = 0.99) -> None:
        self.confidence = check_confidence(confidence)
        self.count = 0
        """Weights per datum so far."""
        self._parts: list[Tensor] = []
        self._lower: Tensor | None = None

    def add(self, log_weights: Tensor) -> None:
        """Take in more samples of the same data, ``(n, *batch)``.

        Raises:
            ValueError: a weight is NaN or +inf, or the batch is another one.
        """
        log_weights = promoted(log_weights.detach())
        _check_finite(log_weights, "log_weights")
        if self._parts and log_weights.shape[1:] != self._parts[0].shape[1:]:
            raise ValueError(
                f"expected log-weights of batch shape {tuple(self._parts[0].shape[1:])}, as before; got "
                f"{tuple(log_weights.shape[1:])}. One certificate is for one batch of data."
            )
        self._parts.append(log_weights)
        self.count += log_weights.shape[0]

    def log_evidence(self) -> Tensor:
        """Log of the mean weight so far, ``(*batch)`` float64."""
        # Part by part: a float64 copy of all weights at once would be twice their memory.
        means = torch.stack([log_mean_exp_with_weights(part.double())[0] + math.log(len(part)) for part in self._parts])
        return means.logsumexp(0) - math.log(self.count)

    def lower(self) -> Tensor:
        """The certificate, ``(*batch)`` float64 nats: the largest of all that this method has returned."""
        now = self._solve(self.log_evidence())
        self._lower = now if self._lower is None else torch.maximum(self._lower, now)
        return self._lower

    def _solve(self, log_mean: Tensor) -> Tensor:
        """log p where the wealth is 1/δ, by Newton's method on u = −log p.

        log W is convex and increasing in u. On the side where it is above its goal, Newton's steps never cross to the
        other: every iterate there is a certificate, and the last one is the best. From below, the first step crosses.
        """
        goal = -math.log(1 - self.confidence) + _MARGIN
        alive = ~log_mean.isneginf()
        spread = (goal / self._ess(log_mean)).clamp_max(10.0)
        u = torch.where(alive, spread + (2 * spread).sqrt() - log_mean, 0.0)  # about where a normal mean would end
        for _ in range(_MAX_STEPS):
            excess, slope = self._log_wealth(u)
            step = torch.where(alive, (excess - goal) / slope, 0.0)
            if bool((step.abs() <= 1e-9 + 1e-14 * u.abs()).all()):  # the second part is what float64 resolves
                break
            u = u - step
        # At the very u that is returned: the steps may have run out, and rounding may have had a part in them.
        certified = alive & (self._log_wealth(u)[0] >= goal - _MARGIN)
        return torch.where(certified, -u, -torch.inf)

    def _ess(self, log_mean: Tensor) -> Tensor:
        # Only Newton's start depends on this: an overflow of the squares ends at the lower clamp, and costs steps.
        squares = torch.zeros_like(log_mean)
        centre = log_mean.nan_to_num(neginf=0.0)
        for part in self._chunks():
            squares += (2 * (part - centre)).exp().sum(0)
        return (self.count**2 / squares).clamp(1.0, float(self.count))

    def _log_wealth(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log W at log p = −u, and its derivative in u, each ``(*batch)``."""
        totals = u.new_zeros(len(_STAKES), *u.shape)
        slopes = torch.zeros_like(totals)
        for part in self._chunks():
            # Past e^700 float64 overflows. Capped, log W comes out too small: never a certificate too many.
            ratio = (part + u).clamp_max_(700.0).exp_()
            for j, stake in enumerate(_STAKES):
                # 1 + λ(r − 1) = (1 − λ)(1 + r λ/(1 − λ)): the second factor here, the first for all weights at once
                # below.
                odds = ratio * (stake / (1 - stake))
                totals[j] += odds.log1p().sum(0)
                # d log(1 + odds)/du, as the odds grow as e^u; in place, since the odds are not needed again.
                slopes[j] += odds.div_(odds + 1).sum(0)
        lost = [self.count * math.log1p(-stake) for stake in _STAKES]
        totals += u.new_tensor(lost).reshape(-1, *[1] * u.ndim)
        # The slope of a log-mean-exp: those of the bettors, each weighed by its share of the wealth.
        return totals.logsumexp(0) - math.log(len(_STAKES)), (totals.softmax(0) * slopes).sum(0)

    def _chunks(self) -> Iterator[Tensor]:
        """The weights in float64, a cacheful at a time."""
        rows = max(1, _CHUNK_ELEMENTS // max(1, self._parts[0][0].numel()))
        for part in self._parts:
            for start in range(0, len(part), rows):
                yield part[start : start + rows].double()


def check_confidence(confidence: float) -> float:
    """``confidence``, known to be a probability.

    Raises:
        ValueError: not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence in (0, 1), such as 0.99; got {confidence}.")
    return float(confidence)


def _check_finite(values: Tensor, name: str) -> None:
    """Unlike the engine, a certificate inspects its numbers: one NaN would make it void in silence."""
    bad = int((values.isnan() | values.isposinf()).sum())
    if bad:
        raise ValueError(
            f"expected {name} below +inf and not NaN (−inf is fine); got {bad} of {values.numel()} that are not. "
            "Nothing can be certified: find them with iwbounds.testing.check_contract."
        )
