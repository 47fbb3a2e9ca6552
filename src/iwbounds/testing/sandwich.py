r"""Lower and upper estimates against each other on simulated data: the evidence itself need not be known.

Simulating :math:`(x, z) \sim p(x, z)` gives data *and* an exact posterior sample of each. Two families of e-values
follow, with :math:`\ell_k = \log w_k`, :math:`z_0 = z` and :math:`z_{1..K}` from the proposal.

**Sandwich.** With L from proposal draws and U from z and *other* proposal draws, independent given x,

.. math:: \mathbb E[e^{L - U} \mid x] = \mathbb E[\hat p \mid x]\;\mathbb E[1/\hat p' \mid x] \le p(x) / p(x) = 1.

**Which is the posterior sample.** Given the unordered set :math:`\{z_0,…,z_K\}`, its member k is :math:`z_0` with
probability :math:`\tilde w_k`, exactly. For any other probabilities r over the members, :math:`r_0 / \tilde w_0` has a
mean of at most 1. Guessing by
:math:`r = \operatorname{softmax}(a \log p - b \log q)` with (a, b) ≠ (1, 1) wins exactly if the log-weights say too
much, too little or the wrong thing: b = 0 beats a log-weight from which log q should have been left out, b = 2 one in
which it was halved. This side sees weights that are too *low*, which no bound of :math:`e^{L-U}` can.

Both are blind to a constant factor of p or of q; :func:`iwbounds.testing.check_contract` weighs q.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, map_latents
from iwbounds.engine.result import Estimate
from iwbounds.logspace.mean import log_mean_exp
from iwbounds.proposals.base import LogJoint, Proposal
from iwbounds.seeding import forked_rng
from iwbounds.testing.betting import EProcess, guesses, stakes
from iwbounds.testing.densities import densities, value_of, with_density

__all__ = ["assert_sandwich"]

Lower: TypeAlias = Callable[[LogJoint, Any, int], Tensor | Estimate]
Upper: TypeAlias = Callable[[LogJoint, Any, Latents, int], Tensor | Estimate]
Bets: TypeAlias = list[tuple[str, Tensor]]

# (1, 1) is the log-weight itself, the hypothesis that all others bet against.
_POWERS = [
    powers for powers in itertools.product((0.0, 0.5, 1.0, 2.0), (0.0, 0.5, 1.0, 2.0, 4.0)) if powers != (1.0, 1.0)
]


def assert_sandwich(
    simulate: Callable[[], tuple[Any, Latents]],
    log_joint: Callable[[Any, Latents], Tensor],
    make_proposal: Callable[[Any], Distribution | Proposal],
    K: Sequence[int] = (1, 4),  # noqa: N803 - the symbol of the papers
    alpha: float = 1e-6,
    max_datasets: int = 2000,
    *,
    lower: Lower | None = None,
    upper: Upper | None = None,
    seed: int = 0,
) -> None:
    r"""Assert, on data simulated from the model, that lower estimates are lower and upper ones upper.

    No evidence has to be known. Under the hypothesis that ``simulate`` draws from p(x, z) ∝ exp(log_joint), that the
    proposal draws from the density it states, and that the estimates are what they are called, the wealth of every
    bettor of this module is a non-negative supermartingale that starts at 1; the test rejects when their average
    reaches 1/``alpha``, after as few data sets as that takes.

    Args:
        simulate: draws ``(x, z)`` from the model, for one data set or a batch of independent ones: z of shape
            ``(*batch, *event)`` (or a tuple or dict of such), without a sample axis.
        log_joint: ``log_joint(x, z)`` gives ``(K, *batch)`` nats for latents ``(K, *batch, *event)``; a constant factor
            of p does not matter.
        make_proposal: from x to the proposal, with batch shape ``batch``.
        K: numbers of proposal draws to test.
        alpha: the probability of a false alarm.
        max_datasets: how many data sets to simulate at most, batches counted by their data.
        lower: an estimator of yours, ``lower(log_joint_of_z, proposal, num_samples)``, to an :class:`iwbounds.Estimate`
            or ``(*batch)`` nats, whose exponential must not exceed p(x) in expectation. None: IWAE.
        upper: an estimator of yours, ``upper(log_joint_of_z, proposal, posterior_sample, num_samples)``, such that
            :math:`e^{-U}` does not exceed 1/p(x) in expectation. None: the log-mean-weight of the posterior sample and
            K proposal draws.
        seed: of everything that is drawn from torch's generators.

    Raises:
        AssertionError: one of the hypotheses is refuted; the message says after how many data sets, which bettor won
            most (and so what is likely to be wrong), and the call that reproduces it.
        ValueError: densities of the wrong shape; NaN; a simulated latent of zero density under the model.

    False alarms: at most ``alpha``, for data sets that are independent and exact arithmetic. Float32 rounding of
    log-densities of size 1e3 is harmless; beyond 1e5 use float64. Not for a :class:`iwbounds.HierarchicalProposal`,
    whose extended latents the simulation does not give, unless both ``lower`` and ``upper`` are yours.

    References: Burda, Grosse and Salakhutdinov (2015), arXiv:1509.00519, for L; Sobolev and Vetrov (2019),
    arXiv:1905.03290, for U; Ramdas et al. (2023), arXiv:2210.01948, for the test.

    >>> from iwbounds.testing import GaussianModel
    >>> model = GaussianModel(torch.ones(2, 1), torch.zeros(2), noise=0.7)
    >>> assert_sandwich(lambda: model.simulate(50), model.log_joint, model.proposal, max_datasets=500)
    """
    process, bets = EProcess(alpha), Bets()
    with forked_rng(seed), torch.no_grad():
        while process.rejected_at is None and process.count < max_datasets:
            x, z = simulate()
            data = _DataSets(partial(log_joint, x), make_proposal(x), z, lower, upper)
            bets = data.bets(K)
            # All bettors at once: their average is the wealth, so that no correction for many tests is needed.
            factors = torch.cat([factor for _, factor in bets])
            if factors.shape[1] == 0:
                raise ValueError("expected simulate to draw at least one data set; got an empty batch.")
            process.add(factors[:, : max_datasets - process.count])
    if process.rejected_at is not None:
        names = [name for name, factor in bets for _ in factor]
        raise AssertionError(
            f"refuted after {process.rejected_at} simulated data sets at alpha = {alpha:g}: {names[process.best]}. "
            f"Reproduce: assert_sandwich(…, K={tuple(K)}, alpha={alpha!r}, max_datasets={max_datasets}, seed={seed})."
        )


@dataclass(frozen=True)
class _DataSets:
    """A batch of simulated data sets, each with its posterior sample."""

    log_joint: LogJoint
    proposal: Distribution | Proposal
    posterior_sample: Latents
    lower: Lower | None
    upper: Upper | None

    def bets(self, counts: Sequence[int]) -> Bets:
        """What is bet against, and the factors ``(bettors, data sets)`` of those who do."""
        if self.lower is not None and self.upper is not None:
            return [self._sandwich(self._own_lower(count), self._own_upper(count), count) for count in counts]
        # One set of draws for every K: each count uses a part of them, and evaluates no density again.
        # Twice the largest: L and U must be independent given x, so each has a half of its own.
        log_p, log_q = self._densities(2 * max(counts))
        log_w, bets = log_p - log_q, Bets()
        for count in counts:
            rows = [0, *range(max(counts) + 1, max(counts) + count + 1)]  # other draws than the lower estimate's
            low = log_mean_exp(log_w[1 : count + 1]) if self.lower is None else self._own_lower(count)
            high = log_mean_exp(log_w[rows]) if self.upper is None else self._own_upper(count)
            bets += [self._sandwich(low, high, count), *_guess(log_p[rows], log_q[rows], count)]
        return bets

    def _sandwich(self, low: Tensor, high: Tensor, count: int) -> tuple[str, Tensor]:
        gap = (low - high).flatten()
        # −inf on both sides is NaN: nothing was estimated.
        if gap.isnan().any():
            raise ValueError(
                f"expected finite lower and upper estimates; got NaN for {int(gap.isnan().sum())} data sets."
            )
        return f"the lower estimate exceeds the upper one, E[exp(L − U)] > 1, with K = {count}", stakes(gap)

    def _densities(self, count: int) -> tuple[Tensor, Tensor]:
        """log p and log q of the posterior sample and, after it, of ``count`` proposal draws: ``(1 + count, n)``."""
        proposal = with_density(self.proposal)
        # As one sample in front of the draws, so that row 0 is always the posterior's.
        known = map_latents(lambda z: z.unsqueeze(0), self.posterior_sample)
        pairs = [densities(self.log_joint, proposal, z) for z in (known, proposal.sample((count,)))]
        log_p, log_q = (torch.cat(rows).reshape(1 + count, -1).double() for rows in zip(*pairs, strict=True))
        _check_support(log_p, log_q)
        return log_p, log_q

    def _own_lower(self, count: int) -> Tensor:
        assert self.lower is not None
        return value_of(self.lower(self.log_joint, self.proposal, count))

    def _own_upper(self, count: int) -> Tensor:
        assert self.upper is not None
        return value_of(self.upper(self.log_joint, self.proposal, self.posterior_sample, count))


def _guess(log_p: Tensor, log_q: Tensor, count: int) -> Bets:
    """Bets on which of ``1 + count`` latents is the posterior sample."""
    names = [
        f"{a:g} log p − {b:g} log q tells the posterior sample from {count} proposal draws better than log p − log q "
        "does: one of the two log-densities is not what simulate, or the proposal, draws from"
        for a, b in _POWERS
    ]
    finite = log_p.masked_fill(log_p.isneginf(), 0.0)  # excluded below: its log-weight is −inf
    factors = guesses(log_p - log_q, torch.stack([a * finite - b * log_q for a, b in _POWERS]))
    return list(zip(names, factors.reshape(len(names), -1, factors.shape[1]), strict=True))


def _check_support(log_p: Tensor, log_q: Tensor) -> None:
    """Raise where a density is NaN, or zero where it must not be. Row 0 holds the posterior samples."""
    for name, log_density in (("log_joint", log_p), ("the proposal's log_prob", log_q)):
        if log_density.isnan().any() or log_density.isposinf().any():
            raise ValueError(f"expected log-densities below +inf from {name}; got NaN or +inf.")
    if log_p[0].isneginf().any():
        raise AssertionError("a simulated latent has zero density under log_joint: simulate does not draw from it.")
    if log_q[1:].isneginf().any():
        raise AssertionError("a proposal draw has zero density under its log_prob: sample does not draw from it.")
    if log_q[0].isneginf().any():
        raise AssertionError(
            "a posterior sample has zero density under the proposal: its support is too small, and the evidence is "
            "underestimated however many samples are drawn. Use a proposal whose support is the prior's."
        )
