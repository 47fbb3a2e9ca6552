"""Unadjusted Langevin annealing: the chain with nothing to learn but its steps and its start."""

from __future__ import annotations

from typing import final

from iwbounds.proposals.annealed.langevin import Langevin

__all__ = ["ULA"]


@final
class ULA(Langevin):
    r"""Unadjusted Langevin steps in both directions.

    .. math::
        F_k(z_{k+1}\mid z_k) = N(z_k + \delta\nabla\log\pi_k(z_k),\, 2\delta), \qquad
        B_k(z_k\mid z_{k+1}) = N(z_{k+1} + \delta\nabla\log\pi_k(z_{k+1}),\, 2\delta)

    The time reversal of F is approximated by F itself. The weights of the path are exact whatever the step size, and
    their bounds hold; too large a step, or a β that moves faster than the chain follows, costs tightness only.

    Args:
        step_size: δ: a positive number; a tensor that broadcasts over the latents, such as one number per dimension;
            or a callable from the step 0..T−1 to one of these (:class:`iwbounds.proposals.LearnedStepSize`). Tensors
            that require grad are learned.

    Raises:
        ValueError, TypeError: a step size that is not positive, or of another kind.

    Reference: Wu, Köhler and Noé (2020), Stochastic Normalizing Flows, arXiv:2002.06707; Thin et al. (2021), Monte
    Carlo Variational Auto-Encoders, arXiv:2106.15921, section 3.

    >>> import torch, iwbounds as iw
    >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> chain = iw.AnnealedProposal(q, ULA(0.1), num_steps=8)
    >>> iw.estimate(lambda z: -2 * (z - 1) ** 2, chain, num_samples=5).value.shape
    torch.Size([3])
    """

    def __repr__(self) -> str:
        return "ULA()"
