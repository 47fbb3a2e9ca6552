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

from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds import IWAE, Bound
from iwbounds.checks import Latents
from iwbounds.gradients import DReG, Gradient, Reparameterized
from iwbounds.proposals.base import LogJoint, Proposal
from iwbounds.proposals.hierarchy import Hierarchy
from iwbounds.proposals.inner import InnerJoint
from iwbounds.proposals.joint import Joint
from iwbounds.proposals.mixing import Density, Sampler, as_mixing, has_density
from iwbounds.proposals.mixtures import Mixtures, SharedMixtures

__all__ = ["HierarchicalProposal"]


class HierarchicalProposal(Proposal):
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
            stay lower bounds. The gradient is then always the total derivative (leave ``estimate(gradient=None)``),
            because no score term may be dropped.
        reparameterized: whether z and ψ carry a path to their parameters: a boolean or a pair ``(z, psi)``. None: both,
            if the mixing distribution has ``rsample`` or is a bare callable; else neither, and gradients are
            score-function ones (:class:`iwbounds.VIMCO`). With discrete ψ and a conditional that has ``rsample``,
            ``(True, False)`` follows the path through z and has less variance.

    Raises:
        ValueError: a negative ``num_aux``; a reverse model, or a score-function gradient for ψ, with a mixing
            distribution that has no density; ``shared`` with a reverse model or without reparameterised samples; an
            inner gradient other than the two.

    Edge cases: a wake update (:class:`iwbounds.Wake`) trains mixing and conditional; it is not defined for a reverse
    model. ``estimate(proposal_bound=…)`` needs ``reverse=None``. Under ``torch.compile`` the inner rule is the outer
    one.

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
        z_live, psi_live = _pair(drawn.pathwise if reparameterized is None else reparameterized)
        hierarchy = Hierarchy(drawn, conditional, reverse, z_live, psi_live)
        self._num_aux = _checked_count(num_aux, 0)
        _check_parts(hierarchy, gradient, shared)
        super().__init__(_pair_sampler(hierarchy), _refuse_density, z_live and psi_live, "the hierarchical proposal")
        self._hierarchy, self._gradient, self._shared = hierarchy, gradient, shared

    @property
    def num_aux(self) -> int:
        """K."""
        return self._num_aux

    @property
    def has_reverse(self) -> bool:
        """Whether there is a reverse model τ other than the mixing distribution."""
        return self._hierarchy.reverse is not None

    def conditional(self, psi: Tensor) -> Density:
        """q(z | ψ)."""
        return self._hierarchy.conditional(psi)

    def rsample(self, sample_shape: tuple[int]) -> tuple[Tensor, Tensor]:
        """z and its own ψ, each ``(num_samples, *batch, *event)``; differentiable where they are reparameterised."""
        return self.sample(sample_shape)  # type: ignore[no-any-return]

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
        return self._hierarchy.with_auxiliary(z, psi, count)

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

    def check(self, gradient: Gradient, proposal_bound: Bound | None) -> None:
        """Refuse what the extended latent does not allow.

        Raises:
            ValueError: a wake gradient or a ``proposal_bound`` with a reverse model, whose parameters are in the
                extended log-joint too; with ``shared``, a pathwise gradient that drops a score term.
        """
        if self.has_reverse and not gradient.follows_bound:
            raise ValueError(f"{gradient!r} is not defined for a reverse model. Use reverse=None, or DReG().")
        if self.has_reverse and proposal_bound is not None:
            raise ValueError("proposal_bound needs reverse=None: a reverse model's parameters follow one bound only.")
        if self._shared and gradient.pathwise:
            raise ValueError(
                f"{gradient!r} drops a score term, or asks for a path that shared auxiliary variables carry already. "
                "With shared=True leave gradient=None: it is then the total derivative."
            )

    def extended(self, log_joint: LogJoint) -> tuple[LogJoint, Proposal]:
        """The ordinary proposal over an extended latent that the engine works on."""
        view = self._view()
        return view.log_joint(log_joint), Proposal(view.sample, view.log_prob, view.reparameterized, self.name)

    def _view(self) -> Mixtures | Joint:
        hierarchy, count = self._hierarchy, self._num_aux
        if hierarchy.reverse is None and hierarchy.psi_live:
            return (SharedMixtures if self._shared else Mixtures)(hierarchy, count)
        pathwise = hierarchy.z_live and hierarchy.psi_live
        if pathwise and count and not isinstance(self._gradient, Reparameterized):
            return InnerJoint(hierarchy, count)
        return Joint(hierarchy, count)


def _pair(reparameterized: bool | tuple[bool, bool]) -> tuple[bool, bool]:
    return (reparameterized, reparameterized) if isinstance(reparameterized, bool) else reparameterized


def _pair_sampler(hierarchy: Hierarchy) -> Callable[[tuple[int]], Latents]:
    def sample(sample_shape: tuple[int]) -> tuple[Tensor, Tensor]:
        if len(sample_shape) != 1:
            raise ValueError(f"expected sample_shape = (num_samples,); got {tuple(sample_shape)}.")
        return hierarchy.draw_pair(sample_shape[0])

    return sample


def _refuse_density(_: object) -> Any:
    raise TypeError(
        "the density of a hierarchical proposal is an integral without a closed form. Use log_prob_upper(z, psi) in a "
        "lower bound of log p(x), log_prob_lower(z) in an upper one, or pass the proposal to iwbounds.estimate."
    )


def _checked_count(num_aux: int | None, least: int) -> int:
    if num_aux is None:
        raise ValueError("expected num_aux, the number of auxiliary variables K; got None. 0 with a reverse is HVM.")
    if num_aux < least:
        raise ValueError(f"expected num_aux >= {least}; got {num_aux}.")
    return num_aux


def _check_parts(hierarchy: Hierarchy, gradient: Gradient | None, shared: bool) -> None:
    if not (gradient is None or isinstance(gradient, DReG | Reparameterized)):
        raise ValueError(
            f"expected the inner gradient to be None, DReG() or Reparameterized(); got {gradient!r}. It rules the "
            "reverse model alone; pass other estimators to estimate(gradient=…)."
        )
    needed = hierarchy.reverse is not None or not hierarchy.psi_live
    if needed and not has_density(hierarchy.mixing):
        raise ValueError(
            "expected mixing to have a density, which a reverse model and score-function gradients for psi need; got a "
            "bare sampler. Give it a log_prob (iwbounds.Proposal), or use reverse=None with reparameterised samples."
        )
    if shared and (hierarchy.reverse is not None or not (hierarchy.z_live and hierarchy.psi_live)):
        raise ValueError(
            "shared=True needs reverse=None and reparameterised z and psi, whose total derivative it takes."
        )
