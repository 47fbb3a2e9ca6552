r"""Both sides of the evidence from draws of the posterior, wherever they come from.

With K draws of the proposal q and S draws of the posterior, and :math:`w = p(x,z)/q(z)` at both,

.. math:: E\Bigl[\log\tfrac1K\sum_k w(z_k)\Bigr] \;\le\; \log p(x) \;\le\;
          E\Bigl[-\log\tfrac1S\sum_s \frac1{w(z_s)}\Bigr].

Between them lies the bridge estimate, the root r of

.. math:: \sum_{k=1}^K \frac{s_1 w_k}{s_1 w_k + s_2 r} = \sum_{s=1}^S \frac{s_2 r}{s_1 w_s + s_2 r}, \qquad
          s_1 = \frac{S}{S+K},\; s_2 = \frac{K}{S+K},

which is the fixed point of Meng and Wong's iteration. The left side falls in r and the right side rises, so Newton's
method in log r, kept inside a bracket, finds it from anywhere, however far apart the two sets of draws are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from iwbounds.bounds.base import Direction
from iwbounds.bounds.iwae import IWAE
from iwbounds.bounds.reverse import ReverseIWAE
from iwbounds.certificates import check_confidence, lower_confidence_bound
from iwbounds.checks import Latents, check_latents, check_whole_number
from iwbounds.evidence.streaming import means_of_calls
from iwbounds.evidence.weighted import Weighted
from iwbounds.logspace.mean import finite_maximum
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal

__all__ = ["Sandwich", "Side", "sandwich"]

_MAX_STEPS = 200  # halvings alone would need fewer
_BATCHES = 50


@dataclass(frozen=True, eq=False)
class Side:
    """One estimate of log p(x), ``(*batch)`` float64 nats.

    >>> Side(torch.tensor(-3.0), Direction.LOWER, torch.tensor(0.01), torch.tensor(-3.1)).certificate
    tensor(-3.1000)
    """

    value: Tensor
    direction: Direction
    """What the expected value is to log p(x)."""
    standard_error: Tensor
    """Of the value, by the delta method; for chain draws from the means of batches. NaN where it cannot be known."""
    certificate: Tensor | None = None
    """A bound of log p(x) that fails with probability at most 1 − confidence; None where nothing is certified."""


@dataclass(frozen=True, eq=False)
class Sandwich:
    """The result of :func:`iwbounds.sandwich`: lower, upper and bridge estimate of log p(x), per datum."""

    lower: Side
    """IWAE of the proposal's draws."""
    upper: Side
    """:class:`iwbounds.ReverseIWAE` of the posterior's draws."""
    bridge: Side
    """Between the two, usually much closer to the truth than either; no bound."""
    num_samples: int
    num_posterior_samples: int
    confidence: float
    refusals: tuple[tuple[str, str], ...] = ()
    """(side, why it is not certified)."""

    @property
    def width(self) -> Tensor:
        """``(*batch)``: upper minus lower value. Sampling may make it negative by a few standard errors."""
        return self.upper.value - self.lower.value

    def __str__(self) -> str:
        # One line for each side: that of the datum with the widest sandwich, as the others are better.
        where = int(self.width.flatten().argmax())
        which = f", widest of {self.width.numel()} data" if self.width.numel() > 1 else ""
        head = (
            f"log p(x) in nats from {self.num_samples} draws of the proposal and {self.num_posterior_samples} of the "
            f"posterior{which}"
        )
        sides = (("lower", self.lower, ">="), ("upper", self.upper, "<="), ("bridge", self.bridge, ""))
        lines = [self._line(name, side, sign, where) for name, side, sign in sides]
        return "\n".join([head, *lines, f"width   {self.width.flatten()[where].item():.4f}"])

    def _line(self, name: str, side: Side, sign: str, where: int) -> str:
        value, error = side.value.flatten()[where].item(), side.standard_error.flatten()[where].item()
        line = f"{name:<8}{value:.4f} ± {error:.4f}"
        if side.certificate is not None:
            return (
                f"{line}  certified {sign} {side.certificate.flatten()[where].item():.4f} ({100 * self.confidence:g} %)"
            )
        reason = dict(self.refusals).get(name)
        return f"{line}  uncertified: {reason}" if reason else f"{line}  not a bound"

    def plot(self, axes: Any = None) -> Any:
        """The sides with their errors and certificates (matplotlib): see :func:`iwbounds.plots.plot_sandwich`."""
        from iwbounds.plots.sandwich import plot_sandwich

        return plot_sandwich(self, axes)


