"""Differentiable annealed importance sampling: leapfrog steps with momentum, and no accept step."""

from __future__ import annotations

from typing import final

from torch import Tensor

from iwbounds.checks import check_log_joint, check_log_q
from iwbounds.proposals.annealed.bridge import Bridge, standard_normal_like, sum_event
from iwbounds.proposals.annealed.schedule import StepSize, check_positive, number_at
from iwbounds.proposals.annealed.transition import Path, Transition
from iwbounds.proposals.graph import gradient_only

__all__ = ["DAIS"]


@final
class DAIS(Transition):
    r"""Leapfrog steps on :math:`\pi_k`, with the momentum partly renewed after each.

    .. math::
        \hat z = z + \tfrac\eta2 v, \quad \hat v = v + \eta\nabla\log\pi_k(\hat z), \quad z \leftarrow \hat z +
        \tfrac\eta2 \hat v, \quad v \leftarrow \gamma\hat v + \sqrt{1-\gamma^2}\,\epsilon

    .. math:: \log w = \log p(x,z_T) - \log q(z_0) + \sum_k \log N(\hat v_k; 0, I) - \log N(v_{k-1}; 0, I)

    Leapfrog steps keep volume and can be run backwards, so the weights are exact: E[w] = p(x). Momentum carries the
    chain further than Langevin noise at the same number of gradients, without anything to learn but η, γ, β and the
    initial proposal.

    A path is a deterministic function of z_0 and the refreshed momenta: it has no density at which parameters could be
    held fixed, and :class:`iwbounds.Reparameterized`, its default, is the one estimator that is right.

    Args:
        step_size: η: a positive number, a tensor that broadcasts over the latents, or a callable from the step to one.
        damping: γ in [0, 1): how much momentum is kept, in the same forms.

    Raises:
        ValueError, TypeError: numbers out of range, or of another kind.

    References: Zhang, Hsu, Li, Finn and Grosse (2021), Differentiable Annealed Importance Sampling and the Perils of
    Gradient Noise, arXiv:2107.10211; Geffner and Domke (2021), MCMC Variational Inference via Uncorrected Hamiltonian
    Annealing, arXiv:2107.04150.

    >>> import torch, iwbounds as iw
    >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> chain = iw.AnnealedProposal(q, DAIS(0.2), num_steps=8)
    >>> iw.estimate(lambda z: -2 * (z - 1) ** 2, chain, num_samples=5).value.shape
    torch.Size([3])
    """

    total_derivative_only = True

    def __init__(self, step_size: StepSize, damping: StepSize = 0.9) -> None:
        check_positive("step_size", step_size)
        if damping != 0.0 or isinstance(damping, bool):
            check_positive("damping", damping)
        if isinstance(damping, int | float) and damping >= 1:
            raise ValueError(f"expected damping in [0, 1); got {damping}. At 1, no noise would be left.")
        self.step_size, self.damping = step_size, damping

    def forward(self, bridge: Bridge, num_samples: int) -> Path:
        z = bridge.start(num_samples)
        # In the total graph throughout: there is one derivative, and nothing to take apart.
        # log p is not asked for at z_0: slopes are taken half way through the leaps, and the value at the end.
        log_w = -check_log_q(bridge.initial.log_prob(z), z, bridge.initial.batch_shape)
        v = standard_normal_like(z)
        for step in range(bridge.num_steps):
            size = bridge.size(self.step_size, step, z)
            z, after = self._leap(bridge, z, v, size, step, log_w)
            log_w = log_w - 0.5 * sum_event(after.square() - v.square(), log_w)
            # Not after the last step: it would be refreshed for nothing.
            v = self._refreshed(after, step) if step + 1 < bridge.num_steps else after
        log_w = log_w + check_log_joint(bridge.log_joint(z), log_w)
        # In P and in Q alike: it cancels from the total derivative, and an estimator that holds the path fixed meets
        # parameters in Q and is refused.
        explicit = gradient_only(log_w)
        return Path(z.detach(), log_w, explicit, explicit)

    def backward(self, bridge: Bridge, z: Tensor) -> Tensor:
        # log q is asked for first because its shape tells the batch from the event.
        log_q = check_log_q(bridge.initial.log_prob(z), z, bridge.initial.batch_shape)
        log_w = check_log_joint(bridge.log_joint(z), log_q)
        after = standard_normal_like(z)
        for step in reversed(range(bridge.num_steps)):
            # A leapfrog step is its own inverse up to the sign of the momentum.
            z, before = self._leap(bridge, z, -after, bridge.size(self.step_size, step, z), step, log_w)
            log_w = log_w - 0.5 * sum_event(after.square() - before.square(), log_w)
            after = self._refreshed(-before, step - 1) if step else before
        return log_w - check_log_q(bridge.initial.log_prob(z), z, bridge.initial.batch_shape)

    def _leap(
        self, bridge: Bridge, z: Tensor, v: Tensor, size: Tensor, step: int, log_density: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Half a step of z, one of v, and the other half of z."""
        z = z + size / 2 * v
        v = v + size * bridge.at(z).live.slope(bridge.beta(step, z, log_density))
        return z + size / 2 * v, v

    def _refreshed(self, v: Tensor, step: int) -> Tensor:
        """The same in both directions: it leaves N(0, I) invariant, and is reversible."""
        kept = number_at("damping", self.damping, step, v)
        return kept * v + (1 - kept.square()).sqrt() * standard_normal_like(v)

    def __repr__(self) -> str:
        return "DAIS()"
