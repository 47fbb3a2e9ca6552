r"""Wake updates of the proposal: towards the posterior from the side of KL(p‖q)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from iwbounds.bounds.base import Bound
from iwbounds.gradients.base import Coefficients, EvaluatedTogether
from iwbounds.gradients.reparameterized import refuse_jumps
from iwbounds.logspace.mean import normalized_weights

__all__ = ["DReGWake", "Wake"]


@final
@dataclass(frozen=True)
class Wake(EvaluatedTogether):
    r"""Reweighted wake-sleep: the model ascends the bound, the proposal descends KL(p(z|x)‖q).

    .. math:: a_k = c_k, \qquad b_k = 0, \qquad s_k = \tilde w_k

    The proposal's update is a self-normalised estimate of :math:`E_{p(z|x)}[\partial_\phi \log q(z)]`: biased by
    O(1/K), and *not* the gradient of the bound. Works for any proposal, discrete ones included.

    Reference: Bornschein and Bengio (2015), Reweighted Wake-Sleep, arXiv:1406.2751, eq. 11; Le, Kosiorek, Siddharth,
    Teh and Wood (2020), Revisiting Reweighted Wake-Sleep, arXiv:1805.10469.

    >>> import torch
    >>> from iwbounds import IWAE
    >>> Wake().coefficients(IWAE(), torch.zeros(2, 1)).score.squeeze(1)
    tensor([0.5000, 0.5000])
    """

    follows_bound = False
    needs_independence = False

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        value, c, _ = bound.differentiate(log_w)
        # w̃ whatever the bound is: the wake update follows KL(p‖q), and only the model follows the bound.
        return value, Coefficients(model=c, score=normalized_weights(log_w))


@final
@dataclass(frozen=True)
class DReGWake(EvaluatedTogether):
    r"""The wake-φ update of :class:`Wake`, doubly reparameterised.

    .. math:: a_k = c_k, \qquad b_k = \tilde w_k - \tilde w_k^2, \qquad s_k = 0

    The same expectation as :class:`Wake` for the proposal, through the samples.

    Raises:
        ValueError: the bound says ``smooth = False``.

    Reference: Tucker, Lawson, Gu and Maddison (2019), arXiv:1810.04152, section 5.1.

    >>> import torch
    >>> from iwbounds import IWAE
    >>> DReGWake().coefficients(IWAE(), torch.zeros(2, 1)).path.squeeze(1)
    tensor([0.2500, 0.2500])
    """

    pathwise = True
    follows_bound = False

    def check(self, bound: Bound) -> None:
        refuse_jumps(self, bound)

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        # The model's channel is c, right for any bound; it is the path that must not jump.
        self.check(bound)
        value, c, _ = bound.differentiate(log_w)
        # ∂w̃/∂log w = w̃ (1 − w̃): the score w̃ of Wake, reparameterised once more.
        w = normalized_weights(log_w)
        return value, Coefficients(model=c, path=w - w * w)
