r"""The two-level model behind a hierarchical proposal: drawing its variables, evaluating its three densities.

.. math:: \psi \sim q(\psi), \qquad z \sim q(z\mid\psi), \qquad
          v_k = \log q(\psi_k) + \log q(z\mid\psi_k) - \log\tau(\psi_k\mid z)

Auxiliary variables are stacked in front here, ``(num_aux, num_samples, *batch, *event)``, so that a reverse model (a
distribution over ψ for each z) draws and evaluates them with one call. As a latent, whose sample and batch axes come
first, they are stacked at the end (:func:`as_latent`, :func:`from_latent`): the one place that is found again without
knowing how many axes the batch and the event have.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Distribution

from iwbounds.proposals.base import Proposal
from iwbounds.proposals.distributions import as_proposal

__all__ = [
    "Density",
    "LogDensities",
    "Sampler",
    "TwoLevelModel",
    "as_latent",
    "as_mixing",
    "draw",
    "from_latent",
    "outside_checkpoints",
]

Sampler: TypeAlias = Callable[[tuple[int]], Tensor]
"""An implicit distribution: ``(num_samples,)`` to ``(num_samples, *batch, *event)``, differentiable."""

_SMALLEST_BLOCK = 16


class Density(Protocol):
    """What a conditional or a reverse model returns: a torch ``Distribution``, or an object with these methods."""

    def log_prob(self, value: Tensor, /) -> Any: ...


def as_latent(psi: Tensor) -> Tensor:
    """``(num_aux, num_samples, *batch, *event)`` to ``(num_samples, *batch, *event, num_aux)``, a view."""
    return psi.movedim(0, -1)


def from_latent(psi: Tensor) -> Tensor:
    """The inverse of :func:`as_latent`."""
    return psi.movedim(-1, 0)


def draw(density: Density, sample_shape: tuple[int, ...], has_path: bool, name: str) -> Tensor:
    """Samples of what a conditional or a reverse model returned, in the graph only where they carry a path.

    Raises:
        ValueError: they should carry one and gradients are on, but there is no ``rsample``.
    """
    reparameterized = getattr(density, "has_rsample", True)
    if has_path and torch.is_grad_enabled() and not reparameterized:
        raise ValueError(
            f"expected the {name} to return a distribution with rsample; got {type(density).__name__}, which has none. "
            "Say reparameterized=(z, psi) with False for the part that is not."
        )
    sample = getattr(density, "rsample", None) if reparameterized else None
    samples: Tensor = (sample or density.sample)(sample_shape)  # type: ignore[attr-defined]
    # rsample may be all there is; a path that was disclaimed must not be followed by accident.
    return samples if has_path else samples.detach()


def outside_checkpoints() -> saved_tensors_hooks:
    """A context whose graph saves its tensors as usual, though a checkpoint surrounds it."""
    # The innermost pair of hooks is the one that is asked: identity shields the graph from the checkpoint's.
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def _no_density(_: object) -> Tensor:
    raise TypeError(
        "expected a mixing distribution with a log_prob, as a reverse model or a score-function gradient needs its "
        "density; got one that can only be sampled. Give it a log_prob (iwbounds.Proposal), or use reverse=None."
    )


def as_mixing(mixing: Distribution | Proposal | Sampler) -> Proposal:
    """The mixing distribution as a proposal over ψ; a bare callable is taken to be an implicit one.

    Raises:
        TypeError: neither a ``Distribution`` nor a ``Proposal`` nor callable.
    """
    if isinstance(mixing, Distribution | Proposal):
        found = as_proposal(mixing)
        assert isinstance(found, Proposal), "neither is an extended one"
        return found
    if callable(mixing):
        # How large its samples are is not known before they are drawn: few are drawn in one call.
        return Proposal(mixing, _no_density, name="the mixing sampler", samples_per_call=_SMALLEST_BLOCK)
    raise TypeError(
        "expected mixing to be a torch Distribution, an iwbounds.Proposal, or a callable from (num_samples,) to "
        f"samples of psi; got {type(mixing).__name__}."
    )


class LogDensities(NamedTuple):
    """The densities of ``num_aux`` auxiliary variables for each z, each ``(num_aux, num_samples, *batch)`` nats."""

    mixing: Tensor | None
    """log q(ψ_k); None where it cancels (no reverse model) and is not asked for."""
    conditional: Tensor
    """log q(z | ψ_k)."""
    reverse: Tensor | None
    """log τ(ψ_k | z); None where τ is the mixing distribution."""

    @property
    def log_weights(self) -> Tensor:
        """v_k = log q(ψ_k) + log q(z | ψ_k) − log τ(ψ_k | z)."""
        # τ is q(ψ) itself, and cancels: an implicit ψ, without any density, will do.
        if self.mixing is None or self.reverse is None:
            return self.conditional
        return self.mixing + self.conditional - self.reverse

    @property
    def log_target(self) -> Tensor:
        """log τ(ψ_k | z), the mixing distribution being its own reverse model where there is no other."""
        target = self.mixing if self.reverse is None else self.reverse
        assert target is not None, "asked for with the mixing density"
        return target


@dataclass(frozen=True)
class TwoLevelModel:
    """q(ψ), q(z | ψ), τ(ψ | z), and which of z and ψ carry a path to their parameters."""

    mixing: Proposal
    conditional: Callable[[Tensor], Density]
    reverse: Callable[[Tensor], Density] | None
    z_has_path: bool
    psi_has_path: bool

    @property
    def has_density(self) -> bool:
        """Whether the density of ψ can be evaluated."""
        return self.mixing.log_prob is not _no_density

    def samples_per_call(self, num_psi: int, fraction: int = 1) -> int | None:
        """How many z, with ``num_psi`` auxiliary variables each, to draw in one call where memory is scarce.

        As many as have the elements (about a million), or a fraction of them, that the mixing distribution draws in one
        call. None where that one must draw everything in one call.
        """
        of_psi = self.mixing.samples_per_call
        if of_psi is None:
            return None
        # Multiples of 16, as in distributions._samples_per_call, so that blocks continue one sequence of numbers.
        return max(_SMALLEST_BLOCK, of_psi // (num_psi * fraction) // 16 * 16)

    def draw_mixing(self, num_aux: int, num_samples: int) -> Tensor:
        """``(num_aux, num_samples, *batch, *event)`` independent draws of ψ."""
        # A checkpoint of the engine's must not count what is made at the first draw alone (a Categorical's cached
        # probabilities), and has nothing to make anew where ψ carries no path.
        with nullcontext() if self.psi_has_path else outside_checkpoints():
            # One flat number: a sampler need not understand more axes than one.
            psi: object = self.mixing.sample((num_aux * num_samples,))
        if not isinstance(psi, Tensor) or psi.ndim == 0 or psi.shape[0] != num_aux * num_samples:
            found = tuple(psi.shape) if isinstance(psi, Tensor) else type(psi).__name__
            raise ValueError(
                f"expected mixing to return one tensor of {num_aux * num_samples} samples along its first axis; got "
                f"{found}. It must honour the sample_shape it is given."
            )
        return (psi if self.psi_has_path else psi.detach()).reshape(num_aux, num_samples, *psi.shape[1:])

    def draw_z(self, psi: Tensor) -> Tensor:
        """One z for each ψ."""
        return draw(self.conditional(psi), (), self.z_has_path, "conditional")

    def draw_pair(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """z and its own ψ, ``num_samples`` of each."""
        psi = self.draw_mixing(1, num_samples)[0]
        return self.draw_z(psi), psi

    def draw_auxiliary(self, z: Tensor, num_aux: int) -> Tensor:
        """``num_aux`` draws from τ(ψ | z), or from the mixing distribution without a reverse model."""
        if self.reverse is None:
            return self.draw_mixing(num_aux, z.shape[0])
        return draw(self.reverse(z), (num_aux,), self.psi_has_path, "reverse")

    def log_densities(self, z: Tensor, psi: Tensor, with_mixing: bool = False) -> LogDensities:
        """The densities of ψ ``(num_aux, num_samples, …)`` with z ``(num_samples, …)``.

        Raises:
            ValueError: they differ in shape, or ψ lacks the batch of z.
        """
        conditional = self.conditional(psi).log_prob(z.expand(psi.shape[0], *z.shape))
        if psi.shape[: conditional.ndim] != conditional.shape:
            raise ValueError(
                f"expected psi of shape (num_aux, num_samples, *batch, *event) with the leading shape of the "
                f"conditional's log_prob, {tuple(conditional.shape)}; got {tuple(psi.shape)}. Draw one psi per datum "
                "(mixing.expand(batch_shape)), and sum log_prob over the event dimensions (Independent)."
            )
        # One call of the network for all K + 1 variables: ψ's leading axis broadcasts against τ's batch, which is z's.
        reverse = None if self.reverse is None else self.reverse(z).log_prob(psi)
        mixing = self.mixing.log_prob(psi) if with_mixing or reverse is not None else None
        _check_shape("mixing", mixing, conditional)
        _check_shape("reverse", reverse, conditional)
        return LogDensities(mixing, conditional, reverse)

    def log_weights(self, z: Tensor, psi: Tensor) -> Tensor:
        """v, ``(num_aux, num_samples, *batch)``."""
        return self.log_densities(z, psi).log_weights

    def log_target(self, z: Tensor, psi: Tensor) -> Tensor:
        """log τ(ψ_k | z), ``(num_aux, num_samples, *batch)``."""
        density = self.mixing if self.reverse is None else self.reverse(z)
        return density.log_prob(psi)  # type: ignore[no-any-return]


def _check_shape(name: str, found: Tensor | None, conditional: Tensor) -> None:
    if found is not None and found.shape != conditional.shape:
        raise ValueError(
            f"expected the {name}'s log_prob to have the conditional's shape {tuple(conditional.shape)} = (num_aux, "
            f"num_samples, *batch); got {tuple(found.shape)}. Give it the batch shape of z, and sum over its event "
            "dimensions (Independent)."
        )
