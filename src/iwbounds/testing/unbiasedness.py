"""Is a gradient estimator unbiased for the gradient of the expected bound? Shown exactly, model and proposal apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from iwbounds.bounds.base import Bound
from iwbounds.bounds.iwae import IWAE
from iwbounds.checks import Latents
from iwbounds.engine import estimate
from iwbounds.engine.result import Estimate
from iwbounds.gradients.base import Gradient
from iwbounds.proposals.base import LogJoint
from iwbounds.seeding import forked_rng
from iwbounds.testing.betting import EProcess, symmetric_bets
from iwbounds.testing.densities import name_of, value_of
from iwbounds.testing.models import GradientProblem, categorical_problem, gaussian_problem

__all__ = ["GradientEstimator", "assert_grad_unbiased"]

GradientEstimator: TypeAlias = Callable[[LogJoint, Distribution, Bound, Latents], Tensor | Estimate]
"""``(log_joint, proposal, bound, samples)`` to ``(*batch)`` values whose backward is the estimator."""

_CHANNELS = ("model", "proposal")
_BURN_IN, _ROUNDS, _AVERAGED = 8, 300, 64
_MOST_TERMS, _MOST_NODES = 65536, 64


def assert_grad_unbiased(
    estimator: Gradient | GradientEstimator,
    bound: Bound = IWAE(),
    method: Literal["enumerate", "hermite", "sequential"] = "enumerate",
    *,
    problem: GradientProblem | None = None,
    num_samples: int = 2,
    channels: Sequence[Literal["model", "proposal"]] = ("model", "proposal"),
    rtol: float = 1e-6,
    alpha: float = 1e-6,
    seed: int = 0,
) -> None:
    r"""Assert :math:`\mathbb E[\text{estimator}] = \partial\,\mathbb E[L]` for the parameters of model and proposal.

    ``"enumerate"`` sums over all tuples of K categorical draws, ``"hermite"`` integrates over the noise of K scalar
    Normal draws: both are exact expectations of the *value of the gradient*, so that a hook that never fires, a weight
    that is squared once too often, or a missing score term has nowhere to hide. ``"sequential"`` bets against the
    difference from a plain autograd estimator on the same draws, for models of any size.

    Args:
        estimator: an :class:`iwbounds.Gradient`; or a function of yours, ``estimator(log_joint, proposal, bound,
            samples)``, to ``(*batch)`` values whose backward is to be checked.
        bound: whose expected value is differentiated.
        method: how the expectation is taken.
        problem: a model of yours; None for a small categorical or Gaussian one in float64.
        num_samples: K. Enumeration and quadrature cost the K-th power.
        channels: whose parameters are compared. ``("model",)`` for wake updates, whose proposal follows no bound.
        rtol: largest error of the exact methods, relative to the largest entry of the channel's true gradient (taken as
            at least 0.1), and beyond three times the error of the quadrature, which is measured by taking a quarter of
            the nodes away.
        alpha: the probability of a false alarm of the sequential method.
        seed: of the sequential method's draws.

    Raises:
        AssertionError: biased, and the message names the channel and both gradients; or NaN or infinite, in any draw.
        ValueError: the method does not suit the proposal, or the estimator the bound.

    Assumption of the sequential method: differences, summed over the batch (and over repeated draws until 64 data are
    summed), are symmetric around 0 under the hypothesis, as sums nearly are.

    >>> import iwbounds as iw
    >>> assert_grad_unbiased(iw.VIMCO(), iw.IWAE(), "enumerate")
    >>> assert_grad_unbiased(iw.DReG(), iw.IWAE(), "hermite", channels=("proposal",))
    >>> assert_grad_unbiased(iw.STL(), iw.IWAE(), "hermite")
    Traceback (most recent call last):
    AssertionError: STL() is biased for the proposal's parameters of IWAE() with 2 samples: expected ...
    """
    problem = _default_problem(method) if problem is None else problem
    wanted = [channel in channels for channel in _CHANNELS]
    sides = _Sides(_callable(estimator), bound, problem, num_samples, wanted, name_of(estimator))
    name = f"{name_of(estimator)} is biased for the {{}}'s parameters of {bound!r} with {num_samples} samples: "
    if method == "sequential":
        with forked_rng(seed):
            _assert_indistinguishable(sides, alpha, name, f"Reproduce: seed={seed}, alpha={alpha!r}.")
    else:
        _assert_equal(sides, _METHODS[method], rtol, name)


@dataclass(frozen=True)
class _Sides:
    """The claimed gradient and the true one, side by side, of each channel that is compared."""

    estimator: GradientEstimator
    bound: Bound
    problem: GradientProblem
    num_samples: int
    wanted: Sequence[bool]
    name: str

    def expected(self, method: Method) -> tuple[list[Tensor], list[Tensor]]:
        """The claimed gradient's expectation, and the gradient of the bound's expectation."""
        log_joint, proposal = self.problem.build()
        samples, probabilities = method(proposal, self.num_samples)
        # The probabilities weigh the estimator's gradient and are constants to it; in the true expectation, below, they
        # carry the derivative of the sampling.
        claimed = probabilities.detach() * value_of(self.estimator(log_joint, proposal, self.bound, samples))
        true = probabilities * self.bound(log_joint(samples) - proposal.log_prob(samples))
        return self._both(claimed, true)

    def drawn(self) -> tuple[list[Tensor], list[Tensor]]:
        """The claimed gradient and an unbiased one, on the same fresh draws, summed over the batch."""
        log_joint, proposal = self.problem.build()
        sample = proposal.rsample if proposal.has_rsample else proposal.sample
        samples = sample(torch.Size((self.num_samples,)))
        claimed = value_of(self.estimator(log_joint, proposal, self.bound, samples))
        if proposal.has_rsample:
            true = self.bound(log_joint(samples) - proposal.log_prob(samples))
        else:
            true = self._scored(log_joint, proposal, samples)
        return self._both(claimed, true)

    def _both(self, claimed: Tensor, true: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of both values, known to be finite: no comparison sees a NaN, and no bet is lost by one."""
        sides = self._gradients(claimed), self._gradients(true)
        names = f"the estimator {self.name}", f"the plain autograd gradient of {self.bound!r}"
        for gradients, whose in zip(sides, names, strict=True):
            for channel, gradient in zip(_CHANNELS, gradients, strict=True):
                bad = gradient[~gradient.isfinite()]
                if bad.numel():
                    raise AssertionError(
                        f"expected finite gradients; {whose} gave {bad[0].item()} for {bad.numel()} of "
                        f"{gradient.numel()} entries of the {channel}'s parameters, with {self.num_samples} samples."
                    )
        return sides

    def _scored(self, log_joint: LogJoint, proposal: Distribution, samples: Latents) -> Tensor:
        """A value whose gradient is the bound's by the score function: plain autograd, none of the engine."""
        log_q = proposal.log_prob(samples)
        # Discrete draws: the derivative of their probabilities is the score, with the bound's value as reward.
        value = self.bound(log_joint(samples) - log_q)
        return value + value.detach() * log_q.sum(0)

    def _gradients(self, value: Tensor) -> list[Tensor]:
        """Flat gradients of the sum, of the model and of the proposal; empty where they are not compared."""
        parameters = self.problem.parameters
        # Retained, as the claimed and the true value share the graph that build has made.
        grads = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
        flat = [
            (torch.zeros_like(p) if grad is None else grad).flatten() for p, grad in zip(parameters, grads, strict=True)
        ]
        split = len(self.problem.model)
        chosen = [
            group if wanted else [] for group, wanted in zip((flat[:split], flat[split:]), self.wanted, strict=True)
        ]
        return [torch.cat(group) if group else torch.zeros(0) for group in chosen]


