r"""Hierarchical proposals, whose density is an integral: HVM, SIVI and IWHVI.

.. math:: q(z) = \int q(z\mid\psi)\,q(\psi)\,d\psi

With z's own ψ_0 and :math:`\psi_{1..K} \sim \tau(\psi\mid z)`, let
:math:`v_k = \log q(\psi_k) + \log q(z\mid\psi_k) - \log\tau(\psi_k\mid z)`. Then, in expectation over what is drawn,

.. math::
    U_K = \log\frac1{K+1}\sum_{k=0}^K e^{v_k} \;\ge\; \log q(z) \;\ge\; \Lambda_K = \log\frac1K\sum_{k=1}^K e^{v_k}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import check_log_joint
from iwbounds.gradients.base import Gradient
from iwbounds.gradients.reparameterized import DReG, Reparameterized
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal
from iwbounds.proposals.hierarchical.importance_weighted import ImportanceWeighted
from iwbounds.proposals.hierarchical.inner_gradient import InnerRule
from iwbounds.proposals.hierarchical.model import Density, Sampler, TwoLevelModel, as_mixing
from iwbounds.proposals.hierarchical.semi_implicit import Mixtures, SharedMixtures

__all__ = ["HierarchicalProposal"]


class HierarchicalProposal(ExtendedProposal):
    r"""A proposal :math:`q(z)=\int q(z\mid\psi)\,q(\psi)\,d\psi`, bounded from above and below to any tightness.

    Pass it to :func:`iwbounds.estimate` like any proposal: with M samples, the weights are
    :math:`w_m = p(x,z_m)/\exp U_K(z_m)`, each of expectation p(x). So the directions of all bounds hold as they are:
    IWAE of these weights is a lower bound of log p(x) (M-IWHVI), the jackknife of them has direction none, and so on.
    The log-joint receives z only. Three cases:

    * ``reverse=None``: SIVI, τ is the mixing distribution. U_K is loose where ψ has many dimensions.
    * ``num_aux=0`` with a reverse model: HVM.
    * both: IWHVI. Exact for any K where τ is q(ψ | z).

    Gradients: every estimator that is unbiased for a bound is so here, for the parameters of mixing, conditional,
    reverse model and log-joint. Without a reverse model the K + 1 mixing samples are the random parameters of a
    mixture over z: the mixing distribution needs samples, not a density. With one, the estimator acts on (z, ψ_0, …,
    ψ_K) as one latent.

    Args:
        mixing: q(ψ): a torch ``Distribution`` with z's batch shape (expand it), an :class:`iwbounds.Proposal`, or,
            without a reverse model, anything callable with ``(num_samples,)`` that returns ``(num_samples, *batch,
            *event)``.
        conditional: q(z | ψ): called with ψ of one or two leading sample axes, ``(…, *batch, *event)``; returns a
            ``Distribution`` (or an object with ``sample`` or ``rsample``, and ``log_prob``) over z.
        reverse: τ(ψ | z): called with z ``(num_samples, *batch, *event)``; returns a ``Distribution`` over ψ.
        num_aux: K, required: how many auxiliary variables are drawn for each z besides its own.
        gradient: the rule for the reverse model's parameters inside a pathwise ``estimate``. None and
            :class:`iwbounds.DReG`: the doubly reparameterised one (DIWHVI), where the outer estimator is DReG.
            :class:`iwbounds.Reparameterized`: none of its own; they follow the outer estimator. Under
            ``estimate(gradient=Reparameterized())`` both are the total derivative.
        shared: SIVI only: draw ψ_1..ψ_K once for all M samples, as its paper does, instead of K for each. Lower bounds
            stay lower bounds. The samples depend on each other: the gradient is the total derivative
            (:class:`iwbounds.Reparameterized`, the default), because no score term may be dropped.
        reparameterized: whether z and ψ carry a path to their parameters: a boolean or a pair ``(z, psi)``. None: both,
            if the mixing distribution has ``rsample`` or is a bare callable; else neither, and gradients are
            score-function ones (:class:`iwbounds.VIMCO`). With discrete ψ and a conditional that has ``rsample``,
            ``(True, False)`` follows the path through z and has less variance.

    Raises:
        ValueError: a negative ``num_aux``; a reverse model, or a score-function gradient for ψ, with a mixing
            distribution that has no density; ``shared`` with a reverse model or without reparameterised samples; an
            inner gradient other than the two.

    Edge cases: a wake update (:class:`iwbounds.Wake`) trains mixing and conditional. It and
    ``estimate(proposal_bound=…)`` need ``reverse=None`` and a reparameterised ψ: else parameters of the proposal sit in
    the extended log-joint too. Under ``torch.compile`` the inner rule is the outer one. With ``chunk_size``, z and its
    K + 1 auxiliary variables are drawn in blocks and drawn again in the backward, but for ``shared=True`` and for an
    :class:`iwbounds.Proposal` as mixing distribution that does not set ``samples_per_call``.

    References: Ranganath, Tran and Blei (2016), Hierarchical Variational Models, arXiv:1511.02386. Yin and Zhou (2018),
    Semi-Implicit Variational Inference, arXiv:1805.11183. Molchanov, Kharitonov, Sobolev and Vetrov (2019), Doubly
    Semi-Implicit Variational Inference, arXiv:1810.02789. Sobolev and Vetrov (2019), Importance Weighted Hierarchical
    Variational Inference, arXiv:1905.03290, theorem 1.

    >>> import torch
    >>> from torch.distributions import Normal
    >>> q = HierarchicalProposal(Normal(0.0, 1.0), lambda psi: Normal(psi, 1.0), lambda z: Normal(z / 2, 0.5**0.5), 3)
    >>> z, psi = q.rsample((4,))
    >>> torch.allclose(q.log_prob_upper(z, psi), Normal(0.0, 2**0.5).log_prob(z))
    True
    """

    def __init__(
        self,
        mixing: Distribution | Proposal | Sampler,
        conditional: Callable[[Tensor], Density],
        reverse: Callable[[Tensor], Density] | None = None,
        num_aux: int | None = None,
        gradient: Gradient | None = None,
        *,
        shared: bool = False,
        reparameterized: bool | tuple[bool, bool] | None = None,
    ) -> None:
        drawn = as_mixing(mixing)
        z, psi = _pair(drawn.pathwise if reparameterized is None else reparameterized)
        self._model = TwoLevelModel(drawn, conditional, reverse, z, psi)
        self._num_aux = _checked_count(num_aux, 0)
        _check_parts(self._model, gradient, shared)
        self._gradient, self._shared = gradient, shared
        self.name = "the hierarchical proposal"
        self.reparameterized = self.has_rsample = z and psi

    @property
    def num_aux(self) -> int:
        """K."""
        return self._num_aux

    @property
    def has_reverse(self) -> bool:
        """Whether there is a reverse model τ other than the mixing distribution."""
        return self._model.reverse is not None

    def conditional(self, psi: Tensor) -> Density:
        """q(z | ψ)."""
        return self._model.conditional(psi)

    def sample(self, sample_shape: tuple[int]) -> tuple[Tensor, Tensor]:
        """z and its own ψ, each ``(num_samples, *batch, *event)``; differentiable where they are reparameterised."""
        if len(sample_shape) != 1:
            raise ValueError(f"expected sample_shape = (num_samples,); got {tuple(sample_shape)}.")
        return self._model.draw_pair(sample_shape[0])

    rsample = sample

    def log_prob(self, _: object) -> Any:
        """Refused: the density is an integral, of which there are bounds."""
        raise TypeError(
            "the density of a hierarchical proposal is an integral without a closed form. Use log_prob_upper(z, psi) "
            "in a lower bound of log p(x), log_prob_lower(z) in an upper one, or pass the proposal to "
            "iwbounds.estimate."
        )

    def log_weights(self, z: Tensor, psi: Tensor | None = None, num_aux: int | None = None) -> Tensor:
        r"""Log-weights v of auxiliary variables, of which any bound estimates log q(z).

        Args:
            z: ``(num_samples, *batch, *event)``.
            psi: z's own ψ, put in front: any lower bound of weights that contain it is none of log q(z); their
                log-mean-exp is an upper bound. None: a bound of the weights is for log q(z) what it is for log p(x).
            num_aux: K, the proposal's own by default.

        Returns:
            v, ``(K or K + 1, num_samples, *batch)`` nats. A jackknife of v, say, removes the bias of the order 1/K of
            either side, and is no bound (direction none).
        """
        count = self._num_aux if num_aux is None else _checked_count(num_aux, 0)
        if psi is None and count == 0:
            raise ValueError(
                "a lower bound of log q(z) needs at least 1 auxiliary variable; got num_aux = 0. Raise it."
            )
        drawn = [] if psi is None else [psi.unsqueeze(0)]
        if count:
            drawn.append(self._model.draw_auxiliary(z, count))
        return self._model.log_weights(z, torch.cat(drawn))

    def log_prob_upper(self, z: Tensor, psi: Tensor, num_aux: int | None = None) -> Tensor:
        r"""Upper bound of log q(z), in expectation over ψ given z, for pairs that the proposal drew.

        .. math:: U_K = \log\frac1{K+1}\sum_{k=0}^K e^{v_k}

        Direction: upper, non-increasing in K. Inside a *lower* bound of log p(x) this is the side to take.
        Differentiable as it stands: its gradient is its derivative, through ψ_1..ψ_K too.

        Args:
            z, psi: a pair from :meth:`rsample`, ψ being z's own; any other ψ gives no bound.
            num_aux: K, the proposal's own by default; 0 needs no further draws.

        Returns:
            ``(num_samples, *batch)`` nats, in at least float32.

        Reference: Sobolev and Vetrov (2019), arXiv:1905.03290, eq. 6.
        """
        return IWAE()(self.log_weights(z, psi, num_aux))

    def log_prob_lower(self, z: Tensor, num_aux: int | None = None) -> Tensor:
        r"""Lower bound of log q(z), in expectation, for any z: IWAE of ψ.

        .. math:: \Lambda_K = \log\frac1K\sum_{k=1}^K e^{v_k}

        Direction: lower, non-decreasing in K; its exponential is unbiased for q(z).

        Args:
            z: ``(num_samples, *batch, *event)``, from anywhere.
            num_aux: K, the proposal's own by default.

        Returns:
            ``(num_samples, *batch)`` nats, in at least float32.

        Raises:
            ValueError: K = 0.
        """
        return IWAE()(self.log_weights(z, None, num_aux))

    def extend(self, log_joint: LogJoint) -> tuple[LogJoint, Proposal]:
        """The log-joint of z and its auxiliary variables, and the ordinary proposal that draws them."""
        return self._view().extend(log_joint, self.name)

    def posterior_log_weights(self, log_joint: LogJoint, z: Tensor) -> Tensor:
        """log p(x, z) minus a lower bound of log q(z): ψ_0..ψ_K are all drawn by the reverse model."""
        # A draw of the posterior has no ψ of its own: K + 1 of τ's, as many as the proposal's draws have.
        log_q = self.log_prob_lower(z, self._num_aux + 1)
        return check_log_joint(log_joint(z), log_q) - log_q

    def _view(self) -> Mixtures | SharedMixtures | ImportanceWeighted | InnerRule:
        model, count = self._model, self._num_aux
        # SIVI: ψ enters as parameters of a mixture over z, and needs neither a density nor a score.
        if model.reverse is None and model.psi_has_path:
            return SharedMixtures(model, count) if self._shared else Mixtures(model, count)
        # Split only if there is a ψ_k with k ≥ 1: z's own ψ keeps its score term (DIWHVI).
        split = model.z_has_path and model.psi_has_path and count and not isinstance(self._gradient, Reparameterized)
        # Without gradients there is no path to split; and a tracer cannot follow how it is done.
        if split and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return InnerRule(model, count)
        return ImportanceWeighted(model, count)


def _pair(reparameterized: bool | tuple[bool, bool]) -> tuple[bool, bool]:
    return (reparameterized, reparameterized) if isinstance(reparameterized, bool) else reparameterized


def _checked_count(num_aux: int | None, least: int) -> int:
    if num_aux is None:
        raise ValueError("expected num_aux, the number of auxiliary variables K; got None. 0 with a reverse is HVM.")
    if num_aux < least:
        raise ValueError(f"expected num_aux >= {least}; got {num_aux}.")
    return num_aux


def _check_parts(model: TwoLevelModel, gradient: Gradient | None, shared: bool) -> None:
    if not (gradient is None or isinstance(gradient, DReG | Reparameterized)):
        raise ValueError(
            f"expected the inner gradient to be None, DReG() or Reparameterized(); got {gradient!r}. It rules the "
            "reverse model alone; pass other estimators to estimate(gradient=…)."
        )
    # log q(ψ) drops out only where it is divided by itself and no score of ψ is asked for.
    needed = model.reverse is not None or not model.psi_has_path
    if needed and not model.has_density:
        raise ValueError(
            "expected mixing to have a density, which a reverse model and score-function gradients for psi need; got a "
            "bare sampler. Give it a log_prob (iwbounds.Proposal), or use reverse=None with reparameterised samples."
        )
    if shared and (model.reverse is not None or not (model.z_has_path and model.psi_has_path)):
        raise ValueError(
            "shared=True needs reverse=None and reparameterised z and psi, whose total derivative it takes."
        )
