"""What every rank checks of ``iw.accumulate(process_group=)`` and of DistributedDataParallel, against one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import iwbounds as iw
from tests.distributed.models import Gaussian, data, flat_gradient
from tests.distributed.sharded_samples import own_rows

N, K = 7, 6
GRADIENTS: dict[str, Callable[[], iw.Gradient | None]] = {
    "default": lambda: None,
    "reparameterized": iw.Reparameterized,
    "vimco": iw.VIMCO,
    "baseline": lambda: iw.ScoreFunction(iw.RunningMean(0.5)),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_live_samples": K},  # a datum at a time: ranks have other numbers of parts
    {"max_live_samples": 2 * K},
    {"max_live_samples": 2},  # and samples in chunks
    {"chunk_size": 4},
    {"backward_samples": K},  # of K: all, but by the way of few
]


def gradient_of(model: torch.nn.Module) -> Tensor:
    """What is in ``.grad``, taken out of it."""
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def accumulated(group: dist.ProcessGroup, wrapped: bool) -> int:
    """``.grad`` of uneven parts of the data: summed by hand, or synchronised by DistributedDataParallel."""
    x, model, cases = data(N), Gaussian(), 0
    rows = own_rows(group, N)
    shared = DistributedDataParallel(model, process_group=group) if wrapped else model
    for name, gradient in GRADIENTS.items():
        one, many = gradient(), gradient()
        for options in OPTIONS:
            z = model.samples(x, K)
            value = iw.estimate(*model(x), gradient=one, samples=z).value
            expected = flat_gradient(-value.mean(), model)
            part = model.samples(x, K)[:, rows]
            if wrapped:  # the wrapped module alone may be walked
                part = part.detach() if name in ("vimco", "baseline") else None
            draws = {"num_samples": K} if part is None else {"samples": part}
            found = iw.accumulate(shared, x[rows], gradient=many, process_group=group, **draws, **options)
            mine = gradient_of(model)
            label = f"{name}, {options}"
            if part is None:
                _assert_one_gradient(group, mine, label)
            else:
                if not wrapped:
                    dist.all_reduce(mine)
                torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=label: f"{n}: {m}")
                torch.testing.assert_close(found.value, value.detach()[rows], rtol=1e-9, atol=1e-9)
            if name == "baseline":
                torch.testing.assert_close(many.baseline(), one.baseline(), rtol=1e-9, atol=1e-9)
            cases += 1
    return cases


def _assert_one_gradient(group: dist.ProcessGroup, mine: Tensor, label: str) -> None:
    """Equal on all ranks, to the bit."""
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine)
    for other in everyone:
        assert torch.equal(other, mine), label
    assert mine.norm() > 0


class Fixed(Gaussian):
    """Draws that are known, from the noise in the first columns of the data: one process can repeat them."""

    def forward(self, x: Tensor) -> tuple[Any, iw.Proposal]:
        log_joint, q = super().forward(x)
        noise = torch.outer(torch.arange(-2.0, 4.0, dtype=torch.float64), x[:, 0]).unsqueeze(-1)

        def sample(shape: tuple[int]) -> Tensor:
            rows = noise[: shape[0]] if len(noise) == K else noise
            return self.placed(x, rows.expand(-1, -1, 2) * torch.tensor([1.0, -0.7], dtype=torch.float64))

        return log_joint, iw.Proposal(sample, q.log_prob)


def paths_under_ddp(group: dist.ProcessGroup) -> int:
    """Pathwise gradients, drawn inside: DistributedDataParallel leaves every rank with that of one process."""
    x, model, rows = data(N), Fixed(), own_rows(group, N)
    shared = DistributedDataParallel(model, process_group=group)
    for gradient in (iw.DReG(), iw.Reparameterized(), iw.STL()):
        for options in OPTIONS:
            expected = flat_gradient(-iw.estimate(*model(x), gradient=gradient, num_samples=K).value.mean(), model)
            iw.accumulate(shared, x[rows], gradient=gradient, num_samples=K, process_group=group, **options)
            found = gradient_of(model)
            label = f"{gradient!r}, {options}"
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=label: f"{n}: {m}")
            _assert_one_gradient(group, found, label)
    return 1


def estimates_under_ddp(group: dist.ProcessGroup) -> int:
    """One estimate per step, its samples sharded, or its data: what the mean over ranks asks for."""
    x, model = data(group.size() * 2), Gaussian()
    shared = DistributedDataParallel(model, process_group=group)
    for options in ({}, {"chunk_size": 2}, {"backward_samples": 4}, {"gradient": iw.VIMCO()}):
        torch.manual_seed(7)
        estimate = iw.estimate(*shared(x), num_samples=K, process_group=group, keep_samples=True, **options)
        (-group.size() * estimate.value.mean()).backward()
        found = gradient_of(model)
        _assert_one_gradient(group, found, f"samples, {options}")
        if "backward_samples" not in options:
            z = model.placed(x, model.noise(x, estimate.samples))
            z = z.detach() if "gradient" in options else z
            alone = iw.estimate(*model(x), samples=z, gradient=options.get("gradient"))
            expected = flat_gradient(-alone.value.mean(), model)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        rows = own_rows(group, len(x))
        (-iw.estimate(*shared(x[rows]), num_samples=K, **options).value.mean()).backward()
        _assert_one_gradient(group, gradient_of(model), f"data, {options}")
    return 1


def refusals(group: dist.ProcessGroup) -> list[str]:
    x, found = data(4), []
    unused = DistributedDataParallel(Gaussian(), process_group=group, find_unused_parameters=True)
    inside = DistributedDataParallel(Gaussian(), process_group=group)

    def model(x: Tensor) -> Any:
        return inside(x)

    def failing(x: Tensor) -> Any:
        if group.rank() == 1 and float(x[0, 0]) == float(data(4)[3, 0]):
            raise ZeroDivisionError("in a later part")
        return Gaussian()(x)

    for call in (
        lambda: iw.accumulate(inside, x, K, num_samples=K),
        lambda: iw.accumulate(unused, x, K, num_samples=K, process_group=group),
        lambda: iw.accumulate(model, x, 2, num_samples=K, process_group=group),
        lambda: iw.accumulate(failing, x, K, num_samples=K, process_group=group),
        lambda: iw.accumulate(failing, x[: 1 - group.rank()], num_samples=K, process_group=group),
    ):
        try:
            call()
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            found.append(str(error))
    return found
