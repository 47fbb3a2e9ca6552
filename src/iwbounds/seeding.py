"""Seeds: the same one gives the same numbers, and the caller's random state is left as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derived_seed", "forked_rng"]


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """torch's global generators seeded inside, restored after.

    A user's sampler draws from the global generators, so a reproducible verdict has to seed them, in a fork. Samplers
    that draw from NumPy or from generators of their own are theirs to seed.

    >>> before = torch.get_rng_state()
    >>> with forked_rng(0): first = torch.rand(())
    >>> with forked_rng(0): second = torch.rand(())
    >>> bool(first == second), bool((torch.get_rng_state() == before).all())
    (True, True)
    """
    # Of all GPUs: a user's sampler may draw on any of them.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:
            # torch.manual_seed would also queue a call, with its stack trace, for a GPU that may never come: a leak.
            torch.default_generator.manual_seed(seed)
        yield


def derived_seed(*parts: object) -> int:
    """A 31-bit seed that depends on ``parts`` alone: not on the process, its hash seed or its random state.

    >>> derived_seed(0, "a test") == derived_seed(0, "a test"), derived_seed(0, "a test") == derived_seed(1, "a test")
    (True, False)
    """
    # Not hash(): Python salts that of strings anew in every process.
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
