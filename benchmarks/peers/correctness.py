"""Whose gradient is that of the expected bound: Pyro's and the squared-weight rule's beside ours, against exact values.

    PYTHONPATH=benchmarks python -m peers.correctness       # a minute; Pyro's rows where it is installed

1. A latent of three values. E IWAE_K is a sum over 3^K tuples, and so is its gradient. The guide's logits are repeated
   over a plate, one row for each replication: one call gives many independent gradients. Pyro's RenyiELBO is asked as
   its users ask it.
2. A Gaussian latent, K = 2, by quadrature over the noise: nothing is sampled. The rule whose surrogate has squared
   normalised weights for *all* parameters, as published code for the doubly reparameterised gradient has, is right for
   the proposal and wrong for the model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import arguments, table
from torch import Tensor
from torch.distributions import Categorical, Normal

import iwbounds as iw

LOG_JOINT = torch.tensor([0.5, 0.1, 0.05], dtype=torch.float64).log()
LOGITS = torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64)
LIMIT = 5.0
"""Standard errors beyond which a mean is called wrong: by chance once in a million and a half."""


@dataclass(frozen=True)
class Row:
    """One side's gradient for one parameter; a standard error of 0 for quadrature."""

    side: str
    found: Tensor
    error: Tensor
    exact: Tensor

    @property
    def off(self) -> float:
        """In standard errors; for quadrature in units of 1e-6."""
        return ((self.found - self.exact) / self.error.clamp_min(1e-6)).abs().max().item()


def exact_discrete_gradient(alpha: float, num_samples: int) -> Tensor:
    """Of the sum over all tuples, their probabilities included."""
    # Through the probabilities of the tuples as well as through the weights: nothing is left out of ∂E.
    logits = LOGITS.clone().requires_grad_()
    log_q = logits.log_softmax(0)
    tuples = torch.tensor(list(itertools.product(range(3), repeat=num_samples)))
    values = ((1 - alpha) * (LOG_JOINT - log_q))[tuples].logsumexp(1) / (1 - alpha)
    (log_q[tuples].sum(1).exp() * values).sum().backward()
    return logits.grad


def mean_and_error(gradients: Tensor) -> tuple[Tensor, Tensor]:
    return gradients.mean(0), gradients.std(0) / math.sqrt(len(gradients))


def ours(gradient: iw.Gradient, alpha: float, num_samples: int, replications: int) -> Tensor:
    logits = LOGITS.repeat(replications, 1).requires_grad_()
    bound = iw.Renyi(alpha) if alpha else iw.IWAE()
    estimate = iw.estimate(lambda z: LOG_JOINT[z], Categorical(logits=logits), bound, gradient, num_samples=num_samples)
    estimate.value.sum().backward()
    return logits.grad


def pyros(alpha: float, num_samples: int, replications: int) -> Tensor:
    import pyro
    import pyro.distributions as dist
    from pyro.infer import RenyiELBO

    pyro.clear_param_store()
    # Only what the parameter store knows makes Pyro call backward.
    logits = pyro.param("logits", LOGITS.repeat(replications, 1))
    # Pyro wants densities: a likelihood of x = 1 that gives the joint above, for a uniform prior.
    prior, likelihood = torch.full((3,), 1 / 3, dtype=torch.float64), 3 * LOG_JOINT.exp()

    def model() -> None:
        with pyro.plate("data", replications):
            z = pyro.sample("z", dist.Categorical(prior))
            pyro.sample("x", dist.Bernoulli(likelihood[z], validate_args=False), obs=torch.ones(replications).double())

    def guide() -> None:
        with pyro.plate("data", replications):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits")))

    elbo = RenyiELBO(alpha=alpha, num_particles=num_samples, vectorize_particles=True, max_plate_nesting=1)
    elbo.loss_and_grads(model, guide)
    return -logits.unconstrained().grad  # of a loss


