"""What a rank does wrong, or dies of, in the middle of a call: what every rank then says."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributions import Normal

import iwbounds as iw
from tests.distributed.models import Gaussian, data


def said(group: dist.ProcessGroup, wrong: str) -> str:
    """Rank 1 does something wrong; the error of this rank."""
    x, model = data(), Gaussian()
    log_joint, q = model(x)
    options: dict[str, Any] = {"num_samples": 6}
    if group.rank() == 1:
        log_joint, q, options = _WRONG[wrong](x, log_joint, q, options)
    try:
        iw.estimate(log_joint, q, process_group=group, **options)
    except (ValueError, RuntimeError, ZeroDivisionError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _raising(*_: Any) -> Any:
    raise ZeroDivisionError("in the model")


def _own_batch(x: Any, log_joint: Any, q: Any, options: Any) -> Any:
    return (*Gaussian()(x[:2]), options)


def _single(x: Any, log_joint: Any, q: Any, options: Any) -> Any:
    return (*Gaussian().float()(x.float()), options)


_WRONG: dict[str, Any] = {
    "shape": _own_batch,
    "dtype": _single,
    "log_joint": lambda x, p, q, options: (_raising, q, options),
    "sampler": lambda x, p, q, options: (p, iw.Proposal(_raising, q.log_prob), options),
    "argument": lambda x, p, q, options: (p, q, options | {"chunk_size": 0}),
    "samples": lambda x, p, q, options: (p, q, {"samples": (torch.zeros(()), torch.zeros(()))}),
    "other number": lambda x, p, q, options: (p, q, {"num_samples": 7}),
    "no graph": lambda x, p, q, options: (p, q, options | {"backward_samples": 2}),
}


def own_generator(group: dist.ProcessGroup) -> str:
    """Every rank's sampler has a generator of its own, seeded alike."""
    x, model, generator = data(), Gaussian(), torch.Generator().manual_seed(0)
    log_joint, q = model(x)
    noise = torch.randn(3, 3, 2, dtype=torch.float64, generator=generator)
    try:
        iw.estimate(
            log_joint, iw.Proposal(lambda _: model.placed(x, noise), q.log_prob), num_samples=6, process_group=group
        )
    except ValueError as error:
        return str(error)
    return "nothing"


def killed(group: dist.ProcessGroup, when: str) -> str:
    """Rank 1 dies: before the call, or inside its log-joint."""
    if group.rank() == 1 and when == "before":
        os._exit(1)
    log_joint, q = Gaussian()(data())

    def dying(z: Any) -> Any:
        if group.rank() == 1:
            os._exit(1)
        return log_joint(z)

    try:
        iw.estimate(dying, q, num_samples=6, process_group=group)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def refused(group: dist.ProcessGroup) -> list[str]:
    """What every rank does wrong."""
    q = Normal(torch.zeros(3, requires_grad=True), 1.0)
    found = []
    calls: list[dict[str, Any]] = [
        {"num_samples": 1},
        {"samples": torch.zeros(2, 3), "num_samples": 3},
        {"process_group": "world"},
        {"process_group": dist.GroupMember.NON_GROUP_MEMBER},
    ]
    for options in calls:
        try:
            iw.estimate(q.log_prob, q, **({"process_group": group} | options))
        except (ValueError, TypeError) as error:
            found.append(str(error))
    return found
