"""Expected gradients of an estimator against the gradient of the expected bound, in float64.

Every model lists *all* values (or quadrature nodes) that K samples can take along the batch axis, with their
probabilities. One call of ``iw.estimate`` on these samples, weighted by the probabilities, is then an exact expectation
of the estimator; the truth is plain autograd of the expected bound, which knows nothing of estimators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.checks import latent_leaves

DOUBLE = torch.float64


@dataclass
class Expectation:
    """Parameters, all possible samples (functions of the parameters where reparameterised), and their probabilities."""

    model: dict[str, Tensor]
    proposal: dict[str, Tensor]
    log_joint: Callable[[Any], Tensor]
    q: iw.Proposal
    samples: Callable[[], Any]
    log_probability: Callable[[], Tensor]
    """Log-probability of each point of the batch axis, differentiable in the discrete latents' parameters."""
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [*self.model.values(), *self.proposal.values()]

    def truth(self, bound: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Gradient of the expected bound by plain autograd."""
        z = self.samples()
        log_q = self.q.log_prob(z)
        log_q = sum(latent_leaves(log_q))
        expected = (self.log_probability().exp() * bound(self.log_joint(z) - log_q)).sum()
        return list(torch.autograd.grad(expected, self.parameters))

    def estimated(self, bound: iw.Bound, gradient: iw.Gradient, **options: Any) -> list[Tensor]:
        """Exact expectation of the gradient that ``iw.estimate`` gives."""
        value = iw.estimate(self.log_joint, self.q, bound, gradient, samples=self.samples(), **options).value
        expected = (self.log_probability().exp().detach() * value).sum()
        grads = torch.autograd.grad(expected, self.parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, grads, strict=True)]

    def names(self) -> list[str]:
        return [*self.model, *self.proposal]


def leaf(*values: float) -> Tensor:
    data = values[0] if len(values) == 1 else values
    return torch.tensor(data, dtype=DOUBLE, requires_grad=True)


def gauss_hermite(nodes: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Points ``(dimensions, nodes^dimensions)`` of a standard normal, and log-weights."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    log_w = np.log(w) - 0.5 * math.log(2 * math.pi)
    points = np.stack([g.ravel() for g in np.meshgrid(*[x] * dimensions, indexing="ij")])
    logs = sum(g.ravel() for g in np.meshgrid(*[log_w] * dimensions, indexing="ij"))
    return torch.from_numpy(points), torch.from_numpy(np.asarray(logs))


def combinations(values: int, count: int) -> Tensor:
    """All ``values^count`` tuples: ``(count, values^count)``."""
    return torch.cartesian_prod(*[torch.arange(values)] * count).reshape(-1, count).T


def gaussian(num_samples: int, nodes: int, fixed: bool = False) -> Expectation:
    """z ~ N(a, 1), x | z ~ N(b z, 1); q(z) near the posterior, so that weights vary by a factor of a few.

    With ``fixed`` the proposal says how to evaluate its density with detached parameters.
    """
    a, b, loc, log_scale = leaf(0.3), leaf(0.8), leaf(0.55), leaf(-0.3)
    x = 1.1
    noise, log_w = gauss_hermite(nodes, num_samples)
    q = iw.Proposal(
        sample=_never,
        log_prob=lambda z: Normal(loc, log_scale.exp()).log_prob(z),
        fixed_log_prob=(lambda z: Normal(loc.detach(), log_scale.detach().exp()).log_prob(z)) if fixed else None,
    )
    return Expectation(
        {"a": a, "b": b},
        {"loc": loc, "log_scale": log_scale},
        lambda z: Normal(a, 1.0).log_prob(z) + Normal(b * z, 1.0).log_prob(torch.full_like(z, x)),
        q,
        lambda: loc + log_scale.exp() * noise,
        lambda: log_w,
    )


def gaussian_pair(nodes: int) -> Expectation:
    """Two layers, K = 2: q(z1) q(z2 | z1), where the second sampler depends on the first's sample.

    The scales are near the posterior's, so that few nodes integrate squares of weights; slopes and means are not: STL
    is off by 0.09.
    """
    a, b = leaf(0.2), leaf(0.7)
    loc, slope, log_scale = leaf(0.4), leaf(0.5), leaf(-0.05)
    noise, log_w = gauss_hermite(nodes, 4)

    def samples() -> tuple[Tensor, Tensor]:
        z1 = loc + 1.0 * noise[:2]
        return z1, slope * z1 + log_scale.exp() * noise[2:]

    def log_q(z: tuple[Tensor, Tensor]) -> Tensor:
        return Normal(loc, 1.0).log_prob(z[0]) + Normal(slope * z[0], log_scale.exp()).log_prob(z[1])

    def log_joint(z: tuple[Tensor, Tensor]) -> Tensor:
        return Normal(a, 1.0).log_prob(z[0]) + Normal(b * z[0], 1.0).log_prob(z[1]) - 0.1 * (z[1] - 0.5) ** 2

    return Expectation(
        {"a": a, "b": b},
        {"loc": loc, "slope": slope, "log_scale": log_scale},
        log_joint,
        iw.Proposal(sample=_never, log_prob=log_q),
        samples,
        lambda: log_w,
    )


def categorical(num_samples: int) -> Expectation:
    """One categorical latent with three values: all 3^K tuples."""
    theta, phi = leaf(0.5, -0.7, 0.1), leaf(0.2, 0.3, -0.4)
    z = combinations(3, num_samples)
    q = iw.Proposal(sample=_never, log_prob=lambda z: phi.log_softmax(0)[z], reparameterized=False)
    return Expectation(
        {"theta": theta},
        {"phi": phi},
        lambda z: theta[z] - 0.3 * z.to(DOUBLE),
        q,
        lambda: z,
        lambda: phi.log_softmax(0)[z].sum(0),
    )


def categorical_pair(num_samples: int) -> Expectation:
    """Two categorical layers, q(z1) q(z2 | z1), each with three values: all 9^K tuples."""
    theta, phi1 = leaf(0.5, -0.7, 0.1), leaf(0.2, 0.3, -0.4)
    phi2 = torch.tensor([[0.1, 0.5, -0.2], [0.0, -0.6, 0.4], [0.3, 0.2, 0.1]], dtype=DOUBLE, requires_grad=True)
    both = combinations(9, num_samples)
    z = (both // 3, both % 3)

    def log_q(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return phi1.log_softmax(0)[z[0]], phi2.log_softmax(1)[z[0], z[1]]

    return Expectation(
        {"theta": theta},
        {"phi1": phi1, "phi2": phi2},
        lambda z: theta[z[0]] * (z[1] + 1.0) + 0.2 * theta[z[1]],
        iw.Proposal(sample=_never, log_prob=log_q, reparameterized=(False, False)),
        lambda: z,
        lambda: sum(log_q(z)).sum(0),
    )


def mixed(nodes: int, discrete_first: bool) -> Expectation:
    """A categorical and a Gaussian latent, K = 2, in either order: enumeration times quadrature."""
    theta, phi = leaf(0.5, -0.7, 0.1), leaf(0.2, 0.3, -0.4)
    locs, slope, log_scale = leaf(0.5, -0.1, 0.2), leaf(0.6), leaf(-0.25)
    noise, log_w = gauss_hermite(nodes, 2)
    d = combinations(3, 2).repeat_interleave(noise.shape[1], dim=1)
    noise, log_w = noise.repeat(1, 9), log_w.repeat(9)

    def loc(d: Tensor) -> Tensor:
        return locs[d] if discrete_first else locs[0]

    def logits(c: Tensor) -> Tensor:
        tilt = 0.0 if discrete_first else slope * c.unsqueeze(-1) * phi.new_tensor([1.0, 0.0, -1.0])
        return (phi + tilt).log_softmax(-1)

    def log_q_discrete(d: Tensor, c: Tensor) -> Tensor:
        return logits(c).expand(*d.shape, 3).gather(-1, d.unsqueeze(-1)).squeeze(-1)

    def log_q(z: dict[str, Tensor]) -> dict[str, Tensor]:
        gaussian = Normal(loc(z["d"]), log_scale.exp()).log_prob(z["c"])
        return {"d": log_q_discrete(z["d"], z["c"]), "c": gaussian}  # in another order: parts are matched by key

    def samples() -> dict[str, Tensor]:
        return {"c": loc(d) + log_scale.exp() * noise, "d": d}

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        return theta.log_softmax(0)[z["d"]] + Normal(theta[z["d"]], 1.0).log_prob(z["c"]) - 0.2 * (z["c"] - 1.0) ** 2

    coupling = {} if discrete_first else {"slope": slope}
    return Expectation(
        {"theta": theta},
        {"phi": phi, "locs": locs, "log_scale": log_scale, **coupling},
        log_joint,
        iw.Proposal(_never, log_q, reparameterized={"c": True, "d": False}),
        samples,
        lambda: log_w + log_q_discrete(d, samples()["c"]).sum(0),
    )


def _never(shape: tuple[int]) -> Tensor:
    raise AssertionError("exact expectations give samples; nothing is drawn")
