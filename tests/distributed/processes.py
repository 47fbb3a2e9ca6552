"""Several processes, one group: start them, run one function in each, and bring back what it found or raised."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

# A process that has imported torch once, and forks: a group then starts in half a second. (Checkpoints and
# DistributedDataParallel import the compiler, which takes 1.4 seconds.)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "torch._dynamo", "iwbounds"])


class Failed(NamedTuple):
    """What a process raised."""

    name: str
    message: str
    trace: str = ""


def run_all(
    size: int, function: Callable[..., Any], folder: Path, *arguments: Any, timeout: float = 200.0
) -> list[Any]:
    """``function(group, *arguments)`` in ``size`` processes; what each returned, or a :class:`Failed`, or None for one
    that died. A process that is not done in time is ended, and counts as hung."""
    folder.mkdir(exist_ok=True)
    store = str(folder / f"store-{size}-{function.__name__}")
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(size)]
    processes = [
        _CONTEXT.Process(target=_main, args=(rank, size, store, timeout, sender, function, arguments), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()
    found = [_received(receiver, timeout) for receiver, _ in pipes]
    for process, (receiver, _) in zip(processes, pipes, strict=True):
        process.join(5)
        process.kill()  # of no effect on one that has ended
        receiver.close()
    return found


def results(
    size: int, function: Callable[..., Any], folder: Path, *arguments: Any, timeout: float = 200.0
) -> list[Any]:
    """As :func:`run_all`, where no process may fail."""
    found = run_all(size, function, folder, *arguments, timeout=timeout)
    for rank, one in enumerate(found):
        if isinstance(one, Failed):
            raise AssertionError(f"rank {rank} of {size}: {one.message}\n{one.trace}")
    return found


def _received(receiver: Connection, timeout: float) -> Any:
    if not receiver.poll(timeout):
        return Failed("hung", f"nothing after {timeout} seconds")
    try:
        return receiver.recv()
    except EOFError:  # it died
        return None


def _main(
    rank: int, size: int, store: str, timeout: float, sender: Connection, function: Callable[..., Any], arguments: Any
) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a host's name need not resolve where tests run
    seconds = timedelta(seconds=timeout / 4)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=seconds)
    try:
        sender.send(function(dist.group.WORLD, *arguments))
        with suppress(RuntimeError):  # one that exits first may close what the others still read from
            dist.barrier()
    except Exception as error:
        sender.send(Failed(type(error).__name__, str(error), traceback.format_exc()))
    sender.close()
    dist.destroy_process_group()
