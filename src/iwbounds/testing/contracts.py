"""The contract between a user's model, a user's proposal and this library, checked in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from iwbounds.checks import Latents, latent_leaves, map_latents
from iwbounds.proposals import LogJoint, Proposal
from iwbounds.seeding import forked_rng
from iwbounds.testing.betting import check_alpha
from iwbounds.testing.pathwise import pathwise_fault
from iwbounds.testing.self_consistency import self_consistency_fault
from iwbounds.testing.weights import densities, log_proposal, with_density

__all__ = ["ContractError", "check_contract"]

_SUPPORT_DRAWS = 64


class ContractError(AssertionError, ValueError):
    """A model or a proposal that breaks the contract; the message says which clause, and what to do."""


def check_contract(
    log_joint: LogJoint,
    proposal: Distribution | Proposal,
    *,
    x: Any = None,
    K: int = 3,  # noqa: N803 - the symbol of the papers
    alpha: float = 1e-6,
    seed: int = 0,
) -> None:
    """Check everything that :func:`iwbounds.estimate` takes on trust.

    In this order: shape, dtype and device of latents and log-densities; no NaN, no infinity; the same value for the
    same latents (no dropout, no state) and for any number of samples; each datum's density a function of its own
    latents only, and each sample's of its own (no BatchNorm in training, no sum over the batch); ``x`` left as it was;
    no proposal draw outside the model's support; samples that carry the gradient they claim; and ``log_prob`` the
    density of what is sampled.

    Args:
        log_joint: latents ``(K, *batch, *event)`` to ``(K, *batch)`` nats; closes over the data and the model.
        proposal: a torch ``Distribution`` or :class:`iwbounds.Proposal`. Of a hierarchical one, check the parts.
        x: the data that ``log_joint`` closes over: a tensor, or a tuple or dict of them, with leading axes ``batch``.
            They are compared with the proposal's batch shape, and must not be changed by a call. None: not checked.
        K: samples in the checks of shape and independence, at least 2. Choose it different from every other size.
        alpha: the probability of a false alarm, of the two statistical checks together. All others are exact.
        seed: of everything that is drawn from torch's generators; their state is restored.

    Raises:
        ContractError: (an AssertionError and a ValueError) a clause is broken.
        TypeError, ValueError: a shape, dtype or device that :func:`iwbounds.estimate` refuses too, in its words; a
            hierarchical proposal, whose density is an integral.

    Limits: a support of the proposal that is *too small* shows only against posterior samples
    (:func:`iwbounds.testing.assert_sandwich`). The checks of log_prob are blind to a wrong constant of a discrete
    density over very many values, and do not weigh mixed latents. Parameters are not changed; ``log_joint`` is called
    about ten times.

    >>> from iwbounds.testing import GaussianModel
    >>> model, x = GaussianModel(torch.ones(2, 1), torch.zeros(2), noise=0.7), torch.zeros(5, 2)
    >>> check_contract(lambda z: model.log_joint(x, z), model.proposal(x), x=x)
    >>> check_contract(lambda z: model.log_joint(x, z).mean(1, keepdim=True).expand(-1, 5), model.proposal(x), x=x)
    Traceback (most recent call last):
    iwbounds.testing.contracts.ContractError: log_joint of a datum changes with the latents of other data...
    """
    if K < 2:
        raise ValueError(f"expected K of at least 2, to tell samples apart; got {K}.")
    check_alpha(alpha)
    kept = map_latents(_copy, x)
    drawn = with_density(proposal, log_joint)
    with forked_rng(seed):
        with torch.no_grad():
            latents = drawn.sample((K,))
            log_p, log_q = densities(log_joint, drawn, latents)
            batch = log_q.shape[1:]
            _check_batch(latents, x, batch)
            for name, density, value in (
                ("log_joint", log_joint, log_p),
                ("the proposal's log_prob", lambda z: log_proposal(drawn, z), log_q),
            ):
                _check_density(name, density, value, latents, drawn.sample((K,)))
            _check_support(log_joint, drawn)
        _check_unchanged(x, kept)
        _check_statistics(proposal, drawn, batch, alpha)


def _check_batch(latents: Latents, x: Any, batch: torch.Size) -> None:
    for z in latent_leaves(latents):
        if z.shape[1 : 1 + len(batch)] != batch:
            raise ContractError(
                f"expected latents of shape (K, *batch, *event) with batch = {tuple(batch)}, as log_prob returns; got "
                f"{tuple(z.shape)}. Is the event summed in log_prob, and the sample axis first?"
            )
    for data in latent_leaves(x):
        if isinstance(data, Tensor) and data.shape[: len(batch)] != batch:
            raise ContractError(
                f"expected data x with leading axes batch = {tuple(batch)}, the proposal's batch shape; got "
                f"{tuple(data.shape)}. Are the proposal's axes in the order (*batch, *event)?"
            )


def _check_density(
    name: str, density: Callable[[Latents], Tensor], value: Tensor, latents: Latents, others: Latents
) -> None:
    """Finite, repeatable, and row by row a function of the row's own latents."""
    _check_finite(name, value)
    if not _same(density(latents), value, ulps=0):
        raise ContractError(
            f"{name} gave two values for the same latents: it draws random numbers or changes a state when called. "
            "Call .eval() on modules with dropout or BatchNorm."
        )
    for sample in range(2):
        alone = density(map_latents(lambda z, k=sample: z[k : k + 1], latents))
        if alone.shape != value[:1].shape or not _same(alone, value[sample : sample + 1], ulps=1024):
            raise ContractError(
                f"{name} of a sample changes with the other samples: one sample alone gave another value. Expected "
                "(K, *batch) for any K, each sample on its own. BatchNorm in training mixes samples: call .eval()."
            )
    for axis, size in enumerate(value.shape):
        if size > 1:
            _check_own_latents(name, density, value, latents, others, axis)


