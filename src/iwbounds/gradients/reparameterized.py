"""Pathwise estimators: the total derivative, sticking the landing, and doubly reparameterised gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from iwbounds.bounds.base import Bound
from iwbounds.gradients.base import Coefficients, EvaluatedTogether, Gradient

__all__ = ["STL", "DReG", "DoublyReparameterized", "Reparameterized", "refuse_jumps"]


@final
@dataclass(frozen=True)
class Reparameterized(EvaluatedTogether):
    r"""The reparameterised gradient: the total derivative of the bound.

    .. math:: a_k = c_k, \qquad b_k = c_k, \qquad s_k = -c_k

    Unbiased for every bound, for model and proposal parameters, whatever the proposal's support does and however the
    samples depend on each other. The proposal's signal-to-noise ratio falls as
    :math:`K^{-1/2}` for IWAE (Rainforth et al. 2018, arXiv:1802.04537); see :class:`DReG`.

    With the control variate the mean coefficient is taken off the score,

    .. math:: s_k = -c_k + \frac1K\sum_j c_j = -c_k + \frac1K,

    which adds :math:`\frac1K\sum_k \partial_\phi \log q(z_k)`, of mean zero. It needs neither independent draws nor a
    smooth bound, only a fixed support, and has no variance where q is the posterior. It is the less noisy choice near
    the posterior, and the best there is for quasi-random draws; for the ELBO it is :class:`STL`.

    Args:
        control_variate: whether to take it. Each draw must then be one of q marginally.

    References: Kingma and Welling (2013), arXiv:1312.6114, section 2.4. The score as a control variate: Roeder, Wu and
    Duvenaud (2017), arXiv:1703.09194, section 5.

    >>> import torch
    >>> from iwbounds import ELBO
    >>> Reparameterized().coefficients(ELBO(), torch.zeros(2, 1)).score.squeeze(1)
    tensor([-0.5000, -0.5000])
    """

    control_variate: bool = False
    # The total derivative is right for whatever is drawn together, also under a moving support: see the properties.
    pathwise = True
    path_is_model = True
    needs_independence = False

    def __post_init__(self) -> None:
        if not isinstance(self.control_variate, bool):
            raise TypeError(
                f"expected control_variate to be True or False; got {self.control_variate!r}. The bound and the number "
                "of samples are arguments of iwbounds.estimate."
            )

    @property
    def total(self) -> bool:  # type: ignore[override]
        """Without the control variate."""
        return not self.control_variate

    def __repr__(self) -> str:
        return "Reparameterized(control_variate=True)" if self.control_variate else "Reparameterized()"

    @property
    def needs_fixed_support(self) -> bool:  # type: ignore[override]
        """With the control variate: a support that moves gives the score a mean."""
        return self.control_variate

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        # h is not asked for: for a bound without a closed form that would be a backward per sample.
        value, c, _ = bound.differentiate(log_w)
        # The mean of c is 1/K for a shift-equivariant bound, and 0 for a datum whose bound is −inf.
        return value, Coefficients(model=c, path=c, score=c.mean(0) - c if self.control_variate else -c)

    def bounded_ratio(self, bound: Bound) -> bool:  # noqa: ARG002
        return True


@final
@dataclass(frozen=True)
class STL(EvaluatedTogether):
    r"""Sticking the landing: the reparameterised gradient without its score term.

    .. math:: a_k = c_k, \qquad b_k = c_k, \qquad s_k = 0

    Unbiased for the proposal where c is constant (the ELBO; K = 1), and then of zero variance at q = p(z|x).
    **Biased for IWAE with K > 1**; use :class:`DReG` there. Unbiased for the model always.

    Reference: Roeder, Wu and Duvenaud (2017), Sticking the Landing, arXiv:1703.09194, eq. 8.

    >>> import torch
    >>> from iwbounds import ELBO
    >>> STL().coefficients(ELBO(), torch.zeros(2, 1)).score is None
    True
    """

    pathwise = True
    path_is_model = True

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        # No score at all: that it vanishes in expectation is proved for constant c alone, hence the bias for IWAE.
        value, c, _ = bound.differentiate(log_w)
        return value, Coefficients(model=c, path=c)

    def bounded_ratio(self, bound: Bound) -> bool:  # noqa: ARG002
        return True


class DoublyReparameterized(EvaluatedTogether):
    """The c − h rule for model and path, which :class:`DReG` is, and :class:`iwbounds.GDReG` extends to the prior."""

    pathwise = True

    def check(self, bound: Bound) -> None:
        refuse_jumps(self, bound)

    def evaluate(self, bound: Bound, log_w: Tensor) -> tuple[Tensor, Coefficients]:
        self.check(bound)
        # c − h from the bound, not c less h: w̃² for IWAE, which a difference of numbers near 1 would lose.
        value, c, c_minus_h = bound.differentiate(log_w, path=True)
        return value, Coefficients(model=c, path=c_minus_h)

    def bounded_ratio(self, bound: Bound) -> bool:
        # b/a = (c − h)/c: where the bound keeps that finite, one gate in front of both densities can multiply by it.
        return bound.bounded_ratio


@final
@dataclass(frozen=True)
class DReG(DoublyReparameterized):
    r"""Doubly reparameterised gradient of *any* smooth bound, by the c − h rule.

    .. math:: a_k = c_k, \qquad b_k = c_k - h_k, \qquad s_k = 0

    The score term of the reparameterised gradient has the expectation :math:`-E[c_k\,\partial_\phi \log q(z_k)]`. As
    :math:`c_k` depends on :math:`z_k` through :math:`\log w_k` alone, reparameterising it once more turns it into
    :math:`-E[h_k \cdot \text{path}_k]`. Special cases: :math:`\tilde w_k^2` for IWAE,
    :math:`\alpha v_k+(1-\alpha)v_k^2` for Rényi, 1/K (which is STL) for the ELBO.

    Unbiased wherever c is absolutely continuous in each log-weight. Lowers the variance near the optimum and keeps the
    signal-to-noise ratio from falling with K; it is *not* less noisy everywhere.

    Raises:
        ValueError: the bound says ``smooth = False``; its gradient jumps, h misses the jump, and the rule is wrong.

    References: Tucker, Lawson, Gu and Maddison (2019), Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives, arXiv:1810.04152, eq. 7; Daudel et al. (2023), arXiv:2210.06226, theorem 1, for Rényi.

    >>> import torch
    >>> from iwbounds import ELBO
    >>> DReG().coefficients(ELBO(), torch.zeros(2, 1)).path.squeeze(1)
    tensor([0.5000, 0.5000])
    """


def refuse_jumps(gradient: Gradient, bound: Bound) -> None:
    """Raise where ``bound`` is not smooth, so that the c − h rule would be wrong."""
    if not bound.smooth:
        raise ValueError(
            f"{gradient!r} needs a bound whose gradient is continuous in every log-weight; {bound!r} says "
            "smooth = False: its gradient jumps, and the second derivative misses the jump. Use "
            "gradient=Reparameterized() instead."
        )
