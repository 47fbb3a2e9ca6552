"""Sound tests of estimates against a known evidence: no tolerance, no variance, no number of repetitions to choose."""

from __future__ import annotations

import torch
from torch import Tensor

from iwbounds.logspace.mean import log_mean_exp
from iwbounds.testing.betting import EProcess, stakes

__all__ = ["assert_not_above", "assert_upper_bound"]


def assert_not_above(log_phat: Tensor, log_p: Tensor | float, alpha: float = 1e-6) -> None:
    r"""Assert that :math:`\mathbb E[\hat p] \le p` for estimates log p̂: that they may be called lower bounds.

    .. math:: \mathbb E[\hat p / p] \le 1 \quad\Rightarrow\quad W_n = \prod_{t \le n} (1 + \lambda(\hat p_t/p_t - 1)),
              \qquad P(\exists n: W_n \ge 1/\alpha) \le \alpha

    Every bound that lies below IWAE for any fixed weights satisfies it: ELBO, Rényi (α ≥ 0), CIWAE, MIWAE, the
    U-statistic, left TVO. It says more than :math:`\mathbb E[\log\hat p] \le \log p`, which no finite sample can
    refute, and it is what a certificate of evidence rests on.

    Args:
        log_phat: independent estimates of log p(x), in nats, any shape; read in order, all axes alike. Estimates of
            several data count as independent only if their samples are.
        log_p: the exact log-evidence: a number, or a tensor that broadcasts to ``log_phat``.
        alpha: the probability of a false alarm.

    Raises:
        AssertionError: the estimates are above; the message says after how many this was certain.
        ValueError: ``alpha`` outside (0, 1), or NaN among the numbers.

    False alarms: at most ``alpha``, for any number of estimates. Power: estimates that are too high by a factor
    :math:`1+\delta`, with a standard deviation s of :math:`\hat p/p`, need about
    :math:`2 s^2 \log(1/\alpha)/\delta^2` of them where that is many.

    Reference: Ramdas, Grünwald, Vovk and Shafer (2023), Game-theoretic statistics and safe anytime-valid inference,
    arXiv:2210.01948.

    >>> assert_not_above(torch.zeros(100), log_p=0.0)
    >>> assert_not_above(torch.full((100,), 0.7), log_p=0.0)
    Traceback (most recent call last):
    AssertionError: E[p̂] ≤ p is refuted after 25 of 100 estimates at alpha = 1e-06...
    """
    _refute(torch.as_tensor(log_phat) - torch.as_tensor(log_p), alpha, "E[p̂] ≤ p", "too high")


def assert_upper_bound(log_upper: Tensor, log_p: Tensor | float, alpha: float = 1e-6) -> None:
    r"""Assert that :math:`\mathbb E[p / \hat p'] \le 1`: that log p̂' may be called an upper bound of log p(x).

    .. math:: U = \log\frac1{K+1}\sum_{k=0}^K w_k,\quad z_0\sim p(z\mid x),\ z_{1..K}\sim q
              \quad\Rightarrow\quad \mathbb E[e^{-U}] \le 1/p(x)

    The mirror image of :func:`assert_not_above`, for upper bounds that contain an exact posterior sample. An upper
    bound without it (a plug-in χ² bound, a mean of logs, the proposal draws alone) fails.

    Args:
        log_upper: independent upper estimates of log p(x), in nats, any shape; read in order.
        log_p: the exact log-evidence: a number, or a tensor that broadcasts to ``log_upper``.
        alpha: the probability of a false alarm.

    Raises:
        AssertionError: the estimates are not above; the message says after how many this was certain.
        ValueError: ``alpha`` outside (0, 1), or NaN among the numbers.

    Reference: Sobolev and Vetrov (2019), Importance Weighted Hierarchical Variational Inference, arXiv:1905.03290, for
    the theorem with ψ in the role of z.

    >>> assert_upper_bound(torch.full((100,), 0.1), log_p=0.0)
    """
    _refute(torch.as_tensor(log_p) - torch.as_tensor(log_upper), alpha, "E[p / p̂'] ≤ 1", "too low")


def _refute(log_e: Tensor, alpha: float, hypothesis: str, fault: str) -> None:
    if log_e.isnan().any():
        raise ValueError(f"expected numbers to test {hypothesis} with; got {int(log_e.isnan().sum())} NaN.")
    process = EProcess(alpha)
    log_e = log_e.flatten()
    # In order, and stopped at the first crossing: what comes after a rejection proves nothing more.
    process.add(stakes(log_e))
    if process.rejected_at is not None:
        so_far = log_mean_exp(log_e[: process.rejected_at].double()).item()
        raise AssertionError(
            f"{hypothesis} is refuted after {process.rejected_at} of {len(log_e)} estimates at alpha = {alpha:g}: they "
            f"are {fault} (log-mean of the ratio so far: {so_far:+.4g} nats)."
        )
