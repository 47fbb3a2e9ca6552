r"""How far a chain has come at each step, β, and how large its steps are: fixed numbers, tensors, or learned.

A chain of T steps goes through :math:`\pi_\beta = p(x,\cdot)^\beta\, q^{1-\beta}` from :math:`\beta_0 = 0` to
:math:`\beta_T = 1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from iwbounds.checks import check_whole_number

__all__ = ["LearnedSchedule", "LearnedStepSize", "Schedule", "StepSize", "betas_of", "check_positive", "number_at"]

StepSize: TypeAlias = float | Tensor | Callable[[int], Tensor | float]
"""A number, a tensor that broadcasts over the latents, or a callable from the step 0..T−1 to one of these."""

Schedule: TypeAlias = Sequence[float] | Tensor | Callable[[], Tensor]
"""β_0..β_T: numbers, a tensor ``(T + 1,)`` or ``(T + 1, *batch)``, or a callable that returns such a tensor."""


class LearnedSchedule(nn.Module):
    r"""A schedule whose increments are a softmax of free numbers: it increases from 0 to 1 whatever they are.

    Called without arguments, it gives :math:`\beta_{0..T}`, ``(num_steps + 1,)``. Starts linear.

    Args:
        num_steps: T, 1 or more.

    >>> LearnedSchedule(4)().tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(check_whole_number("num_steps", num_steps, 1)))

    def forward(self) -> Tensor:
        """β_0..β_T."""
        # The last sum is 1 but for rounding, with a derivative of zero: exactly 1 is what AIS needs.
        inner = self.logits.softmax(0)[:-1].cumsum(0)
        return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])


class LearnedStepSize(nn.Module):
    r"""A positive step size, the exponential of a free number for each dimension (or of one for all).

    Called with a step, it gives the same size at every step; a callable of your own may depend on the step.

    Args:
        initial: where it starts: a positive number, or a positive tensor that broadcasts over the latents.

    Raises:
        ValueError: not positive.

    >>> round(LearnedStepSize(0.1)(0).item(), 4)
    0.1
    """

    def __init__(self, initial: float | Tensor) -> None:
        super().__init__()
        # A number takes the default dtype, as every parameter of a module does.
        start = torch.as_tensor(initial, dtype=None if isinstance(initial, Tensor) else torch.get_default_dtype())
        if not bool((start > 0).all()):
            raise ValueError(f"expected a positive initial step size; got {initial}. Pass one such as 0.05.")
        self.log_size = nn.Parameter(start.detach().log())

    def forward(self, step: int = 0) -> Tensor:  # noqa: ARG002
        """The step size at ``step``."""
        # Positive whatever the optimiser does to the free number.
        return self.log_size.exp()


def check_positive(name: str, value: object) -> None:
    """Raise where ``value`` is neither a positive number nor a floating tensor nor callable.

    The numbers in a tensor are not looked at, which may be learned and on a GPU: the root of a negative one is NaN.
    """
    # True is an integer to Python, and would be a step size of 1.
    if isinstance(value, bool) or not (isinstance(value, int | float | Tensor) or callable(value)):
        raise TypeError(
            f"expected {name} to be a positive number, a tensor, or a callable from the step to one; got "
            f"{type(value).__name__}."
        )
    if isinstance(value, Tensor) and not value.is_floating_point():
        raise TypeError(f"expected {name} to be a floating tensor; got {value.dtype}. Convert it with .float().")
    if isinstance(value, int | float) and not 0 < value < math.inf:
        raise ValueError(f"expected {name} to be positive and finite; got {value}. Try one near 0.05.")


def number_at(name: str, value: StepSize, step: int, z: Tensor) -> Tensor:
    """``value`` at ``step``, in the dtype and on the device of the latents, over which it broadcasts.

    Raises:
        ValueError: it does not broadcast over them, or would enlarge them.
    """
    # as_tensor keeps the graph of a tensor that is converted.
    found = torch.as_tensor(value(step) if callable(value) else value, dtype=z.dtype, device=z.device)
    if not _fits(found.shape, z.shape):
        raise ValueError(
            f"expected {name} to broadcast over the latents {tuple(z.shape)} = (num_samples, *batch, *event); got "
            f"{tuple(found.shape)}. Give one number, or one for each dimension of the event."
        )
    return found


def _fits(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether ``shape`` broadcasts to ``whole`` and no further."""
    # broadcast_shapes would also accept a shape that makes the latents larger.
    last = whole[len(whole) - len(shape) :]
    return len(shape) <= len(whole) and all(one in (1, other) for one, other in zip(shape, last, strict=True))


def betas_of(schedule: Schedule | None, num_steps: int) -> Tensor:
    """β_0..β_T, ``(T + 1,)`` or ``(T + 1, *batch)``; linear where ``schedule`` is None.

    Raises:
        ValueError: not T + 1 of them.
    """
    if schedule is None:
        # Double, whatever the latents are: increments of 1/T are differences of nearly equal numbers.
        return torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)
    found = schedule() if callable(schedule) else schedule
    betas = found if isinstance(found, Tensor) else torch.tensor(list(found), dtype=torch.float64)
    if betas.ndim == 0 or betas.shape[0] != num_steps + 1 or not betas.is_floating_point():
        raise ValueError(
            f"expected a schedule of num_steps + 1 = {num_steps + 1} floating numbers β_0 = 0, …, β_T = 1 along its "
            f"first axis; got {tuple(betas.shape)} of {betas.dtype}. None is the linear one."
        )
    return betas
