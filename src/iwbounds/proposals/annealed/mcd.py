"""Monte Carlo diffusion: Langevin steps, and a network that learns to walk them back."""

from __future__ import annotations

from typing import final

from torch import Tensor

from iwbounds.proposals.annealed.langevin import Networked

__all__ = ["MCD"]


@final
class MCD(Networked):
    r"""Langevin steps whose time reversal is corrected by a network.

    .. math::
        F_k(z_{k+1}\mid z_k) = N(z_k + \delta\nabla\log\pi_k(z_k),\, 2\delta), \qquad
        B_k(z_k\mid z_{k+1}) = N(z_{k+1} + \delta(\nabla\log\pi_k(z_{k+1}) - u(z_{k+1}, k)),\, 2\delta)

    u = 0 is :class:`ULA`. The best u is twice the difference of the two scores,
    :math:`2(\nabla\log\pi_k - \nabla\log F\text{-marginal})`: the chain lags behind :math:`\pi_k`, and the way back
    has to know by how much. The way there stays as it is.

    Args:
        network: u: called as ``network(z, step)`` with z ``(num_samples, *batch, *event)`` and the step, a Python
            integer 0..T−1; returns the shape of z. One that starts at zero starts as ULA.
        step_size: δ, as in :class:`ULA`.

    Raises:
        TypeError: a network that cannot be called.
        ValueError: what it returns has another shape than z.

    Reference: Doucet, Grathwohl, Matthews and Strathmann (2022), Score-Based Diffusion meets Annealed Importance
    Sampling, arXiv:2208.07698, section 3.

    >>> import torch, iwbounds as iw
    >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> chain = iw.AnnealedProposal(q, MCD(lambda z, step: 0.1 * z, 0.1), num_steps=8)
    >>> iw.estimate(lambda z: -2 * (z - 1) ** 2, chain, num_samples=5).value.shape
    torch.Size([3])
    """

    def backward_term(self, z: Tensor, step: int) -> Tensor:
        return -self.term(z, step)

    def __repr__(self) -> str:
        return "MCD()"
