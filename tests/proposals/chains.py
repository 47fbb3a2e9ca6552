"""One-dimensional chains of few steps, of which every expectation is a sum over a Gauss-Hermite grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Normal

import iwbounds as iw
from iwbounds.proposals.annealed import bridge, dais, langevin
from tests.oracles.nodes import NodeNormal, gauss_hermite_grid

NAMES = ("model_shift", "model_slope", "loc", "log_scale", "log_step", "beta", "net_slope", "net_shift")
KINDS = ("ula", "mcd", "cmcd", "dais")
DRIFTS = {"ula": (0, 0), "mcd": (0, -1), "cmcd": (1, -1)}
"""How the network enters the drift of F and of B."""


@dataclass
class Chains:
    """``num_samples`` chains of ``num_steps`` steps; the batch is the grid of all their noise."""

    kind: str
    num_steps: int
    num_samples: int
    nodes: int
    parameters: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        values = (0.2, 0.8, 0.4, -0.2, -1.6, 0.7, 0.5, 0.1)
        self.parameters = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in zip(NAMES, values, strict=True)
        }
        dims = self.num_samples * (1 + self.num_steps)
        noise, self.weights = gauss_hermite_grid(self.nodes, dims)
        self.noise = noise.reshape(1 + self.num_steps, self.num_samples, -1)

    def log_joint(self, z: Tensor) -> Tensor:
        """Neither Gaussian nor of constant curvature; entire, so that quadrature converges fast."""
        a, b = self.parameters["model_shift"], self.parameters["model_slope"]
        x = torch.tensor(1.1, dtype=z.dtype)
        return Normal(a, 1.0).log_prob(z) + Normal(b * z, 1.0).log_prob(x) + 0.3 * torch.sin(z + a)

    def evidence(self) -> float:
        z, weights = gauss_hermite_grid(120, 1)
        with torch.no_grad():
            return (weights * (self.log_joint(z[0]) - Normal(0.0, 1.0).log_prob(z[0])).exp()).sum().item()

    def network(self, z: Tensor, step: int) -> Tensor:
        p = self.parameters
        return torch.tanh((p["net_slope"] + 0.2 * step) * z + p["net_shift"])

    def betas(self) -> Tensor:
        """Linear up to a learned end."""
        return torch.linspace(0.0, 1.0, self.num_steps + 1, dtype=torch.float64) * self.parameters["beta"]

    def initial(self) -> NodeNormal:
        p = self.parameters
        batch = (self.noise.shape[-1],)
        return NodeNormal(Normal(p["loc"].expand(batch), p["log_scale"].exp().expand(batch)), self.noise[0])

    def proposal(self) -> iw.AnnealedProposal:
        step = lambda k: (self.parameters["log_step"] + 0.3 * k).exp()  # noqa: E731
        made: dict[str, Callable[[], iw.Transition]] = {
            "ula": lambda: iw.ULA(step),
            "mcd": lambda: iw.MCD(self.network, step),
            "cmcd": lambda: iw.CMCD(self.network, step),
            "dais": lambda: iw.DAIS(step, lambda k: 0.5 + 0.2 * k),
        }
        return iw.AnnealedProposal(self.initial(), made[self.kind](), self.num_steps, self.betas)

    def prepared(self, monkeypatch) -> Chains:
        """The same, with the noise of its transitions taken from the grid."""
        rows = iter(self.noise[1:])
        for module in (bridge, langevin, dais):
            monkeypatch.setattr(module, "standard_normal_like", lambda z: next(rows))
        return self

    def gradients(self) -> dict[str, float]:
        return {name: 0.0 if p.grad is None else p.grad.item() for name, p in self.parameters.items()}

    def used(self) -> set[str]:
        """The parameters that this kind of chain has."""
        return set(NAMES) - (set() if self.kind in ("mcd", "cmcd") else {"net_slope", "net_shift"})

    def written_out(self) -> Tensor:
        """Log-weights ``(num_samples, grid)`` from the densities of every kernel, without the library."""
        p = self.parameters
        q = Normal(p["loc"], p["log_scale"].exp())
        z = q.loc + q.scale * self.noise[0]
        return self._dais(q, z) if self.kind == "dais" else self._langevin(q, z)

    def _slope(self, q: Normal, z: Tensor, step: int) -> Tensor:
        """∂ log π/∂z by hand."""
        a, b = self.parameters["model_shift"], self.parameters["model_slope"]
        of_p = -(z - a) + b * (1.1 - b * z) + 0.3 * torch.cos(z + a)
        betas = self.betas()
        beta = (betas[step] + betas[step + 1]) / 2
        return beta * of_p - (1 - beta) * (z - q.loc) / q.scale**2

    def _langevin(self, q: Normal, z: Tensor) -> Tensor:
        there, back = DRIFTS[self.kind]
        log_w = -q.log_prob(z)
        for step in range(self.num_steps):
            delta = (self.parameters["log_step"] + 0.3 * step).exp()
            forward = Normal(z + delta * (self._slope(q, z, step) + there * self.network(z, step)), (2 * delta).sqrt())
            new = forward.loc + forward.scale * self.noise[1 + step]
            mean = new + delta * (self._slope(q, new, step) + back * self.network(new, step))
            log_w = log_w + Normal(mean, (2 * delta).sqrt()).log_prob(z) - forward.log_prob(new)
            z = new
        return log_w + self.log_joint(z)

    def _dais(self, q: Normal, z: Tensor) -> Tensor:
        log_w, v, unit = -q.log_prob(z), self.noise[1], Normal(0.0, 1.0)
        for step in range(self.num_steps):
            eta = (self.parameters["log_step"] + 0.3 * step).exp()
            middle = z + eta / 2 * v
            after = v + eta * self._slope(q, middle, step)
            z = middle + eta / 2 * after
            log_w = log_w + unit.log_prob(after) - unit.log_prob(v)
            if step + 1 < self.num_steps:
                kept = 0.5 + 0.2 * step
                v = kept * after + math.sqrt(1 - kept**2) * self.noise[2 + step]
        return log_w + self.log_joint(z)
