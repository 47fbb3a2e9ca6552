"""The contract between a user's model, a user's proposal and this library, checked in one call."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from iwbounds.checks import Latents, check_latents, latent_leaves, map_latents
from iwbounds.posterior import expanded
from iwbounds.proposals.base import LogJoint, Proposal
from iwbounds.seeding import forked_rng
from iwbounds.testing.betting import check_alpha
from iwbounds.testing.charts import UnjudgedError
from iwbounds.testing.densities import (
    PROPOSAL,
    ContractError,
    called,
    densities,
    first_line,
    log_parts,
    log_proposal,
    parts_as_claimed,
    with_density,
)
from iwbounds.testing.draws import draws_fault
from iwbounds.testing.sampling import gradient_fault, independence_fault

__all__ = ["ContractError", "UncheckedWarning", "check_contract"]

_SUPPORT_DRAWS = 64
_MODULE_DEPTH = 3


class UncheckedWarning(UserWarning):
    """A clause of the contract that could not be judged, and why; all others were."""


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

    In this order: shape, dtype and device of latents and log-densities, one log-density per part of mixed latents; no
    NaN, no infinity; the same value for the same latents (no dropout, no state, no knowledge of the tensor itself) and
    for any number of samples; each datum's density a function of its own latents only, and each sample's of its own
    (no BatchNorm in training, no sum over the batch, no latent shared by the data of a batch); ``x`` and the modules in
    use left as they were; no proposal draw outside the model's support; draws that are independent; ``log_prob`` the
    density of what is sampled; a support that does not move with the parameters; and samples that carry the gradient
    they claim. What a proposal says of itself is taken into account: ``independent=False``, ``fixed_support=False``,
    ``needs_own_samples=True`` and ``total_derivative_only=True`` switch off what they deny.

    Args:
        log_joint: latents ``(K, *batch, *event)`` to ``(K, *batch)`` nats; closes over the data and the model.
        proposal: a torch ``Distribution`` or :class:`iwbounds.Proposal`. Of a hierarchical one, check the parts.
        x: the data that ``log_joint`` closes over: a tensor, or a tuple or dict of them, with leading axes ``batch``.
            They are compared with the proposal's batch shape, and must not be changed by a call. None: not checked.
        K: samples in the checks of shape and independence, at least 2. Choose it different from every other size.
        alpha: the probability of a false alarm, of the statistical checks (draws, density, support, path) together.
            All others are exact.
        seed: of everything that is drawn from torch's generators; their state is restored.

    Raises:
        ContractError: (an AssertionError and a ValueError) a clause is broken.
        TypeError, ValueError: a shape, dtype or device that :func:`iwbounds.estimate` refuses too, in its words; a
            hierarchical proposal, whose density is an integral.

    Warns:
        UncheckedWarning: log_prob or its gradient could not be judged: draws that float32 rounds onto the boundary of
            the support, densities of matrices other than correlations, on spheres, or that raise beside their draws.

    Limits: a support of the proposal that is *too small* shows only against posterior samples
    (:func:`iwbounds.testing.assert_sandwich`). The checks of log_prob are blind to a wrong constant of a discrete
    density over very many values, and of mixed latents. Without parameters that require grad there is no gradient to
    judge; with ``fixed_support=False``, ``total_derivative_only=True``, or several parts and ``needs_own_samples=True``
    it is not judged. Parameters are not changed;
    ``log_joint`` is called about a dozen times.

    >>> from iwbounds.testing import GaussianModel
    >>> model, x = GaussianModel(torch.ones(2, 1), torch.zeros(2), noise=0.7), torch.zeros(5, 2)
    >>> check_contract(lambda z: model.log_joint(x, z), model.proposal(x), x=x)
    >>> check_contract(lambda z: model.log_joint(x, z).mean(1, keepdim=True).expand(-1, 5), model.proposal(x), x=x)
    Traceback (most recent call last):
    iwbounds.testing.densities.ContractError: log_joint of a datum changes with the latents of other data...
    """
    if K < 2:
        raise ValueError(f"expected K of at least 2, to tell samples apart; got {K}.")
    check_alpha(alpha)
    # Before anything is called, so that a call in place shows.
    kept = map_latents(_copy, x)
    drawn = with_density(proposal)
    states = _Modules(log_joint, drawn.sample, drawn.log_prob)
    with forked_rng(seed):
        with torch.no_grad():
            _check_values(log_joint, drawn, K, x)
        # After the calls: whatever they did to the data or to buffers is there to be seen.
        _check_unchanged(x, kept)
        states.check()
        _check_statistics(proposal, drawn, alpha)


