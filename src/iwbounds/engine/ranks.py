"""Ranks that share one call: what they exchange, from which random streams they draw, and how they stop together.

A call starts with four numbers per rank, which settle the seed and how much work each rank has. When its own part is
done, every rank sends four more: whether it failed, how much it has, and of what shape. Data follow only where all is
well. A rank whose user's code raises sends its "failed" in place of the second four, so that it is an error on all
ranks, and not a wait for the timeout. Every rank takes part in the same collectives in the same order, whatever
happens to it.

Two things can be sharded. ``iw.estimate`` shards the *samples* of each datum: their log-weights cross ranks, and every
rank knows the whole bound. ``iw.accumulate`` and ``iw.evaluate`` shard the *data*: bounds never couple data, so that
numbers of data cross ranks, and what was found of them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from iwbounds.checks import Latents, latent_leaves
from iwbounds.seeding import forked_rng

__all__ = ["BOUND", "LEVEL", "SHIFT", "Ranks"]

LEVEL, SHIFT, BOUND = range(3)
"""What the ranks draw in common: a bound's number of samples, one shift of a table, and a bound's own randomness."""


class Ranks:
    """A process group, as one rank sees it during one call.

    Args:
        group: a ``torch.distributed`` process group that this process is a member of.
        number: how much this rank brings (samples, data); −1 for none. An error that it raises is one on all ranks.
        arguments: what must be the same on all ranks, and how messages call it.

    Raises:
        TypeError: not a process group.
        ValueError: another process's group; arguments that differ between ranks.
        RuntimeError: under ``torch.compile``; another rank failed.
    """

    def __init__(self, group: Any, number: Callable[[], int], **arguments: object) -> None:
        _check_group(group)
        self.group = group
        self.rank, self.size = int(group.rank()), int(group.size())
        self._awaited = True
        self._drawn = 0
        # Drawn on every rank, so that generators in one state stay in one state; rank 0's is taken.
        seed = int(torch.randint(2**62, (), device="cpu"))
        try:
            mine = number()
        except Exception as error:
            self._stop(error)
            raise
        text = ", ".join(f"{name}={_described(value)}" for name, value in arguments.items())
        rows = self.exchange(seed, mine, _digest(text.encode()))
        self._check_same([row[2] for row in rows], text, "to be called with the same arguments on")
        self.seed = rows[0][0]
        self.numbers = [row[1] for row in rows]

    def shares(self, count: int) -> tuple[int, ...]:
        """How many of ``count`` samples each rank has: equal parts, the first ranks one more where they must.

        Raises:
            ValueError: fewer samples than ranks.
        """
        if count < self.size:
            raise ValueError(
                f"expected at least one sample for each of the {self.size} ranks of process_group; got {count}. Raise "
                "num_samples, or shard the data over the ranks, not the samples."
            )
        # As equal as may be: the slowest rank, with the most samples, is what all others wait for.
        whole, rest = divmod(count, self.size)
        return tuple(whole + (rank < rest) for rank in range(self.size))

    # Random streams.

    def own_stream(self) -> AbstractContextManager[None]:
        """torch's generators in a state that is no other rank's, and put back afterwards.

        Neighbouring seeds differ, so the streams of a call are distinct for certain, also where all ranks were seeded
        alike. They come from rank 0's generator alone, which moves on by one number per call.
        """
        return forked_rng(self.seed + self.rank)

    def shared_stream(self, purpose: int) -> AbstractContextManager[None]:
        """torch's generators in one state on all ranks, another for each purpose."""
        return forked_rng(self.seed + self.size + purpose)

    def note_draws(self, latents: Latents) -> None:
        """Remember some numbers of the first sample drawn: no two ranks may have the same ones.

        A sampler with a generator of its own, seeded alike on all ranks, would make every rank's samples copies of one
        another, and the bound that of a fraction of the samples.
        """
        first = torch.cat([z[:1].detach().flatten()[:16].double().cpu() for z in latent_leaves(latents)])
        # A few numbers may well be equal by chance.
        if self._drawn == 0 and len(first) >= 4:
            self._drawn = _digest(first.numpy().tobytes())

    # What the ranks do together.

    @contextmanager
    def together(self) -> Iterator[None]:
        """This rank's part of the call, from its own stream. An error inside stops all ranks."""
        try:
            with self.own_stream():
                yield
        except Exception as error:
            # After the last exchange nobody waits for this rank any more.
            if self._awaited:
                self._stop(error)
            raise

    def gather(self, *tensors: Tensor) -> list[Tensor]:
        """Each tensor's rows of all ranks, in the order of the ranks; detached, and of any number on each rank.

        Padded to the longest: a rank sends as many rows as any other.

        Raises:
            ValueError: on all ranks, where shapes behind the rows, or dtypes, differ, naming the ranks; and where two
                ranks have drawn the same samples.
            RuntimeError: another rank failed.
        """
        kinds = "; ".join(f"(rows, {', '.join(map(str, t.shape[1:]))}) {t.dtype}" for t in tensors)
        self._awaited = False
        rows = self.exchange(len(tensors[0]), _digest(kinds.encode()), self._drawn)
        self._check_same([row[1] for row in rows], kinds, "to return log-weights of one shape and dtype on")
        self._check_distinct([row[2] for row in rows])
        return [self._joined(tensor.detach(), [row[0] for row in rows]) for tensor in tensors]

    def confirm(self, last: bool = True) -> None:
        """Wait until every rank has come so far; an error where one failed. Not ``last`` where more is exchanged."""
        self._awaited = not last
        self.exchange()

    def gather_objects(self, mine: Any) -> list[Any]:
        """One object of each rank, by pickle: for what is small, or made once."""
        found: list[Any] = [None] * self.size
        self._collective(dist.all_gather_object, found, mine)
        return found

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks of tensors of one shape; a new tensor, where ``tensor`` was."""
        # A copy, as the collective writes in place, and whoever gave the tensor still has it.
        total = tensor.detach().to(self._place(tensor.device), copy=True).contiguous()
        self._collective(dist.all_reduce, total)
        return total.to(tensor.device)

    def exchange(self, *numbers: int, error: Exception | None = None) -> list[list[int]]:
        """Up to three whole numbers of each rank, and the word that none of them has failed.

        Raises:
            RuntimeError: another rank has failed, naming it and what it raised.
        """
        mine = torch.zeros(4, dtype=torch.int64)
        mine[: 1 + len(numbers)] = torch.tensor([error is not None, *numbers])
        # Four numbers from everyone, be there an error or not, so that nobody is left waiting for more.
        rows = self._joined(mine.unsqueeze(0), [1] * self.size).tolist()
        failed = [rank for rank, row in enumerate(rows) if row[0]]
        if failed:
            said = self._last_words("" if error is None else f"{type(error).__name__}: {error}")
            if error is None:
                raise RuntimeError(
                    f"rank {failed[0]} of {self.size} stopped, and all ranks with it (this is rank {self.rank}). It "
                    f"raised {said[failed[0]]}"
                )
        return [row[1:] for row in rows]

    def _stop(self, error: Exception) -> None:
        """Send this rank's failure in place of the numbers that the others wait for."""
        self._awaited = False
        self.exchange(error=error)

    def _last_words(self, mine: str) -> list[str]:
        """What every rank says before all of them raise."""
        self._awaited = False
        said = self.gather_objects(mine)
        # A rank that exits at once may close its connections before the others have read from them; so all wait once
        # more, and what goes wrong in that wait changes nothing.
        with suppress(RuntimeError):
            dist.barrier(self.group)
        return said

    def _check_same(self, digests: Sequence[int], mine: str, expected: str) -> None:
        if len(set(digests)) == 1:
            return
        said = self._last_words(mine)
        # The odd ones out; of two kinds that are as frequent, rank 0's is the one expected.
        usual = max(Counter(digests).items(), key=lambda pair: (pair[1], pair[0] == digests[0]))[0]
        odd = [rank for rank, digest in enumerate(digests) if digest != usual]
        found = "; ".join(f"{said[rank]} on rank {rank}" for rank in odd)
        raise ValueError(
            f"expected iwbounds {expected} all {self.size} ranks of process_group: {said[digests.index(usual)]}; got "
            f"{found}. Give all ranks the same data, model and options."
        )

    def _check_distinct(self, digests: Sequence[int]) -> None:
        first: dict[int, int] = {}
        for rank, digest in enumerate(digests):
            if digest and first.setdefault(digest, rank) != rank:
                raise ValueError(
                    f"expected every rank to draw samples of its own; ranks {first[digest]} and {rank} drew the same. "
                    "Their sampler does not draw from torch's global generators: seed its own differently on each rank."
                )

    def _joined(self, tensor: Tensor, sizes: list[int]) -> Tensor:
        most = max(sizes)
        sent = tensor.to(self._place(tensor.device)).contiguous()
        if len(sent) < most:
            sent = torch.cat([sent, sent.new_zeros(most - len(sent), *sent.shape[1:])])
        # One buffer, received into by views of it: a list of tensors to concatenate would hold everything twice.
        received = sent.new_empty(self.size, *sent.shape)
        self._collective(dist.all_gather, list(received), sent)
        # No rank was padded: the rows lie one after the other already.
        if min(sizes) == most:
            return received.flatten(0, 1).to(tensor.device)
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)]).to(tensor.device)

    def _place(self, device: torch.device) -> torch.device:
        """Where the group can send a tensor of this device from. gloo gathers on the CPU."""
        backends = dict(part.split(":") for part in dist.get_backend_config(self.group).split(","))
        # A backend of the device's own, NCCL say, sends from where the tensor is.
        if backends.get(device.type, "gloo") != "gloo":
            return device
        if "cpu" in backends:
            return torch.device("cpu")
        kind = next(iter(backends))
        return torch.device(kind, torch.get_device_module(kind).current_device())

    def _collective(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments, group=self.group)
        except RuntimeError as error:  # the backends' errors are of this class
            self._awaited = False  # a second attempt would wait for the timeout once more
            raise RuntimeError(
                f"rank {self.rank} of {self.size} could not exchange with the others: a rank has died, or did not "
                "arrive within the group's timeout (init_process_group(timeout=…)). Nothing of this call can be used; "
                "start all ranks anew."
            ) from error


def _check_group(group: Any) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "process_group exchanges numbers with other ranks, which torch.compile cannot trace. Compile the model's "
            "modules instead, or drop process_group inside compiled code."
        )
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("expected a process_group that this process belongs to; got one of others. Call on its ranks.")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"expected process_group to be a torch.distributed.ProcessGroup; got {type(group).__name__}. Pass "
            "torch.distributed.group.WORLD, or what new_group or DeviceMesh.get_group returned."
        )


def _described(value: object) -> str:
    """The same on all ranks: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _digest(value: bytes) -> int:
    """62 bits, never 0."""
    # Two bits fewer than 64, as the exchange is of signed numbers; never 0, which stands for nothing drawn.
    return (int.from_bytes(hashlib.sha256(value).digest()[:8], "big") >> 2) or 1
