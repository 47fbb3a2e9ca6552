"""Models to test estimators on: of exact evidence and posterior, or of an exact expectation of any gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MultivariateNormal, Normal

from iwbounds.proposals.base import LogJoint

__all__ = ["FiniteModel", "GaussianModel", "GradientProblem", "categorical_problem", "gaussian_problem"]


@dataclass(frozen=True)
class GaussianModel:
    r"""A conjugate linear-Gaussian model, z ~ N(0, I), x | z ~ N(W z + b, σ² I), of exact evidence.

    .. math:: \log p(x) = \log\mathcal N(x;\, b,\, W W^\top + \sigma^2 I)

    Args:
        weight: W, ``(observed, latent)``.
        offset: b, ``(observed,)``.
        noise: σ > 0.

    >>> model = GaussianModel(torch.eye(1), torch.zeros(1), noise=1.0)
    >>> model.log_evidence(torch.zeros(1))
    tensor(-1.2655)
    """

    weight: Tensor
    offset: Tensor
    noise: float

    @property
    def prior(self) -> Distribution:
        """p(z)."""
        zeros = self.weight.new_zeros(self.weight.shape[1])
        return Independent(Normal(zeros, torch.ones_like(zeros), validate_args=False), 1, validate_args=False)

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x | z)."""
        mean = z @ self.weight.T + self.offset
        return Independent(Normal(mean, self.noise, validate_args=False), 1, validate_args=False)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), ``(K, *batch)``."""
        return self.prior.log_prob(z) + self.likelihood(z).log_prob(x)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), ``(*batch)``."""
        eye = torch.eye(len(self.weight)).to(self.weight)
        marginal: Distribution = MultivariateNormal(self.offset, self.weight @ self.weight.T + self.noise**2 * eye)
        return marginal.log_prob(x)

    def posterior(self, x: Tensor) -> Distribution:
        """p(z | x), exactly."""
        eye = torch.eye(self.weight.shape[1]).to(self.weight)
        # Conjugacy: prior precision I plus that of the data, WᵀW/σ².
        precision = eye + self.weight.T @ self.weight / self.noise**2
        slope = torch.linalg.solve(precision, self.weight.T) / self.noise**2
        return MultivariateNormal((x - self.offset) @ slope.T, precision_matrix=precision)

    def proposal(self, x: Tensor, shift: float = 0.3, widen: float = 1.2) -> Distribution:
        """A diagonal Gaussian near the posterior: off by ``shift`` marginal deviations and ``widen`` times as wide."""
        posterior = self.posterior(x)
        scale = posterior.stddev
        return Independent(Normal(posterior.mean + shift * scale, widen * scale), 1)

    def simulate(self, *batch: int) -> tuple[Tensor, Tensor]:
        """x ``(*batch, observed)`` and the latents it came from, ``(*batch, latent)``: an exact posterior sample."""
        z = self.prior.sample(torch.Size(batch))
        return self.likelihood(z).sample(), z


@dataclass(frozen=True)
class FiniteModel:
    r"""A model with a single categorical latent, whose evidence is a sum.

    .. math:: p(x) = \sum_c p(c)\, p(x \mid c)

    Args:
        prior_logits: ``(C,)``.
        table_logits: ``(C, X)``: logits of the observed category for each latent one.

    >>> model = FiniteModel(torch.zeros(2), torch.zeros(2, 4))
    >>> model.log_evidence(torch.tensor(0)).exp()
    tensor(0.2500)
    """

    prior_logits: Tensor
    table_logits: Tensor

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), ``(K, *batch)``."""
        return self.prior_logits.log_softmax(0)[z] + self.table_logits.log_softmax(1)[z, x.expand_as(z)]

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), ``(*batch)``."""
        return self._log_table(x).logsumexp(-1)

    def posterior(self, x: Tensor) -> Categorical:
        """p(z | x), exactly."""
        return Categorical(logits=self._log_table(x))

    def proposal(self, x: Tensor, temperature: float = 2.0) -> Categorical:
        """The posterior, flattened by ``temperature``."""
        return Categorical(logits=self._log_table(x) / temperature)

    def simulate(self, *batch: int) -> tuple[Tensor, Tensor]:
        """x ``(*batch)`` and the latents it came from, ``(*batch)``: an exact posterior sample."""
        prior: Distribution = Categorical(logits=self.prior_logits)
        z = prior.sample(torch.Size(batch))
        observed: Distribution = Categorical(logits=self.table_logits[z])
        return observed.sample(), z

    def _log_table(self, x: Tensor) -> Tensor:
        # log p(c, x), all of it: the model is small enough to be a table.
        table = self.prior_logits.log_softmax(0).unsqueeze(1) + self.table_logits.log_softmax(1)
        return table.T[x]


@dataclass(frozen=True)
class GradientProblem:
    """A model and a proposal whose parameters are told apart, to check the gradients of each.

    Args:
        build: returns ``(log_joint, proposal)`` on a fresh graph. Called with latents ``(K, n, *batch)``, ``log_joint``
            must broadcast over the axis n, along which a method puts the terms of its expectation.
        model: leaf parameters of the log-joint.
        proposal: leaf parameters of the proposal.

    >>> shift, loc = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    >>> problem = GradientProblem(lambda: (lambda z: -(z - shift) ** 2, Normal(loc, 1.0)), [shift], [loc])
    """

    build: Callable[[], tuple[LogJoint, Distribution]]
    model: Sequence[Tensor]
    proposal: Sequence[Tensor]

    @property
    def parameters(self) -> list[Tensor]:
        """All of them, the model's first."""
        return [*self.model, *self.proposal]


def categorical_problem() -> GradientProblem:
    """Two data, one categorical latent with three values each; a proposal far from the posterior."""
    # Numbers without a pattern: no gradient is 0, or equal to another, by symmetry.
    table = _leaf([[0.4, -1.1, 0.7], [-0.3, 0.9, -1.6]])
    logits = _leaf([[0.3, -0.5, 0.2], [0.8, 0.1, -0.4]])

    def build() -> tuple[LogJoint, Distribution]:
        # A log-joint is not normalised: constants that differ by datum must not matter.
        scores = table - torch.tensor([[0.5], [1.0]], dtype=torch.float64)
        return lambda z: scores.expand(*z.shape, -1).gather(-1, z.unsqueeze(-1)).squeeze(-1), Categorical(logits=logits)

    return GradientProblem(build, [table], [logits])


def gaussian_problem(num_data: int = 2) -> GradientProblem:
    """A linear-Gaussian model with a scalar latent per datum, and a proposal off in location and scale.

    The latent enters the likelihood through a slope and an offset, the proposal has a location and a log-scale.
    """
    slope, offset, log_noise = _leaf(0.8), _leaf(-0.2), _leaf(0.1)
    loc, log_scale = _leaf([0.5, -0.4]), _leaf([-0.3, 0.0])
    x = torch.tensor([1.1, -0.6], dtype=torch.float64).repeat(num_data // 2)

    def build() -> tuple[LogJoint, Distribution]:
        def log_joint(z: Tensor) -> Tensor:
            prior: Distribution = Normal(torch.zeros_like(z), 1.0, validate_args=False)
            likelihood: Distribution = Normal(slope * z + offset, log_noise.exp(), validate_args=False)
            return prior.log_prob(z) + likelihood.log_prob(x)

        # The same two parameters for every pair of data, so that gradients of any batch have one shape.
        repeated = num_data // 2
        return log_joint, Normal(loc.repeat(repeated), log_scale.exp().repeat(repeated))

    return GradientProblem(build, [slope, offset, log_noise], [loc, log_scale])


def _leaf(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)