def _assert_equal(sides: _Sides, methods: Sequence[Method], rtol: float, name: str) -> None:
    """Compare by the first method; what the last one changes is the error of both."""
    # Enumeration has one method, whose error is then 0; quadrature is repeated with fewer nodes.
    fine, coarse = sides.expected(methods[0]), sides.expected(methods[-1])
    for channel, claimed, true, *others in zip(_CHANNELS, *fine, *coarse, strict=True):
        if not true.numel():
            continue
        error = sum(float((a - b).abs().max()) for a, b in zip((claimed, true), others, strict=True))
        allowed = rtol * max(0.1, float(true.abs().max())) + 3 * error
        # not ≤ rather than >, so that a NaN is a failure and not a pass.
        if not (claimed - true).abs().max() <= allowed:
            raise AssertionError(name.format(channel) + f"expected {_numbers(true)}; got {_numbers(claimed)}.")


def _assert_indistinguishable(sides: _Sides, alpha: float, name: str, reproduce: str) -> None:
    repeats = math.ceil(_AVERAGED / max(1, sides.problem.build()[1].batch_shape.numel()))

    def difference() -> Tensor:
        terms = [_beyond_rounding(*(torch.cat(side) for side in sides.drawn())) for _ in range(repeats)]
        return torch.stack(terms).sum(0)

    # From differences that are not bet on: a stake may depend on the past alone.
    scale = torch.stack([difference() for _ in range(_BURN_IN)]).square().mean(0).sqrt()
    process, total = EProcess(alpha), torch.zeros_like(scale)
    for _ in range(_ROUNDS):
        new = difference()
        total += new
        process.add(symmetric_bets(new.unsqueeze(0), scale))
        if process.rejected_at:
            # Bettors are laid out stake by stake, each with all statistics: what is left over is the parameter.
            at = process.best % len(scale)
            channel = _CHANNELS[int(at >= len(sides.drawn()[0][0]))]
            raise AssertionError(
                name.format(channel) + f"its difference from an unbiased one on the same draws averages "
                f"{float(total[at]) / process.count:.4g}, certain after {process.rejected_at} draws. {reproduce}"
            )