def _check_own_latents(
    name: str, density: Callable[[Latents], Tensor], value: Tensor, latents: Latents, others: Latents, axis: int
) -> None:
    """Replace every second row along ``axis``; the rest must keep their values, whatever the rows around them."""
    shape = [size if a == axis else 1 for a, size in enumerate(value.shape)]
    even = (torch.arange(value.shape[axis], device=value.device) % 2 == 0).reshape(shape)
    for kept in (even, ~even):
        mixed = map_latents(lambda z, o, kept=kept: torch.where(_over_event(kept, z), z, o), latents, others)
        rows = kept.expand_as(value)
        if not _same(density(mixed)[rows], value[rows], ulps=64):
            whose, what = ("sample", "samples") if axis == 0 else ("datum", "data")
            raise ContractError(
                f"{name} of a {whose} changes with the latents of other {what}: expected each {whose}'s density to "
                "depend on its own latents only. Sum over event dimensions only; BatchNorm in training mixes rows: "
                "call .eval()."
            )


def _check_support(log_joint: LogJoint, proposal: Proposal) -> None:
    log_p, log_q = densities(log_joint, proposal, proposal.sample((_SUPPORT_DRAWS,)))
    _check_finite("the proposal's log_prob", log_q)
    _check_finite("log_joint", log_p)


def _check_finite(name: str, value: Tensor) -> None:
    bad = value[~value.isfinite()]
    if bad.numel():
        raise ContractError(
            f"expected finite values from {name} at the proposal's own draws; got {bad[0].item()}, and {bad.numel()} "
            f"such values of {value.numel()}. If draws fall outside the model's support, use a proposal with that "
            "support (LogNormal or Gamma for a positive latent)."
        )


def _check_unchanged(x: Any, kept: Any) -> None:
    for data, before in zip(latent_leaves(x), latent_leaves(kept), strict=True):
        if isinstance(data, Tensor) and not torch.equal(data.nan_to_num(), before.nan_to_num()):
            raise ContractError("the data x were changed by a call of log_joint or of the proposal: work on a copy.")


def _check_statistics(given: Distribution | Proposal, proposal: Proposal, batch: torch.Size, alpha: float) -> None:
    with torch.no_grad():
        fault = self_consistency_fault(given, proposal, batch, alpha / 2)
    if fault:
        raise ContractError(f"{proposal.name}: log_prob is not the log-density of what is sampled: {fault}.")
    if fault := pathwise_fault(proposal, batch, alpha / 2):
        raise ContractError(f"{proposal.name}: {fault}.")


def _same(first: Tensor, second: Tensor, ulps: float) -> bool:
    allowed = ulps * torch.finfo(second.dtype).eps * second.abs().max().clamp_min(1.0) if second.numel() else 0.0
    return first.shape == second.shape and bool(((first - second).abs() <= allowed).all())


def _over_event(mask: Tensor, z: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (z.ndim - mask.ndim))


def _copy(data: Any) -> Any:
    return data.detach().clone() if isinstance(data, Tensor) else data
