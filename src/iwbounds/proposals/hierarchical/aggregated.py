"""The aggregated posterior: a mixture of N given components, of which K are looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iwbounds.bounds.iwae import IWAE
from iwbounds.proposals.hierarchical.model import Density, draw

__all__ = ["AggregatedPosterior"]


class AggregatedPosterior:
    r"""A uniform mixture of N components with subsampling: a VampPrior, or the aggregated posterior of an encoder.

    .. math:: q(z) = \frac1N\sum_{n=1}^N q(z\mid n), \qquad \psi = n \sim U\{1,…,N\}

    SIVI with a discrete ψ. K components stand for the N: both sides of log q(z) tighten with K. As a **prior** inside a
    lower bound of log p(x) take :meth:`log_prob_lower`: its exponential is unbiased for q(z), so the ELBO and every
    multi-sample bound stay lower bounds. As a marginal that is *subtracted* take :meth:`log_prob_upper`.

    Args:
        conditional: q(z | n): called with integer indices of any shape; returns a ``Distribution`` of that batch shape.
        num_components: N.
        num_aux: K, the components drawn (with replacement) for each z besides its own.
        event_dim: how many trailing axes of z are one event.
        device: where indices are drawn.

    Raises:
        ValueError: N < 1 or K < 0.

    Reference: Tomczak and Welling (2018), VAE with a VampPrior, arXiv:1705.07120, eq. 9; the K-subsampled upper side is
    the case of a uniform index in Sobolev and Vetrov (2019), arXiv:1905.03290.

    >>> from torch.distributions import Normal
    >>> means = torch.tensor([-1.0, 1.0])
    >>> prior = AggregatedPosterior(lambda n: Normal(means[n], 1.0), num_components=2, num_aux=5, event_dim=0)
    >>> prior.log_prob_lower(torch.zeros(4, 3))
    tensor([[-1.4189, -1.4189, -1.4189], [-1.4189, ...
    """

    def __init__(
        self,
        conditional: Callable[[Tensor], Density],
        num_components: int,
        num_aux: int,
        event_dim: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        if num_components < 1:
            raise ValueError(f"expected num_components >= 1; got {num_components}.")
        if num_aux < 0:
            raise ValueError(f"expected num_aux >= 0; got {num_aux}.")
        self.conditional, self.num_components, self.num_aux = conditional, num_components, num_aux
        self.event_dim, self.device = event_dim, device

    def rsample(self, sample_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """z ``(*sample_shape, *event)`` and the index of its component ``(*sample_shape)``."""
        index = self._indices(tuple(sample_shape))
        conditional = self.conditional(index)
        return draw(conditional, (), getattr(conditional, "has_rsample", True), "conditional"), index

    def log_prob_lower(self, z: Tensor, num_aux: int | None = None) -> Tensor:
        r"""Lower bound of log q(z) for any z: :math:`\log\frac1K\sum_{k=1}^K q(z\mid n_k)`, K >= 1 indices drawn anew.

        Args:
            z: ``(*lead, *event)``.
            num_aux: K, its own by default.

        Returns:
            ``(*lead)`` nats.
        """
        count = self.num_aux if num_aux is None else num_aux
        if count < 1:
            raise ValueError(f"a lower bound of log q(z) needs num_aux >= 1; got {count}.")
        return self._log_mixture(z, self._indices((count, *self._lead(z))))

    def log_prob_upper(self, z: Tensor, index: Tensor, num_aux: int | None = None) -> Tensor:
        r"""Upper bound of log q(z): the same mean over z's own component and K others.

        Args:
            z, index: a pair from :meth:`rsample`; an encoder's z and the index of its datum are one.
            num_aux: K, its own by default.

        Returns:
            ``(*lead)`` nats.
        """
        count = self.num_aux if num_aux is None else num_aux
        others = self._indices((count, *self._lead(z)))
        # z's own component must be among those looked at: without it the mean would be a lower bound's.
        return self._log_mixture(z, torch.cat([index.unsqueeze(0), others]))

    def _lead(self, z: Tensor) -> tuple[int, ...]:
        return tuple(z.shape[: z.ndim - self.event_dim])

    def _indices(self, shape: tuple[int, ...]) -> Tensor:
        # With replacement: each is one more independent draw of ψ, so that the mean of K is unbiased for q(z).
        return torch.randint(self.num_components, shape, device=self.device)

    def _log_mixture(self, z: Tensor, index: Tensor) -> Tensor:
        # Expanded, not repeated: every component sees the same z, which is read from one place.
        return IWAE()(self.conditional(index).log_prob(z.expand(index.shape[0], *z.shape)))
