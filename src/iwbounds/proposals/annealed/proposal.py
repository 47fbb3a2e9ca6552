r"""A chain from a simple proposal to the posterior, as an ordinary proposal over its whole path.

.. math:: s = (z_0,\dots,z_T), \qquad Q(s) = q(z_0)\prod_k F_k(z_{k+1}\mid z_k), \qquad
          P(s) = p(x,z_T)\prod_k B_k(z_k\mid z_{k+1})

Whatever the backward kernels B are, they integrate to one, so :math:`E_Q[P/Q] = p(x)`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from iwbounds.checks import Latents, check_whole_number
from iwbounds.proposals.annealed.adaptation import AnnealingReport, even_schedule, pilot, report
from iwbounds.proposals.annealed.bridge import Bridge
from iwbounds.proposals.annealed.hmc import HMC
from iwbounds.proposals.annealed.schedule import Schedule, betas_of
from iwbounds.proposals.annealed.transition import Path, Transition
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal
from iwbounds.proposals.distributions import as_proposal
from iwbounds.proposals.hierarchical.model import outside_checkpoints

__all__ = ["AnnealedProposal"]


class AnnealedProposal(ExtendedProposal):
    r"""T transitions from an initial proposal towards the posterior; the whole path is the latent.

    .. math:: w = \frac{P(s)}{Q(s)} = \frac{p(x,z_T)\prod_k B_k(z_k\mid z_{k+1})}
                                         {q(z_0)\prod_k F_k(z_{k+1}\mid z_k)}, \qquad E_Q[w] = p(x)

    Pass it to :func:`iwbounds.estimate` like any proposal: every bound keeps its direction, and the expectations of
    ``estimate.expectation`` are those of z_T. The log-joint receives z_T only. Sampling needs its slopes: it is called
    T + 1 times, each time with gradients enabled (values work under ``torch.no_grad()``), and must be twice
    differentiable where anything on the path is learned.

    Gradients: the default is :class:`iwbounds.DReG` on the whole path (:class:`iwbounds.Reparameterized` for
    :class:`DAIS`): path coefficient c − h, and c for everything explicit in log P, which is the model's parameters, and
    those of q, δ, β and the network inside the backward kernels. Parameters of the model sit in the proposal too, so
    ``proposal_bound`` and the wake updates are refused: they would treat the two apart. Metropolis steps
    (:class:`HMC`) have no gradient.

    Memory: that of one state for values; for gradients that of the whole path. :func:`iwbounds.accumulate` with few
    live samples draws paths in blocks of 16 or more, twice, and holds the graph of one block;
    ``estimate(chunk_size=…)`` keeps the graph of all.

    Warm start: first fit ``initial`` alone by the ELBO, then train the whole chain from there.

    Args:
        initial: q(z_0): a torch ``Distribution`` with ``rsample`` whose support is all of R^d, or an
            :class:`iwbounds.Proposal` of one tensor. Its batch shape is the data's.
        transition: :class:`ULA`, :class:`MCD`, :class:`CMCD`, :class:`DAIS` or :class:`HMC`.
        num_steps: T, 1 or more.
        schedule: β_0 = 0, …, β_T = 1: T + 1 numbers, a tensor ``(T + 1,)`` or ``(T + 1, *batch)``, or a callable
            without arguments that returns one (:class:`iwbounds.proposals.LearnedSchedule`). None: linear. Transition k
            uses the middle of β_k and β_{k+1}; AIS uses them as they are.

    Raises:
        TypeError: a proposal that extends the latent, or another transition.
        ValueError: a bounded or discrete support, a density that recognises its samples, T below 1, a schedule of
            another length; :class:`iwbounds.HMC` where something requires grad.

    References: Neal (2001), Annealed Importance Sampling, arXiv:physics/9803008, and those of the transitions.

    >>> from torch.distributions import Normal
    >>> import iwbounds as iw
    >>> log_joint = lambda z: Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0))  # −1.5155
    >>> chain = AnnealedProposal(Normal(0.0, 1.0), iw.ULA(0.2), num_steps=16)
    >>> bool(iw.estimate(log_joint, chain, iw.ELBO(), num_samples=2000).value < -1.5155)
    True
    """

    def __init__(
        self,
        initial: Distribution | Proposal,
        transition: Transition,
        num_steps: int,
        schedule: Schedule | None = None,
    ) -> None:
        self._initial = _checked_initial(initial)
        _check_transition(transition)
        self.num_steps = check_whole_number("num_steps", num_steps, 1, "Make at least 1 transition.")
        transition.check_betas(betas_of(schedule, self.num_steps))
        self.initial, self.transition, self.schedule = initial, transition, schedule
        # A chain is a differentiable function of its noise only if its start and every move are.
        self.has_rsample = self._initial.pathwise and transition.reparameterized
        self.name = f"the annealed proposal ({type(transition).__name__})"

    def extend(self, log_joint: LogJoint) -> tuple[LogJoint, Proposal]:
        """The log-joint of the whole path, and the ordinary proposal that draws it."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "an annealed proposal takes derivatives of log_joint inside the forward, which torch.compile cannot "
                "trace into one graph. Compile the model's modules instead."
            )
        if torch.is_inference_mode_enabled():
            # enable_grad does not switch inference mode off, and the tensors made in it can never be differentiated.
            raise RuntimeError(
                "an annealed proposal takes derivatives of log_joint even for values, which torch.inference_mode() "
                "rules out. Use torch.no_grad() instead."
            )
        bridge = self._bridge(log_joint)

        def sample(shape: tuple[int]) -> Path:
            # Slopes are taken inside: under a checkpoint, each would make all the chain before it anew.
            with outside_checkpoints():
                return self.transition.forward(bridge, shape[0])

        proposal = Proposal(
            sample,
            _log_prob,
            Path(None, self.has_rsample, None, None),
            self.name,
            self._paths_per_call(),
            independent=self._initial.independent,
            total_derivative_only=self.transition.total_derivative_only,
            # Of Metropolis steps nothing is differentiated but the model at the last state, apart from all else.
            joint_has_parameters=self.transition.reparameterized,
            batch_shape=self._initial.batch_shape,
            visible=_last_state,
        )
        return _log_joint, proposal

    def _paths_per_call(self) -> int | None:
        """As many paths as have the elements that the initial proposal draws in one call."""
        of_start = self._initial.samples_per_call
        # A path has T + 1 states in its graph, so that many fewer of them fit where one draw did.
        return None if of_start is None else max(16, of_start // (self.num_steps + 1) // 16 * 16)

    def posterior_log_weights(self, log_joint: LogJoint, z: Latents) -> Tensor:
        """Log-weights of paths that are run backwards from draws z of p(z | x): see :func:`iwbounds.upper_bound`."""
        return self.transition.backward(self._bridge(log_joint), z)

    def adapted(
        self,
        log_joint: LogJoint,
        num_samples: int = 32,
        target_acceptance: float = 0.9,
        adapt_schedule: bool = True,
    ) -> AnnealedProposal:
        """The same proposal with step sizes, one for each move and datum, and a schedule from a pilot run; frozen.

        The pilot run is made of chains of its own, which are thrown away; so the weights of the proposal returned are
        unbiased. Call it once for the data at hand (inside the ``model`` of :func:`iwbounds.evaluate`, once a batch).
        The schedule makes the conditional effective sample size of all steps the same, to second order, on the average
        over the data.

        Args:
            log_joint: as in :func:`iwbounds.estimate`.
            num_samples: chains of the pilot run, for each datum.
            target_acceptance: mean probability with which a move is to be accepted, in (0, 1).
            adapt_schedule: whether to choose β, by two more pilot runs.

        Returns:
            A new proposal; this one is left as it is.

        Raises:
            TypeError: the transition is not :class:`HMC`: the others are learned.
            ValueError: fewer than 2 chains, or a target outside (0, 1).
        """
        transition = self._hmc("adapted")
        check_whole_number("num_samples", num_samples, 2, "A spread needs 2 chains or more; take 32.")
        if not 0 < target_acceptance < 1:
            raise ValueError(f"expected target_acceptance in (0, 1); got {target_acceptance}. Try 0.9.")
        bridge = self._bridge(log_joint)
        if adapt_schedule and bridge.betas.ndim > 1:
            raise ValueError(
                "expected one schedule for all data to adapt; got one for each. Pass adapt_schedule=False."
            )
        # Twice: a first schedule may pass by all that happens within its first step.
        for _ in range(2 if adapt_schedule else 0):
            _, spreads = pilot(transition, bridge, num_samples, target_acceptance)
            bridge = replace(bridge, betas=even_schedule(bridge.betas, spreads))
        # Once more, under the schedule that will be used: step sizes fit the β that they were adapted at.
        sizes, _ = pilot(transition, bridge, num_samples, target_acceptance)
        frozen = HMC(sizes, transition.num_leapfrogs, transition.model_gradient)
        return AnnealedProposal(self.initial, frozen, self.num_steps, bridge.betas)

    def report(self, log_joint: LogJoint, num_samples: int = 32) -> AnnealingReport:
        """A run of annealed importance sampling: weights, last states, acceptance and conditional ESS of each step.

        Raises:
            TypeError: the transition is not :class:`HMC`.
        """
        return report(self._hmc("report"), self._bridge(log_joint), num_samples)

    def _hmc(self, method: str) -> HMC:
        if not isinstance(self.transition, HMC):
            raise TypeError(
                f"expected an annealed proposal with iwbounds.HMC for {method}(); got {self.transition!r}, which has "
                "no accept steps. Learn its step sizes and schedule instead: tensors that require grad."
            )
        return self.transition

    def _bridge(self, log_joint: LogJoint) -> Bridge:
        return Bridge(log_joint, self._initial, self.num_steps, betas_of(self.schedule, self.num_steps))

    def __repr__(self) -> str:
        return f"AnnealedProposal({self.initial!r}, {self.transition!r}, num_steps={self.num_steps})"


def _log_joint(path: Path) -> Tensor:
    """log P − log Q of the path; explicit parameters of log P get the model's coefficient."""
    # log_p is zero in value: it only hands the explicit parameters of log P to the model's channel.
    joint: Tensor = path.log_w + path.log_p
    return joint


def _log_prob(path: Path) -> Path:
    """Zero: log Q is in the log-weight already. Its explicit parameters get the score's coefficient."""
    # In the place of log_w, the one part with a path, whose log-density the engine asks for.
    return Path(None, path.log_q, None, None)


def _last_state(path: Path) -> Tensor | None:
    return path.z


def _checked_initial(initial: object) -> Proposal:
    found = as_proposal(initial)
    if not isinstance(found, Proposal):
        raise TypeError(
            f"expected the initial proposal to be a torch Distribution or an iwbounds.Proposal; got "
            f"{type(found).__name__}, whose density is that of more than z. Anneal from one draw of one density."
        )
    # The density of q is part of every π_β: it is evaluated all along the chain, far from its own draws.
    if found.needs_own_samples or not isinstance(found.reparameterized, bool):
        raise ValueError(
            f"expected an initial proposal of one tensor whose density can be evaluated anywhere, as the chain leaves "
            f"its draws; got {found.name}. Stack mixed latents, and use transforms without a cache."
        )
    if isinstance(initial, Distribution):
        _check_support(initial)
    return found


def _check_transition(transition: object) -> None:
    if not isinstance(transition, Transition):
        made = f" Make an instance of it: {transition.__name__}(…)." if isinstance(transition, type) else ""
        raise TypeError(
            "expected a transition, such as iwbounds.ULA(0.05); got "
            f"{getattr(transition, '__name__', type(transition).__name__)}.{made}"
        )


def _check_support(initial: Distribution) -> None:
    try:
        support: Any = initial.support
    except NotImplementedError:  # many classes of others say nothing
        return
    while hasattr(support, "base_constraint"):  # independent, or that of a mixture
        support = support.base_constraint
    if support is None or isinstance(support, type(constraints.real) | type(constraints.real_vector)):
        return
    raise ValueError(
        f"expected an initial proposal on all of R^d, as a chain moves anywhere; got {type(initial).__name__} with "
        f"support {support}. Sample an unconstrained z (the logarithm of a positive parameter), transform it inside "
        "log_joint, and add the Jacobian's log-determinant there."
    )