def _check_values(log_joint: LogJoint, proposal: Proposal, count: int, x: Any) -> None:
    """All that is exact, at draws of the proposal."""
    latents = proposal.sample((count,))
    check_latents(latents, count)
    if not isinstance(proposal.reparameterized, bool):
        parts_as_claimed(proposal.reparameterized, latents, "the proposal's sample")
    log_p, log_q = densities(log_joint, proposal, latents)
    _check_batch(latents, x, log_q.shape[1:])
    _check_finite("log_joint", log_p)
    _check_finite(PROPOSAL, log_q)
    _check_density("log_joint", lambda z: called(log_joint, z), proposal, count)
    # A proposal that says so is never handed copies or slices, which this would judge it by.
    if not proposal.needs_own_samples:
        _check_density(PROPOSAL, lambda z: log_proposal(proposal, z), proposal, count)
    # Three draws rarely reach a boundary; sixty-four see most supports that are too large.
    log_p, log_q = densities(log_joint, proposal, proposal.sample((_SUPPORT_DRAWS,)))
    _check_finite(PROPOSAL, log_q)
    _check_finite("log_joint", log_p)


def _check_batch(latents: Latents, x: Any, batch: torch.Size) -> None:
    for z in latent_leaves(latents):
        if z.shape[1 : 1 + len(batch)] != batch:
            raise ContractError(
                f"expected latents of shape (K, *batch, *event) with batch = {tuple(batch)}, as log_prob returns; got "
                f"{tuple(z.shape)}. Is the event summed in log_prob, and the sample axis first? With a latent that all "
                "data share, batch is (): sum both log-densities over the data."
            )
    for data in latent_leaves(x):
        if isinstance(data, Tensor) and data.shape[: len(batch)] != batch:
            raise ContractError(
                f"expected data x with leading axes batch = {tuple(batch)}, the proposal's batch shape; got "
                f"{tuple(data.shape)}. Are the proposal's axes in the order (*batch, *event)?"
            )


def _check_density(name: str, density: Callable[[Latents], Tensor], proposal: Proposal, count: int) -> None:
    """A function of the latents' values, row by row. Every check of the very samples comes right after their draw."""
    latents = proposal.sample((count,))
    value = density(latents)
    _check_repeatable(name, density, value, latents)
    _check_known_by_value(name, density, latents)
    _check_rows(name, density, value, latents, proposal.sample((count,)))
    # Once more at many draws: a cached inverse differs from a computed one only where its transform saturates.
    _check_known_by_value(name, density, proposal.sample((_SUPPORT_DRAWS,)))


def _check_repeatable(name: str, density: Callable[[Latents], Tensor], value: Tensor, latents: Latents) -> None:
    # To the last digit: the same operations on the same numbers on the same machine.
    if not _same(density(latents), value, ulps=0):
        raise ContractError(
            f"{name} gave two values for the same latents: it draws random numbers or changes a state when called. "
            "Call .eval() on modules with dropout or BatchNorm."
        )


def _check_known_by_value(name: str, density: Callable[[Latents], Tensor], latents: Latents) -> None:
    """Copies must have the densities of the samples themselves: chunks, resampled rows and detached leaves are copies.

    ``latents`` are the very tensors of the last call of ``sample``.
    """
    own = density(latents)
    try:
        copy = density(map_latents(torch.clone, latents))
    except Exception as error:  # whatever a lookup by identity raises
        found = f"raised {first_line(error)}"
    else:
        # Rounding of an inverse is allowed for, generously: the faults looked for are of another size.
        if copy.shape == own.shape and _same(copy, own, ulps=torch.finfo(own.dtype).eps ** -0.5):
            return
        found = "gave other values"
    if name == PROPOSAL:
        raise ContractError(
            f"{name} works on the very tensors that sample returned only: on a copy of them it {found}. Does it look "
            "up a cached inverse, or an attribute of the sample? Then say so: needs_own_samples=True."
        )
    raise ContractError(
        f"{name} must be a function of the latents' values; on a copy of them it {found}. It is called on slices and "
        "copies of what sample returned: look nothing up by the tensor itself, or by its attributes."
    )


def _check_rows(
    name: str, density: Callable[[Latents], Tensor], value: Tensor, latents: Latents, others: Latents
) -> None:
    """Row by row a function of the row's own latents."""
    # The first and the second: a shape that is built in shows with either, a mix of rows with one of them.
    for sample in range(2):
        try:
            alone = density(map_latents(lambda z, k=sample: z[k : k + 1], latents))
        except Exception as error:  # whatever a shape that is built in raises
            raise ContractError(
                f"{name} must take any number of samples; of one sample alone it raised {first_line(error)}."
            ) from error
        # 1024 units: a matrix product of one row may be summed in another order than that of several.
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
        # Others are draws too: zeros or noise might fall outside the support and raise for a reason of its own.
        mixed = map_latents(lambda z, o, kept=kept: torch.where(expanded(kept, z), z, o), latents, others)
        rows = kept.expand_as(value)
        # 64 units, as the shapes, and so nearly all orders of summation, are those of before.
        if not _same(density(mixed)[rows], value[rows], ulps=64):
            whose, what = ("sample", "samples") if axis == 0 else ("datum", "data")
            raise ContractError(
                f"{name} of a {whose} changes with the latents of other {what}: expected each {whose}'s density to "
                "depend on its own latents only. Sum over event dimensions only; BatchNorm in training mixes rows: "
                "call .eval(). With a latent that all data share, batch is (): sum both log-densities over the data."
            )


