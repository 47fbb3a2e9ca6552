r"""The doubly reparameterised gradient of a learned prior too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from iwbounds.gradients.reparameterized import DoublyReparameterized

__all__ = ["GDReG"]


@final
@dataclass(frozen=True)
class GDReG(DoublyReparameterized):
    r""":class:`DReG`, with the parameters of the prior doubly reparameterised as well.

    .. math:: a_k = c_k, \qquad b_k = c_k - h_k, \qquad s_k = 0,

    and in place of :math:`c_k\,\partial_\eta \log p_\eta(z_k)` a fourth channel, for :math:`z = T_\eta(\epsilon)` with
    an invertible :math:`T_\eta`:

    .. math:: \bigl[h_k\,\partial_z \log w(z_k) + c_k\,\partial_z(\log q - \log p_\eta)(z_k)\bigr]\cdot
              \partial_\eta T_\eta(\epsilon_k), \qquad \epsilon_k = T_\eta^{-1}(z_k) \text{ held fixed}

    Unbiased for every smooth bound, for all parameters. Of use where the prior is learned: a second stochastic layer, a
    flow. Where q is the posterior the prior follows the slope of the likelihood in place of its own: the variance is
    lower by (prior scale / noise scale)⁴ for a Gaussian latent that the data say little of, and higher by as much for
    one that they pin down.

    The log-joint must be an :class:`iwbounds.PriorAndLikelihood`, so that the prior can be seen. Costs one more
    backward of the prior (its own network included), none of the likelihood.

    Raises:
        ValueError: another log-joint; a bound that says ``smooth = False``; a learned prior whose support moves with
            its parameters, or that is no invertible map of its noise; an extended proposal; ``proposal_bound``;
            ``chunk_size`` in ``estimate`` (``accumulate`` takes it).
        RuntimeError: under ``torch.compile``.

    Reference: Bauer and Mnih (2021), Generalized Doubly-Reparameterized Gradient Estimators, arXiv:2101.11046;
    here for every smooth bound.

    >>> import torch, iwbounds as iw
    >>> from torch.distributions import Normal
    >>> loc = torch.zeros((), requires_grad=True)
    >>> joint = iw.PriorAndLikelihood(Normal(loc, 1.0), lambda z: Normal(z, 1.0).log_prob(torch.ones(3)))
    >>> iw.estimate(joint, Normal(torch.zeros(3), 1.0), gradient=GDReG()).value.sum().backward()
    """

    takes_extended = False
    needs_prior = True
