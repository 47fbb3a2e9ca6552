"""Controlled Monte Carlo diffusion: Langevin steps steered by a network, there and back."""

from __future__ import annotations

from typing import final

from torch import Tensor

from iwbounds.proposals.annealed.langevin import Networked

__all__ = ["CMCD"]


@final
class CMCD(Networked):
    r"""Langevin steps with a learned drift that carries the chain along :math:`\pi_k` as β moves.

    .. math::
        F_k(z_{k+1}\mid z_k) &= N(z_k + \delta(\nabla\log\pi_k(z_k) + u(z_k, k)),\, 2\delta) \\
        B_k(z_k\mid z_{k+1}) &= N(z_{k+1} + \delta(\nabla\log\pi_k(z_{k+1}) - u(z_{k+1}, k)),\, 2\delta)

    Reversing time turns the added drift around and leaves the Langevin part, so with the right u and small steps the
    two agree, and all weights are equal: few steps then do what ULA needs very many for. Twice the network calls of
    :class:`MCD`, and as many of the log-joint.

    Args:
        network: u: called as ``network(z, step)`` with z ``(num_samples, *batch, *event)`` and the step, a Python
            integer 0..T−1; returns the shape of z. One that starts at zero starts as ULA.
        step_size: δ, as in :class:`ULA`.

    Raises:
        TypeError: a network that cannot be called.
        ValueError: what it returns has another shape than z.

    Reference: Vargas, Padhy, Blessing and Nüsken (2024), Transport meets Variational Inference: Controlled Monte Carlo
    Diffusions, arXiv:2307.01050, section 3.

    >>> import torch, iwbounds as iw
    >>> q = torch.distributions.Normal(torch.zeros(3), 1.0)
    >>> chain = iw.AnnealedProposal(q, CMCD(lambda z, step: 1.0 - z, 0.1), num_steps=8)
    >>> iw.estimate(lambda z: -2 * (z - 1) ** 2, chain, num_samples=5).value.shape
    torch.Size([3])
    """

    def forward_term(self, z: Tensor, step: int) -> Tensor:
        return self.term(z, step)

    def backward_term(self, z: Tensor, step: int) -> Tensor:
        return -self.term(z, step)

    def __repr__(self) -> str:
        return "CMCD()"
