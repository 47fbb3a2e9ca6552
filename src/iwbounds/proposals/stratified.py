r"""Mixtures drawn in equal parts from every component."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, check_log_joint
from iwbounds.proposals.base import ExtendedProposal, LogJoint, Proposal, first_part
from iwbounds.proposals.distributions import as_proposal

__all__ = ["StratifiedMixture"]


class StratifiedMixture(ExtendedProposal):
    r"""A mixture of J distributions, as many samples drawn from each: K = J n.

    .. math:: \log w_k = \log p(x, z_k) - \log\sum_i \pi_i q_i(z_k) + \log\,(J \pi_{j(k)}), \qquad
              z_k \sim q_{j(k)}, \quad j(k) = k \bmod J

    The last term weighs a stratum by its own probability: without it the mean weight is biased unless every π is 1/J.
    With it :math:`E[\frac1K\sum_k w_k] = p(x)`, with less variance than independent draws of the mixture have, and no
    choice of a component to differentiate: π has a gradient through the weights.

    Direction: a concave bound of equal parts, such as ELBO, IWAE, Rényi (0 ≤ α), CIWAE, MIWAE or a U-statistic, is a
    lower bound of log p(x). A single weight does not have the expectation p(x); any J consecutive ones together do.
    Gradients: :class:`iwbounds.Reparameterized` (the default), unbiased for components and π. Others need independent
    draws of one density. Equal parts are the better allocation where π is near 1/J; a component with a small π gets
    more samples than it needs.

    Args:
        logits: ``(*batch, J)`` or ``(J,)``: π = softmax(logits); None for 1/J each.
        components: a ``Distribution`` with batch shape ``(*batch, J)``, as for torch's ``MixtureSameFamily``; or a
            sequence of J of batch shape ``batch``.

    The engine's latents are z and the stratum of each sample; ``log_joint`` receives z alone.

    Raises:
        ValueError: logits that do not fit the components; on use, a number of samples that J does not divide.
        TypeError: components that are no distributions.

    Reference: Morningstar, Vikram, Ham, Gallagher and Dillon (2021), Automatic Differentiation Variational Inference
    with Mixtures, arXiv:2003.01687, section 3.

    >>> from torch.distributions import Normal
    >>> q = StratifiedMixture(torch.zeros(2), Normal(torch.tensor([-9.0, 9.0]), 1.0))
    >>> q.rsample((4,))[0].sign()
    tensor([-1.,  1., -1.,  1.])
    """

    def __init__(self, logits: Tensor | None, components: Distribution | Sequence[Distribution]) -> None:
        self._components = [components] if isinstance(components, Distribution) else list(components)
        for component in self._components:
            if not isinstance(component, Distribution):
                raise TypeError(f"expected components to be torch Distributions; got {type(component).__name__}.")
        self._stacked = isinstance(components, Distribution)
        self.batch_shape, self.num_components = _layout(self._components, self._stacked)
        self._log_pi = None if logits is None else _log_probabilities(logits, self.batch_shape, self.num_components)
        self.has_rsample = all(component.has_rsample for component in self._components)
        self.name = f"StratifiedMixture of {self.num_components} components"

    def rsample(self, sample_shape: tuple[int]) -> tuple[Tensor, Tensor]:
        """z ``(K, *batch, *event)``, and the component of each, ``(K, *batch)``.

        Raises:
            ValueError: J does not divide K.
        """
        (count,), parts = sample_shape, self.num_components
        # Refused rather than rounded: a component short of a sample would need another weight.
        if count % parts:
            raise ValueError(
                f"{self.name} draws as many samples from each: expected a number of samples that {parts} divides; got "
                f"{count}. Use num_samples={max(1, round(count / parts)) * parts}."
            )
        draws = [
            d.rsample((count // parts,)) if d.has_rsample else d.sample((count // parts,)) for d in self._components
        ]
        # Components in turn, not one after the other: then blocks of samples (of MIWAE, of a chunk) are balanced too.
        # (K/J, J, *batch, *event) either way; flattened, sample k is of component k mod J.
        z = draws[0].movedim(1 + len(self.batch_shape), 1) if self._stacked else torch.stack(draws, 1)
        stratum = torch.arange(count, device=z.device) % parts
        return z.flatten(0, 1), stratum.view(-1, *[1] * len(self.batch_shape)).expand(count, *self.batch_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Of the mixture, ``(K, *batch)``."""
        return self._log_parts(z).logsumexp(-1)

    def _log_parts(self, z: Tensor) -> Tensor:
        """log π_j q_j(z), ``(K, *batch, J)``."""
        if self._stacked:
            (stacked,) = self._components
            # The components' axis is the last of the batch, right before the event.
            logs = stacked.log_prob(z.unsqueeze(z.dim() - len(stacked.event_shape)))
        else:
            logs = torch.stack([component.log_prob(z) for component in self._components], -1)
        return logs - math.log(self.num_components) if self._log_pi is None else logs + self._log_pi

    def posterior_log_weights(self, log_joint: LogJoint, z: Latents) -> Tensor:
        r"""Log-weights of posterior draws, each given a stratum with probability :math:`\pi_j q_j(z)/q(z)`.

        In the extended latent (z, j) the proposal has the density q_j(z)/J and the posterior p(z | x) π_j q_j(z)/q(z):
        their ratio is the weight of :meth:`extend`, whatever π.
        """
        # Far outside all components every part is −inf: the stratum is then arbitrary, as the weight is +inf anyway.
        shares = self._log_parts(z).softmax(-1).nan_to_num(1.0)
        # The inverse of the distribution function: torch.multinomial wants two axes.
        u = torch.rand(shares.shape[:-1], dtype=shares.dtype, device=shares.device).unsqueeze(-1)
        stratum = (shares.cumsum(-1) < u * shares.sum(-1, keepdim=True)).sum(-1).clamp_max(self.num_components - 1)
        log_q = self._stratified_log_prob(z, stratum)
        return check_log_joint(log_joint(z), log_q) - log_q

    def extend(self, log_joint: LogJoint) -> tuple[LogJoint, Proposal]:
        """z and its stratum as one latent; the stratum is carried along, so that slices of samples keep theirs."""
        views = [as_proposal(component) for component in self._components]
        fixed = all(isinstance(view, Proposal) and view.fixed_support for view in views)
        proposal = Proposal(
            self.rsample,
            lambda latents: (self._stratified_log_prob(*latents), None),
            (self.has_rsample, None),
            self.name,
            independent=False,
            fixed_support=fixed,
            # J probabilities that happen to be equal are not looked at.
            mean_score=None if self._log_pi is None else _MEAN_SCORE,
            needs_own_samples=any(isinstance(view, Proposal) and view.needs_own_samples for view in views),
            batch_shape=tuple(self.batch_shape),
            visible=first_part,
        )
        return lambda latents: log_joint(first_part(latents)), proposal

    def _stratified_log_prob(self, z: Tensor, stratum: Tensor) -> Tensor:
        """The mixture's log-density less log(J π_j) of the stratum."""
        log_q = self.log_prob(z)
        if self._log_pi is None:
            return log_q
        log_pi = self._log_pi.expand(*stratum.shape, self.num_components)
        return log_q - log_pi.gather(-1, stratum.unsqueeze(-1)).squeeze(-1) - math.log(self.num_components)


_MEAN_SCORE = (
    "it draws as many samples of every component, whatever the probabilities that its logits give, so that the mean of "
    "∂ log q is not zero (logits=None has it zero)"
)


def _layout(components: list[Distribution], stacked: bool) -> tuple[torch.Size, int]:
    """The batch shape of the mixture and J."""
    shapes = {component.batch_shape for component in components}
    if len(shapes) != 1:
        raise ValueError(f"expected components of one batch shape; got {sorted(map(tuple, shapes)) or 'none'}.")
    shape = shapes.pop()
    if not stacked:
        return shape, len(components)
    if not shape:
        raise ValueError("expected components of batch shape (*batch, J); got (). Give a list, or a last axis of J.")
    return shape[:-1], shape[-1]


def _log_probabilities(logits: Tensor, batch: torch.Size, count: int) -> Tensor:
    """log π, ``(J,)`` or ``(*batch, J)``."""
    if tuple(logits.shape) not in {(count,), (*batch, count)}:
        raise ValueError(
            f"expected logits of shape {(count,)} or {(*batch, count)} = (*batch, number of components); got "
            f"{tuple(logits.shape)}."
        )
    return logits.log_softmax(-1)