@torch.no_grad()
def sandwich(
    log_joint: LogJoint,
    proposal: Distribution | Proposal | ExtendedProposal,
    posterior_samples: Latents,
    num_samples: int = 1000,
    confidence: float = 0.99,
    exact: bool = False,
    chains: int | None = None,
    *,
    chunk_size: int | None = None,
    samples_per_randomisation: int | None = None,
) -> Sandwich:
    r"""log p(x) from below, by draws of the proposal, and from above, by draws of the posterior.

    .. math:: L = \log\frac1K\sum_k w(z_k),\; z_k \sim q, \qquad
              U = -\log\frac1S\sum_s \frac1{w(z_s)},\; z_s \sim p(z\mid x)

    Direction: L lower, U upper, the bridge estimate none. L is certified by betting on w; U by the same bet on 1/w,
    which takes independent draws of the posterior itself (``exact=True``: simulated data, conjugate models). Draws of a
    Markov chain make U valid up to the chain's own error, and leave it uncertified. Each certificate holds with
    probability ``confidence``, hence both with at least 2 · ``confidence`` − 1, for each datum by itself.

    **The proposal must not have been fitted on these draws**: it would be close to them by chance, and the upper side
    too low. Fit it on one half, and pass the other: ``fit_on, held_out = draws.chunk(2)`` (of every chain, where there
    are several). A proposal narrower than the posterior favours the upper side, a wider one the lower.

    Args:
        log_joint: latents to ``(K, *batch)`` nats, as in :func:`iwbounds.estimate`.
        proposal: a torch ``Distribution``, an :class:`iwbounds.Proposal`, or one that extends the latents and can
            complete a posterior draw to its extended one (:class:`iwbounds.HierarchicalProposal`,
            :class:`iwbounds.StratifiedMixture`, …): the sandwich is then that of the extended latent, whose evidence is
            the same.
        posterior_samples: S ≥ 2 draws from anywhere, ``(S, *batch, *event)``: a tensor, or a tuple or dict, whatever
            ``log_joint`` and the proposal's ``log_prob`` take.
        num_samples: K ≥ 2.
        confidence: of each certificate, in (0, 1).
        exact: the posterior samples are independent draws of the exact posterior.
        chains: how many chains the draws come from, one after the other along axis 0, each in its own order; only for
            the standard errors (batch means). None: one chain, unless ``exact``.
        chunk_size: samples whose densities are evaluated at once; None: all there are.
        samples_per_randomisation: for draws that depend on each other within one call of the proposal, and not between
            calls (:class:`iwbounds.QuasiRandom`, :class:`iwbounds.StratifiedMixture`): how many to draw in one call.
            ``num_samples`` is a multiple of it; the mean of each call counts as one for error and certificate.

    Returns:
        A :class:`iwbounds.evidence.Sandwich`: ``lower``, ``upper`` and ``bridge``, each with ``value``, ``direction``,
        ``standard_error``, ``certificate``; ``str()`` and ``plot()``.

    Raises:
        ValueError: NaN or impossible log-weights; fewer than 2 draws; ``chains`` that do not divide S, or together with
            ``exact``; shapes, as :func:`iwbounds.estimate`.
        TypeError: an extended proposal that cannot complete a posterior draw (it does not define
            ``posterior_log_weights``).

    Edge cases: a proposal with ``independent=False`` has no lower certificate, and no standard error of lower side and
    bridge, without ``samples_per_randomisation``. Posterior draws outside the proposal's support are fine.

    References: Meng and Wong (1996), Simulating ratios of normalizing constants via a simple identity, Statistica
    Sinica 6, eq. 4.1, for the bridge; Frühwirth-Schnatter (2004), Estimating marginal likelihoods for mixture and
    Markov switching models using bridge sampling techniques, Econometrics Journal 7, for its error; the certificates as
    in :mod:`iwbounds.certificates`.

    >>> from torch.distributions import Normal
    >>> log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0))
    >>> posterior = Normal(torch.tensor(0.5), 0.5**0.5)
    >>> found = sandwich(log_joint, Normal(torch.tensor(0.5), 0.8), posterior.sample((1000,)), exact=True)
    >>> bool(found.lower.certificate - 0.05 < -1.5155 < found.upper.certificate + 0.05)
    True
    """
    count = check_latents(posterior_samples, None)
    _check(count, num_samples, exact, chains, chunk_size)
    check_confidence(confidence)
    weighted = Weighted.of(log_joint, proposal)
    per_call = _per_call(num_samples, samples_per_randomisation)
    drawn = weighted.blocks(num_samples) if per_call == 1 else weighted.calls(num_samples, per_call)
    log_w = torch.cat([weighted.log_weights(z, chunk_size) for z in drawn])
    reverse = weighted.posterior_log_weights(posterior_samples, chunk_size)
    _check_weights(log_w := log_w.double(), reverse := reverse.double())
    errors = _Errors(
        weighted.proposal.independent or samples_per_randomisation is not None, exact, chains or 1, per_call
    )
    refusals = _refusals(errors.independent, exact)
    lower = Side(
        IWAE()(log_w),
        Direction.LOWER,
        errors.of_draws(log_w),
        lower_confidence_bound(means_of_calls(log_w, per_call), confidence) if errors.independent else None,
    )
    upper = Side(
        ReverseIWAE()(reverse),
        Direction.UPPER,
        # Of the log-mean of 1/w, whose sign the upper side turns: the error is the same.
        errors.of_posterior(-reverse),
        # The same bet on 1/w, whose mean over the posterior is 1/p(x); chain draws are not independent, and nothing is
        # bet.
        -lower_confidence_bound(-reverse, confidence) if exact else None,
    )
    bridge = _bridge(log_w, reverse, errors)
    return Sandwich(lower, upper, bridge, num_samples, count, confidence, refusals)