def _beyond_rounding(claimed: Tensor, true: Tensor) -> Tensor:
    """Their difference, 0 where it is as small as rounding makes it."""
    gap, size = claimed - true, torch.maximum(claimed.abs(), true.abs()).max()
    # Two orders of summation differ by a bias of rounding that a bettor would find after enough draws.
    return gap.masked_fill(gap.abs() <= 1e4 * torch.finfo(gap.dtype).eps * size, 0.0)


def _default_problem(method: str) -> GradientProblem:
    if method == "enumerate":
        return categorical_problem()
    if method in ("hermite", "sequential"):
        return gaussian_problem(2 if method == "hermite" else _AVERAGED)
    raise ValueError(f"expected method 'enumerate', 'hermite' or 'sequential'; got {method!r}.")


def _callable(estimator: Gradient | GradientEstimator) -> GradientEstimator:
    if not isinstance(estimator, Gradient):
        return estimator
    return lambda log_joint, proposal, bound, samples: estimate(log_joint, proposal, bound, estimator, samples=samples)


def _numbers(x: Tensor) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in x.tolist()[:6]) + (", …]" if x.numel() > 6 else "]")


class Expectation(NamedTuple):
    """Latents and probabilities of the terms of an expectation over K draws."""

    samples: Tensor
    """``(K, n, *batch, *event)``."""
    probabilities: Tensor
    """``(n, *batch)``, summing to one over n."""


def enumerated(proposal: Distribution, num_samples: int) -> Expectation:
    """All :math:`C^K` tuples of a finite proposal's values.

    Raises:
        ValueError: the proposal cannot be enumerated, or there are more than 65536 tuples.
    """
    if not proposal.has_enumerate_support:
        raise ValueError(
            f"method='enumerate' needs a proposal with finitely many values; got {type(proposal).__name__}. Use "
            "method='hermite' for a scalar Normal, method='sequential' for anything else."
        )
    support = proposal.enumerate_support(expand=True)
    size = len(support)
    if size**num_samples > _MOST_TERMS:
        raise ValueError(
            f"expected at most {_MOST_TERMS} tuples to enumerate; got {size} values ** {num_samples} samples = "
            f"{size**num_samples}. Lower num_samples or the number of values."
        )
    # All of them, so that the expectation is a sum and the comparison has no error but rounding.
    tuples = list(itertools.product(range(size), repeat=num_samples))
    samples = support[torch.tensor(tuples).T]
    return Expectation(samples, proposal.log_prob(samples).sum(0).exp())


def hermite(proposal: Distribution, num_samples: int, share_of_nodes: float = 1.0) -> Expectation:
    r"""Gauss–Hermite quadrature over the standard noise of a scalar Normal latent, ``z = loc + scale * noise``.

    With 64 nodes for K = 2, 40 for K = 3, 16 for K = 4, or a share of them; spectrally accurate for smooth integrands.

    Raises:
        ValueError: not a Normal with one latent number per datum.
    """
    base = proposal.base_dist if isinstance(proposal, Independent) else proposal
    if not isinstance(base, Normal) or proposal.event_shape.numel() != 1:
        raise ValueError(
            f"method='hermite' needs a Normal proposal with one latent number per datum; got {type(proposal).__name__} "
            f"with event shape {tuple(proposal.event_shape)}. Use method='sequential'."
        )
    count = round(share_of_nodes * min(_MOST_NODES, int(_MOST_TERMS ** (1 / num_samples) + 1e-9)))
    # Probabilists' polynomials, whose weight is e^(−x²/2): normalised below, the standard Normal's.
    nodes, weights = (torch.as_tensor(a, dtype=base.loc.dtype) for a in np.polynomial.hermite_e.hermegauss(count))
    noise = torch.cartesian_prod(*[nodes] * num_samples).reshape(-1, num_samples).T
    probabilities = torch.cartesian_prod(*[weights / weights.sum()] * num_samples).reshape(-1, num_samples).prod(1)
    shape = (num_samples, -1, *[1] * base.loc.ndim)
    samples = base.loc + base.scale * noise.reshape(shape).to(base.loc.device)
    return Expectation(samples, probabilities.reshape(-1, *[1] * len(proposal.batch_shape)).to(base.loc.device))


Method: TypeAlias = Callable[[Distribution, int], Expectation]

_METHODS: dict[str, Sequence[Method]] = {
    "enumerate": (enumerated,),
    "hermite": (hermite, partial(hermite, share_of_nodes=0.75)),
}