def discrete_rows(alpha: float, num_samples: int, replications: int) -> list[Row]:
    sides: dict[str, Callable[[], Tensor]] = {
        repr(rule): lambda rule=rule: ours(rule, alpha, num_samples, replications)
        for rule in (iw.VIMCO(), iw.ScoreFunction())
    }
    try:
        import pyro  # noqa: F401

        sides["Pyro, RenyiELBO"] = lambda: pyros(alpha, num_samples, replications)
    except ImportError:
        print("Pyro is not installed: its rows are left out.")
    exact, rows = exact_discrete_gradient(alpha, num_samples), []
    for side, gradients in sides.items():
        torch.manual_seed(0)
        rows.append(Row(f"alpha = {alpha:g}, K = {num_samples}, {side}", *mean_and_error(gradients()), exact))
    return rows


def pairs_of_noise(nodes: int = 60) -> tuple[Tensor, Tensor]:
    """(2, nodes²) noise and its probabilities: Gauss-Hermite in both samples."""
    z, weight = np.polynomial.hermite_e.hermegauss(nodes)
    z, weight = torch.from_numpy(z), torch.from_numpy(weight / math.sqrt(2 * math.pi))
    return torch.stack([z.repeat(nodes), z.repeat_interleave(nodes)]), torch.outer(weight, weight).flatten()


def gaussian_gradients(rule: str) -> tuple[Tensor, Tensor]:
    """∂E IWAE_2 for the model's θ and the proposal's (mean, log-scale): z ~ N(θ, 1), x | z ~ N(z, 1), x = 1.3."""
    noise, probability = pairs_of_noise()
    theta = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    phi = torch.tensor([0.1, -0.3], dtype=torch.float64, requires_grad=True)
    x = torch.tensor(1.3, dtype=torch.float64)

    def log_joint(z: Tensor) -> Tensor:
        return Normal(theta, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)

    def sample(_: tuple[int, ...]) -> Tensor:
        return phi[0] + phi[1].exp() * noise

    if rule == "iw.DReG()":
        # A proposal whose draws are the nodes: the expectation is then a weighted sum over the batch.
        proposal = iw.Proposal(sample, lambda z: Normal(phi[0], phi[1].exp()).log_prob(z))
        value = iw.estimate(log_joint, proposal, iw.IWAE(), iw.DReG(), num_samples=2).value
    else:
        z = sample((2,))
        # What copies of the doubly reparameterised gradient have: log q at fixed parameters, and squared weights.
        fixed = Normal(*(p.detach() for p in (phi[0], phi[1].exp())))
        if rule == "squared weights":
            log_w = log_joint(z) - fixed.log_prob(z)
            value = (log_w.softmax(0).detach().square() * log_w).sum(0)
        else:
            value = (log_joint(z) - Normal(phi[0], phi[1].exp()).log_prob(z)).logsumexp(0)
    (probability * value).sum().backward()
    return theta.grad.reshape(1), phi.grad


def gaussian_rows() -> list[Row]:
    # The plain reparameterised gradient of a weighted sum is the derivative of the expectation itself.
    exact = gaussian_gradients("autograd")
    rows = []
    for rule in ("iw.DReG()", "squared weights"):
        for name, found, truth in zip(("proposal", "model"), gaussian_gradients(rule)[::-1], exact[::-1], strict=True):
            rows.append(Row(f"{name}, {rule}", found, torch.zeros(()), truth))
    return rows


def show(title: str, rows: list[Row]) -> None:
    def numbers(values: Tensor) -> str:
        return ", ".join(f"{v:+.4f}" for v in values.tolist())

    cells = [
        [r.side, numbers(r.found), numbers(r.exact), f"{r.error.max():.4f}", "wrong" if r.off > LIMIT else "right"]
        for r in rows
    ]
    print(f"\n{title}\n" + table(["side", "found", "exact", "error", "verdict"], cells))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=400_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for a, k in ((0.0, 2), (0.0, 4), (0.5, 4)) for row in discrete_rows(a, k, options.replications)]
    show("A latent of three values: gradient of the guide's logits (alpha = 0 is IWAE)", rows)
    show("A Gaussian latent, K = 2: by quadrature", gaussian_rows())


if __name__ == "__main__":
    main()