def _check(count: int, num_samples: int, exact: bool, chains: int | None, chunk_size: int | None) -> None:
    if count < 2 or num_samples < 2:
        raise ValueError(
            f"expected at least 2 posterior samples along axis 0 and num_samples >= 2; got {count} and {num_samples}. "
            "Fewer have no standard error; for one posterior sample, use iwbounds.upper_bound."
        )
    if exact and chains is not None:
        raise ValueError("expected either exact=True (independent draws) or chains=…; got both.")
    # Unequal chains would need a map from draws to chains; equal ones are what samplers give.
    if chains is not None and (chains < 1 or count % chains or count // chains < 2):
        raise ValueError(
            f"expected chains that divide the {count} posterior samples into 2 or more each; got {chains}. Lay the "
            "chains one after the other along axis 0."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"expected a chunk_size of at least 1; got {chunk_size}.")


def _per_call(num_samples: int, samples_per_randomisation: int | None) -> int:
    if samples_per_randomisation is None:
        return 1
    size = check_whole_number("samples_per_randomisation", samples_per_randomisation, 1)
    if num_samples % size or num_samples < 2 * size:
        raise ValueError(
            f"expected num_samples to be two or more times samples_per_randomisation = {size}; got {num_samples}. "
            f"Take {max(2, math.ceil(num_samples / size)) * size}."
        )
    return size


def _check_weights(log_w: Tensor, reverse: Tensor) -> None:
    """One impossible number would make both sides void in silence."""
    if log_w.shape[1:] != reverse.shape[1:]:
        raise ValueError(
            f"expected posterior samples (S, *batch, *event) of the batch shape {tuple(log_w.shape[1:])} that the "
            f"proposal's draws have; got log-weights {tuple(reverse.shape)}. Nothing is broadcast."
        )
    bad = int((log_w.isnan() | log_w.isposinf()).sum())
    if bad:
        raise ValueError(
            f"expected log-weights below +inf and not NaN at draws of the proposal; {bad} of {log_w.numel()} are not. "
            "Find them with iwbounds.testing.check_contract."
        )
    # +inf is allowed: where q is 0, 1/w is 0, a value like any other.
    bad = int((reverse.isnan() | reverse.isneginf()).sum())
    if bad:
        raise ValueError(
            f"expected posterior samples at which log_joint is above −inf and no density is NaN; {bad} of "
            f"{reverse.numel()} are not: no draws of this posterior. Check their order of parameters, and whether they "
            "are on the scale that log_joint takes."
        )


def _refusals(independent: bool, exact: bool) -> tuple[tuple[str, str], ...]:
    found = []
    if not independent:
        why = "the proposal's draws depend on each other (independent=False)"
        found.append(("lower", f"{why}; where separate calls do not, say samples_per_randomisation="))
    if not exact:
        found.append(("upper", "chain draws, so valid up to the chain's own error (exact=False)"))
    return tuple(found)


@dataclass(frozen=True)
class _Errors:
    """Standard errors of log-means, for draws that are independent or in chains."""

    independent: bool
    exact: bool
    chains: int
    per_call: int = 1
    """Draws of the proposal that make one independent mean."""

    def of_draws(self, log_x: Tensor) -> Tensor:
        """Of the log-mean of x at the proposal's draws."""
        error = _relative_error(means_of_calls(log_x, self.per_call), _iid_variance)
        return error if self.independent else torch.full_like(error, torch.nan)

    def of_posterior(self, log_x: Tensor) -> Tensor:
        """Of the log-mean of x at the posterior's draws."""
        return _relative_error(log_x, _iid_variance if self.exact else self._batch_variance)

    def _batch_variance(self, x: Tensor) -> Tensor:
        """Variance of the mean from the means of batches of successive draws, about the mean of all chains.

        Some fifty batches in all tell a standard error to a tenth; more of them would be shorter, and those that are
        not far longer than the chain's memory make it too small. From fifty chains on, each is one batch.
        """
        per_chain = x.reshape(self.chains, -1, *x.shape[1:])
        # At least √n draws to a batch: a batch grows with the chain, and in the end outlasts any memory.
        size = max(math.isqrt(per_chain.shape[1]), per_chain.shape[1] // math.ceil(_BATCHES / self.chains))
        count = per_chain.shape[1] // size
        # The last few draws that fill no batch are left out of the variance alone.
        whole = per_chain[:, : count * size].reshape(-1, size, *x.shape[1:])
        means = whole.mean(1)
        # Var of one batch's mean over the number of batches that all draws would fill.
        return means.var(0) * (size / len(x))


def _iid_variance(x: Tensor) -> Tensor:
    return x.var(0) / len(x)


def _relative_error(log_x: Tensor, variance: Callable[[Tensor], Tensor]) -> Tensor:
    """Standard error of log mean x: that of the mean, over the mean. NaN where every x is zero."""
    # Relative to the largest: the ratio of error and mean does not depend on the scale.
    x = (log_x - finite_maximum(log_x, 0)).exp()
    return variance(x).sqrt() / x.mean(0)


def _bridge(log_w: Tensor, reverse: Tensor, errors: _Errors) -> Side:
    """The root in log r, and its error: that of the two sums at the root, as the iteration is stationary there."""
    shift = math.log(len(reverse) / len(log_w))  # log s₁/s₂
    alive = ~log_w.isneginf().all(0) & ~reverse.isposinf().all(0)
    # Weights of 1 keep the iteration of such a datum finite; its result is thrown away below.
    log_w, reverse = log_w.masked_fill(~alive, 0.0), reverse.masked_fill(~alive, 0.0)
    root = _root(log_w + shift, reverse + shift)
    draws, posterior = logsigmoid(log_w + shift - root), logsigmoid(root - shift - reverse)
    # log r is the difference of two log-means of independent draws: their variances add (Frühwirth-Schnatter 2004).
    error = (errors.of_draws(draws).square() + errors.of_posterior(posterior).square()).sqrt()
    return Side(root.masked_fill(~alive, torch.nan), Direction.NONE, error.masked_fill(~alive, torch.nan))


def _root(draws: Tensor, posterior: Tensor) -> Tensor:
    """u with Σ σ(draws − u) = Σ σ(u − posterior): Newton's steps inside a bracket, halved where they leave it."""
    both = torch.cat([draws, posterior])
    # 50 nats outside of all draws one sum is its count, and the other e^−50 of it: the root lies between.
    low = both.masked_fill(both.isneginf(), torch.inf).amin(0) - 50
    high = both.masked_fill(both.isposinf(), -torch.inf).amax(0) + 50
    u = (low + high) / 2
    for _ in range(_MAX_STEPS):
        # Logs of the sums: of sets of draws that are far apart, both sums would underflow.
        (left, fall), (right, rise) = _log_sum(draws - u), _log_sum(u - posterior)
        low, high = torch.where(left > right, u, low), torch.where(left < right, u, high)
        # Where all σ are saturated the slope is 0: such a step leaves the bracket, and is halved instead.
        step = (left - right) / (fall + rise).clamp_min(1e-300)
        if bool((step.abs() <= 1e-12 * (1 + u.abs())).all()):
            break
        inside = (u + step >= low) & (u + step <= high)
        u = torch.where(inside, u + step, (low + high) / 2)
    return u


def _log_sum(x: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ σ(x), and its derivative with respect to a common shift of x."""
    logs = logsigmoid(x)
    return logs.logsumexp(0), (logs.softmax(0) * (-x).sigmoid()).sum(0)
