"""The convex combination of the evidence lower bound and the importance-weighted bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwbounds.bounds.base import Bound, Direction
from iwbounds.bounds.elbo import ELBO
from iwbounds.bounds.iwae import IWAE
from iwbounds.logspace import normalized_weights, uniform_weights

__all__ = ["CIWAE"]


@dataclass(frozen=True)
class CIWAE(Bound):
    r"""Lower bound of log p(x): a convex combination of the ELBO and IWAE.

    .. math:: L = \beta\,\text{ELBO} + (1-\beta)\,\text{IWAE}, \qquad
              c_k = \frac\beta K + (1-\beta)\tilde w_k, \qquad h_k = (1-\beta)\tilde w_k(1-\tilde w_k)

    Direction: lower; between the ELBO and IWAE for any fixed weights, and equal to them at β = 1 and β = 0. Bias: the
    same mixture of theirs. Unbiased gradients: reparameterised and DReG.

    Args:
        beta: β in [0, 1].

    Edge cases: for β > 0 any −inf log-weight makes the value −inf, with gradient 0.

    Raises:
        ValueError: ``beta`` outside [0, 1].

    Reference: Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh (2018), Tighter Variational Bounds are Not
    Necessarily Better, arXiv:1802.04537.

    >>> CIWAE(0.5)(torch.tensor([1.0, 1.0])), CIWAE(1.0)(torch.tensor([1.0, 3.0]))
    (tensor(1.), tensor(2.))
    """

    beta: float
    direction = Direction.LOWER

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"expected beta in [0, 1]; got {self.beta}. 0 is IWAE, 1 is the ELBO.")

    @property
    def power_mean(self) -> tuple[float, float]:  # type: ignore[override]
        """(1, β)."""
        return 1.0, self.beta

    @property
    def _end(self) -> Bound | None:
        """The bound that β = 0 and β = 1 are: no dead weight may meet a factor of 0."""
        return IWAE() if self.beta == 0 else ELBO() if self.beta == 1 else None

    def __call__(self, log_w: Tensor) -> Tensor:
        log_w = self.checked(log_w)
        if self._end is not None:
            return self._end(log_w)
        dead = log_w.detach().isneginf().any(0)
        # A dead datum is filled before the reductions, so that neither of them sends it a gradient.
        log_w = log_w.masked_fill(dead, 0.0)
        elbo, iwae = ELBO()(log_w), IWAE()(log_w)
        return (elbo + (1 - self.beta) * (iwae - elbo)).masked_fill(dead, -torch.inf)

    def gradient(self, log_w: Tensor) -> Tensor:
        return self.path_weights(log_w)[0]

    def derivatives(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        if self._end is not None:
            return self._end.derivatives(log_w)
        w, dead = self._weights(log_w)
        return self._mixed(log_w, w), (1 - self.beta) * (w - w * w).masked_fill(dead, 0.0)

    def path_weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        if self._end is not None:
            return self._end.path_weights(log_w)
        w, _ = self._weights(log_w)
        return self._mixed(log_w, w), self._mixed(log_w, w * w)

    def replace_each(self, log_w: Tensor, fill: Tensor) -> Tensor:
        if self._end is not None:
            return self._end.replace_each(log_w, fill)
        elbo, iwae = ELBO().replace_each(log_w, fill), IWAE().replace_each(log_w, fill)
        return self.beta * elbo + (1 - self.beta) * iwae

    def _weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        return normalized_weights(log_w), log_w.isneginf().any(0)

    def _mixed(self, log_w: Tensor, of_iwae: Tensor) -> Tensor:
        uniform = uniform_weights(log_w)
        return self.beta * uniform + (1 - self.beta) * of_iwae.masked_fill(uniform == 0, 0.0)