def _check_finite(name: str, value: Tensor) -> None:
    bad = value[~value.isfinite()]
    if bad.numel():
        raise ContractError(
            f"expected finite values from {name} at the proposal's own draws; got {bad[0].item()}, and {bad.numel()} "
            f"such values of {value.numel()}. If draws fall outside the model's support, use a proposal with that "
            "support (LogNormal or Gamma for a positive latent); if rounding puts them on its boundary, float64."
        )


def _check_unchanged(x: Any, kept: Any) -> None:
    for data, before in zip(latent_leaves(x), latent_leaves(kept), strict=True):
        # NaN, a missing value, is not equal to itself, and no change.
        if isinstance(data, Tensor) and not torch.equal(data.nan_to_num(), before.nan_to_num()):
            raise ContractError("the data x were changed by a call of log_joint or of the proposal: work on a copy.")


class _Modules:
    """The modules that functions can be seen to use, and their parameters and buffers as they are now.

    Values alone do not show a running average that is only read in evaluation mode.
    """

    def __init__(self, *functions: object) -> None:
        modules = {id(m): m for function in functions for m in _modules(function, _MODULE_DEPTH)}
        self._kept = [(module, {k: _copy(v) for k, v in module.state_dict().items()}) for module in modules.values()]

    def check(self) -> None:
        """Raise where a call has changed one of them."""
        for module, kept in self._kept:
            # Parameters and buffers alike: a running average is a buffer, a lazily made layer a parameter.
            now = module.state_dict()
            changed = [k for k, v in kept.items() if isinstance(v, Tensor) and not torch.equal(v, now[k])]
            if changed:
                raise ContractError(
                    f"{type(module).__name__} changes {changed[0]!r} when it is called. The densities may be called "
                    "any number of times: call .eval() on modules that keep running averages."
                )


def _modules(function: object, depth: int) -> Iterator[nn.Module]:
    """The modules among what ``function`` closes over, is bound to, or names in its globals."""
    if isinstance(function, nn.Module):
        yield function
        return
    inner = [getattr(function, "__self__", None), getattr(function, "func", None), *getattr(function, "args", ())]
    if inspect.isfunction(function):
        found = inspect.getclosurevars(function)
        inner += [*found.nonlocals.values(), *found.globals.values()]
    # Three steps deep, a lambda around a bound method around a module: farther lies the rest of the program.
    for value in inner if depth else []:
        if isinstance(value, nn.Module) or inspect.isroutine(value) or hasattr(value, "func"):
            yield from _modules(value, depth - 1)


def _check_statistics(given: Distribution | Proposal, proposal: Proposal, alpha: float) -> None:
    with torch.no_grad():
        batch = log_parts(proposal, proposal.sample((2,)))[0].shape[1:]
        # alpha is split: a quarter here, a quarter for the density, a half for the gradient's two tests.
        if proposal.independent and (fault := independence_fault(proposal, batch, alpha / 4)):
            raise ContractError(f"{proposal.name}: {fault}.")
        fault = _judged(lambda: draws_fault(given, proposal, batch, alpha / 4), proposal)
    if fault:
        raise ContractError(f"{proposal.name}: log_prob is not the log-density of what is sampled: {fault}.")
    if fault := _judged(lambda: gradient_fault(given, proposal, batch, alpha / 2), proposal):
        raise ContractError(f"{proposal.name}: {fault}.")


def _judged(check: Callable[[], str | None], proposal: Proposal) -> str | None:
    try:
        return check()
    except UnjudgedError as reason:
        warnings.warn(f"{proposal.name}: check_contract cannot judge {reason}.", UncheckedWarning, stacklevel=4)
        return None


def _same(first: Tensor, second: Tensor, ulps: float) -> bool:
    # Relative to the largest value: sums over events round by units of their terms, not of their result.
    allowed = ulps * torch.finfo(second.dtype).eps * second.abs().max().clamp_min(1.0) if second.numel() else 0.0
    return first.shape == second.shape and bool(((first - second).abs() <= allowed).all())


def _copy(data: Any) -> Any:
    return data.detach().clone() if isinstance(data, Tensor) else data
