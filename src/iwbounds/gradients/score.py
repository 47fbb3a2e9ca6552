"""Score-function estimators, for proposals that cannot be reparameterised: REINFORCE, VIMCO and OVIS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound
from iwbounds.checks import check_real
from iwbounds.gradients.base import Coefficients, EvaluatedTogether
from iwbounds.logspace.leave_one_out import weights_and_rest
from iwbounds.logspace.mean import finite_maximum, finite_or_zero, served_by_kernel

__all__ = ["OVIS", "VIMCO", "RunningMean", "ScoreFunction"]


class RunningMean:
    """A baseline: an exponential moving average, over calls, of the batch's mean bound.

    The average of the calls *before* is used, so the baseline is independent of the samples and adds no bias.

    >>> baseline = RunningMean(decay=0.5)
    >>> baseline.update(torch.tensor([2.0, 4.0]))
    >>> baseline()
    tensor(3.)
    """

    def __init__(self, decay: float = 0.99) -> None:
        decay = check_real("decay", decay, "0.99 is the default.")
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay in [0, 1); got {decay}.")
        self.decay = decay
        self.state: Tensor | None = None

    def __call__(self) -> Tensor:
        return torch.zeros(()) if self.state is None else self.state.nan_to_num(nan=0.0)

    def update(self, value: Tensor) -> None:
        """Take in the bound of a batch; data whose bound is not finite are left out, and a batch without any other."""
        finite = value.detach().isfinite()
        mean = torch.where(finite, value.detach(), 0.0).sum() / finite.sum().clamp_min(1)
        # NaN stands for "no batch yet"; all by torch.where, since looking at values would wait for a GPU.
        state = torch.full_like(mean, torch.nan) if self.state is None else self.state.to(mean)
        average = torch.where(state.isnan(), mean, self.decay * state + (1 - self.decay) * mean)
        self.state = torch.where(finite.any(), average, state)


@final
@dataclass(frozen=True)
class ScoreFunction(EvaluatedTogether):
    r"""The score-function gradient (REINFORCE), with an optional baseline :math:`\beta`.

    .. math:: a_k = c_k, \qquad b_k = 0, \qquad s_k = L - \beta - c_k

    Unbiased for every bound and any baseline that does not depend on :math:`z_k`; of high variance. Prefer
    :class:`VIMCO` for K ≥ 2.

    Args:
        baseline: None; or a callable without arguments (closing over the data) that returns ``(*batch)`` nats. If what
            it returns requires grad it is *learned*: the same backward adds the gradient of
            :math:`-\tfrac12 (L-\beta)^2` to its parameters. :class:`RunningMean` keeps an average over calls, which
            the engine updates once per call; who calls :meth:`coefficients` by hand calls :meth:`update` too.

    Edge cases: a datum whose bound is −inf has score 0.

    Raises:
        TypeError: a baseline that cannot be called.
        ValueError: on use, one that returns neither shape ``(*batch)`` nor a scalar.

    Reference: Williams (1992), Simple statistical gradient-following algorithms; Mnih and Gregor (2014), Neural
    Variational Inference and Learning, arXiv:1402.0030, section 2.3.

    >>> from iwbounds import IWAE
    >>> ScoreFunction().coefficients(IWAE(), torch.zeros(2, 1)).score.squeeze(1)
    tensor([-0.5000, -0.5000])
    """

    baseline: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.baseline is not None and not callable(self.baseline):
            raise TypeError(
                "expected baseline to be None, or a callable without arguments that returns (*batch) nats; got "
                f"{self.baseline!r}. Pass a function that returns it, or RunningMean()."
            )

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        value, c, _ = bound.differentiate(log_w)
        if self.baseline is None:
            # A dead datum has nothing to learn from: −inf as a reward would make every parameter NaN.
            return value, Coefficients(model=c, score=finite_or_zero(value - c))
        with torch.enable_grad():  # a learned baseline needs its graph, wherever the coefficients are computed
            baseline = self._checked_baseline(value)
        advantage = value - baseline.detach().to(value.dtype)
        # ∂(−½ (L − β)²)/∂β = L − β: what the baseline's parameters get from the same backward.
        learned = ((baseline, finite_or_zero(advantage).unsqueeze(0)),)
        return value, Coefficients(model=c, score=finite_or_zero(advantage - c), extra=learned)

    def _checked_baseline(self, value: Tensor) -> Tensor:
        assert self.baseline is not None
        baseline = torch.as_tensor(self.baseline(), device=value.device)
        if baseline.shape not in (value.shape, ()):
            raise ValueError(
                f"expected the baseline to return shape {tuple(value.shape)} = (*batch), or a scalar; got "
                f"{tuple(baseline.shape)}. Drop axes of size 1 with squeeze(-1). Where iwbounds.accumulate splits the "
                "batch, every call is about a part of the data: make the baseline in the model that accumulate calls "
                "with that part, not from all of the data."
            )
        return baseline.expand_as(value)

    def update(self, value: Tensor) -> None:
        if isinstance(self.baseline, RunningMean):
            self.baseline.update(value)


@final
@dataclass(frozen=True)
class VIMCO(EvaluatedTogether):
    r"""The score-function gradient of any bound, with a leave-one-out baseline for each sample.

    .. math:: a_k = c_k, \qquad b_k = 0, \qquad s_k = (L - L_{-k}) - c_k

    :math:`L_{-k}` is the bound with :math:`\log w_k` replaced by the arithmetic mean of the other weights (for IWAE
    this is IWAE of the other K − 1) or by their geometric mean. Unbiased for every bound. O(K) time and memory where
    the bound has a closed form for it, O(K²) time otherwise. At K = 1 there are no others: :math:`L_{-k} = 0`.

    Args:
        geometric: replace by the geometric mean, as the paper does; arithmetic by default.

    Edge cases: where L or :math:`L_{-k}` is infinite (all other weights are zero) the score is 0.

    Reference: Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives, arXiv:1602.06725, eq. 7–10.

    >>> from iwbounds import IWAE
    >>> VIMCO().coefficients(IWAE(), torch.tensor([[0.0], [0.0]])).score.squeeze(1)
    tensor([-0.5000, -0.5000])
    """

    geometric: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.geometric, bool):
            raise TypeError(
                f"expected geometric to be True or False; got {self.geometric!r}. The bound and the number of samples "
                "are arguments of iwbounds.estimate."
            )

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        if log_w.shape[0] == 1:
            # L₋₁ of no others is taken as 0, which is the score function without a baseline.
            return ScoreFunction().evaluate(bound, log_w)
        bound = bound.frozen(log_w)
        # By what it computes, not by class: Renyi(0) and CIWAE(0) are the same function, and gain the same digits.
        if bound.power_mean == (1.0, 0.0):
            return self._of_iwae(bound, log_w)
        shifted = log_w - finite_maximum(log_w, 0)  # a difference of bounds: keep both small
        value, c, _ = bound.differentiate(shifted)
        advantage = value - bound.leave_one_out(shifted, self.geometric)
        return bound(log_w), Coefficients(model=c, score=_score(advantage - c, value.isneginf()))

    def _of_iwae(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        """L − L₋ₖ is −log(1 − w̃ₖ) + log(1 − 1/K), which keeps the digits that the difference loses at large K."""
        if served_by_kernel(log_w):
            from iwbounds.kernels.fused import fused_vimco

            found = fused_vimco(log_w, geometric=self.geometric)
            return found.value, Coefficients(model=found.model, score=found.score)
        w, log_rest, dead = weights_and_rest(log_w)
        if self.geometric:
            shifted = log_w - finite_maximum(log_w, 0)
            advantage = bound(shifted) - bound.leave_one_out(shifted, geometric=True)
        else:
            # log w̄ cancels: L₋ₖ − L = log(1 − w̃ₖ) − log(1 − 1/K).
            advantage = math.log1p(-1 / len(log_w)) - log_rest
        return bound(log_w), Coefficients(model=w, score=_score(advantage - w, dead))


def _score(raw: Tensor, dead: Tensor) -> Tensor:
    """0 for dead data, and where a baseline is infinite; NaN stays, in a datum with a NaN weight."""
    # Infinite where all others are dead: L₋ₖ is −inf, and no finite score has that expectation.
    return finite_or_zero(raw.masked_fill(dead, 0.0))


@final
@dataclass(frozen=True)
class OVIS(EvaluatedTogether):
    r"""The score-function gradient of IWAE with control variates that are optimal for many samples.

    .. math:: a_k = \tilde w_k, \qquad b_k = 0, \qquad
              s_k = -\log(1-\tilde w_k) - (1-\gamma)\,\tilde w_k + \gamma\log(1-\tfrac1K)

    γ = 0 is unbiased, and its signal-to-noise ratio grows with K. γ = 1 has less variance at low effective sample size;
    **its expectation is the gradient of the bound plus that of the wake-φ update**, which does not vanish with K.

    Args:
        gamma: in [0, 1].

    Edge cases: where all other weights are zero the score is 0.

    Raises:
        ValueError: ``gamma`` outside [0, 1]; a bound other than IWAE; fewer than two samples.

    Reference: Liévin, Dittadi, Christensen and Winther (2020), Optimal Variance Control of the Score Function Gradient
    Estimator for Importance Weighted Bounds, arXiv:2008.01998, eq. 10 and 13.

    >>> from iwbounds import IWAE
    >>> OVIS(0.0).coefficients(IWAE(), torch.zeros(2, 1)).score.squeeze(1)
    tensor([0.1931, 0.1931])
    """

    gamma: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", check_real("gamma", self.gamma, "0 is unbiased."))
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"expected gamma in [0, 1]; got {self.gamma}. 0 is unbiased.")

    def check(self, bound: Bound) -> None:
        from iwbounds.bounds.iwae import IWAE  # here, so that no chain of imports grows

        # The formula uses c = w̃; Renyi(0) is the same function, but says it in another class.
        if type(bound) is not IWAE:
            raise ValueError(f"{self!r} is derived for IWAE alone; got {bound!r}. Use VIMCO() for other bounds.")

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        self.check(bound)
        count = log_w.shape[0]
        if count < 2:
            raise ValueError(f"{self!r} needs at least 2 samples; got {count}. Use ScoreFunction() for one.")
        w, log_rest, dead = weights_and_rest(log_w)
        # −log(1 − w) − w: below .05 the two terms agree in all but the last digits, and its series is used.
        excess = torch.where(w < 0.05, _log1p_excess(w), -log_rest - w)
        score = excess + self.gamma * (w + math.log1p(-1 / count))
        return bound(log_w), Coefficients(model=w, score=_score(score, dead))


def _log1p_excess(w: Tensor) -> Tensor:
    """−log(1 − w) − w for small w, by its series: the difference would cancel."""
    return w * w * (1 / 2 + w * (1 / 3 + w * (1 / 4 + w * (1 / 5 + w * (1 / 6 + w * (1 / 7 + w / 8))))))
