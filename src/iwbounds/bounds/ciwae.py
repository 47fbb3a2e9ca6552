"""The convex combination of the evidence lower bound and the importance-weighted bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from iwbounds.bounds.base import Direction
from iwbounds.bounds.power_mean import PowerMean
from iwbounds.checks import check_real

__all__ = ["CIWAE"]


@final
@dataclass(frozen=True)
class CIWAE(PowerMean):
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

    >>> import torch
    >>> CIWAE(0.5)(torch.tensor([1.0, 1.0])), CIWAE(1.0)(torch.tensor([1.0, 3.0]))
    (tensor(1.), tensor(2.))
    """

    beta: float
    direction = Direction.LOWER

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_real("beta", self.beta, "0 is IWAE, 1 is the ELBO."))
        # Outside, the combination is no longer convex: it could exceed IWAE, and the direction would be lost. NaN fails
        # too.
        if not 0 <= self.beta <= 1:
            raise ValueError(f"expected beta in [0, 1]; got {self.beta}. 0 is IWAE, 1 is the ELBO.")

    @property
    def power(self) -> float:
        """1; 0 at β = 1, where it is the ELBO and no dead weight may meet a factor of 0."""
        return 0.0 if self.beta == 1 else 1.0

    @property
    def elbo_part(self) -> float:  # type: ignore[override]
        """β below 1."""
        return self.beta if self.beta < 1 else 0.0
