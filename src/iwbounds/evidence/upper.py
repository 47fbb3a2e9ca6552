r"""An upper bound of log p(x) from one posterior sample, which simulated data come with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.bounds.base import Direction
from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import Latents, check_log_joint, map_latents
from iwbounds.engine.result import Estimate
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal
from iwbounds.proposals.distributions import as_proposal

__all__ = ["upper_bound"]


def upper_bound(
    log_joint: LogJoint,
    proposal: Distribution | Proposal | ExtendedProposal,
    posterior_sample: Latents,
    num_samples: int = 64,
) -> Estimate:
    r"""Upper bound of log p(x) from one exact posterior sample and K draws of the proposal.

    .. math:: U = \log\frac1{K+1}\sum_{k=0}^K \frac{p(x,z_k)}{q(z_k)},\qquad z_0\sim p(z\mid x),\; z_{1..K}\sim q

    Direction: upper, for every K, non-increasing in K; :math:`E[e^{-U}] \le 1/p(x)`, so it is above log p(x) − b with
    probability at least :math:`1 - e^{-b}`. Bias: Var(w)/(2(K+1)p(x)²) + O(K⁻²). **Only as good as the posterior
    sample**: exact for simulated data; a draw of a Markov chain makes it valid up to the chain's error. Together with
    IWAE it is a sandwich.

    The value is differentiable as it stands, the posterior sample held fixed: minimising it fits the proposal (where it
    is reparameterised). It is *not* the gradient for the model, whose posterior moves with it.

    Args:
        log_joint: latents to ``(K, *batch)`` nats of log p(x, z); called for the posterior sample with K = 1, and for
            the draws.
        proposal: a torch ``Distribution``, :class:`iwbounds.Proposal` or :class:`iwbounds.HierarchicalProposal`. For
            the last, log q is bounded from below at the posterior sample (by K' + 1 auxiliary draws) and from above at
            its own, which is the same theorem for the extended latent.
        posterior_sample: one draw of p(z | x) for each datum, ``(*batch, *event)``: no sample axis.
        num_samples: K, 0 or more.

    Returns:
        An :class:`iwbounds.Estimate` whose ``log_weights`` are ``(K + 1, *batch)``, the posterior sample's first.

    Raises:
        TypeError: an extended proposal that cannot complete a posterior sample.
        ValueError: draws that depend on each other (shared auxiliary variables); densities of a wrong shape, dtype or
            device, as :func:`iwbounds.estimate`.

    References: Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte
    Carlo, arXiv:1511.02543, for the idea; Sobolev and Vetrov (2019), arXiv:1905.03290, theorem 1, with z in the place
    of ψ.

    >>> from torch.distributions import Normal
    >>> prior, posterior = Normal(torch.zeros(3), 1.0), Normal(torch.full((3,), 0.5), 0.5**0.5)
    >>> log_joint = lambda z: prior.log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0))
    >>> upper_bound(log_joint, posterior, posterior.sample(), num_samples=4).value
    tensor([-1.5155, -1.5155, -1.5155])
    """
    if num_samples < 0:
        raise ValueError(f"expected num_samples >= 0; got {num_samples}.")
    z = map_latents(lambda part: part.unsqueeze(0), posterior_sample)
    drawn = as_proposal(proposal)
    if isinstance(drawn, ExtendedProposal):
        # z₀ with the rest of its extended latent, drawn under P; the others, below, are drawn under Q.
        log_w = [drawn.posterior_log_weights(log_joint, z)]
        log_joint, drawn = drawn.extend(log_joint)
    else:
        log_w = [_log_weights(log_joint, drawn, z)]
    if not drawn.independent:
        raise ValueError(
            f"expected draws that are independent of each other, on which the upper bound rests; those of {drawn.name} "
            "are not (independent=False, or shared auxiliary variables). Pass a proposal that draws independently."
        )
    if num_samples:
        log_w.append(_log_weights(log_joint, drawn, drawn.sample((num_samples,))))
    log_weights = torch.cat(log_w)
    # The same function as IWAE: that one of the weights is the posterior's makes it an upper bound.
    return Estimate(IWAE()(log_weights), log_weights.detach(), Direction.UPPER)


def _log_weights(log_joint: LogJoint, proposal: Proposal, z: Latents) -> Tensor:
    # Not by way of estimate, whose backward is that of an estimator: here the bound's own derivative is wanted.
    first, *others = proposal.log_prob_parts(z)
    log_q: Tensor = sum(others, first)
    return check_log_joint(log_joint(z), log_q) - log_q
