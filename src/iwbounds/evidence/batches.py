"""Data as numbered batches: every datum once, under an index that settles its random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iwbounds.checks import latent_leaves, map_latents

__all__ = ["Batch", "count_data", "digest_of", "numbered_batches"]

_ROWS = 100
"""Data at once where a whole data set is given: fixed, as the seed of a batch goes by its first datum."""


class Batch(NamedTuple):
    """Some data, and what tells them from other data."""

    start: int
    """Index of the first datum."""
    x: Any
    """What the model is called with."""
    size: int
    digest: str
    """Of the values: the same index must mean the same datum in all parts of one report."""

    @property
    def stop(self) -> int:
        return self.start + self.size


def numbered_batches(data: Any, first: int) -> Iterator[Batch]:
    """The batches of ``data``, numbered from ``first``.

    Raises:
        TypeError: neither tensors nor an iterable of batches of tensors.
        ValueError: the tensors of a batch differ in their first axis.
    """
    for x in _batches(data):
        size = _batch_size(x)
        # A loader that filters its data may yield an empty batch: it has no seed and no row in the report.
        if size:
            yield Batch(first, x, size, digest_of(latent_leaves(x)))
        first += size


def count_data(data: Any) -> int | None:
    """How many data there are; None where only going through them would tell."""
    if _is_whole(data):
        return _batch_size(data)
    if isinstance(data, list):
        return sum(map(_batch_size, _batches(data)))
    # Samplers may leave data out, or repeat them: they know better than the data set how many they yield.
    sampler = getattr(data, "sampler", None)
    # drop_last leaves out what fills no batch: a number that the sampler does not know.
    if sampler is not None and not getattr(data, "drop_last", False):
        try:
            return len(sampler)
        except TypeError:  # a sampler of unknown length is allowed
            return None
    return None


def _is_whole(data: Any) -> bool:
    """A tensor, or a tuple or dict of tensors: the data set itself. A list is a list of batches."""
    return isinstance(data, Tensor | tuple | dict)


def _batches(data: Any) -> Iterator[Any]:
    if _is_whole(data):
        for start in range(0, _batch_size(data), _ROWS):
            yield map_latents(lambda leaf, rows=slice(start, start + _ROWS): leaf[rows], data)
    elif isinstance(data, Iterable):
        for x in data:
            # What a DataLoader makes of TensorDataset(x): a list of one tensor.
            yield x[0] if isinstance(x, list) and len(x) == 1 else x
    else:
        raise TypeError(
            f"expected data as a tensor, a tuple or dict of tensors, or an iterable of batches; got "
            f"{type(data).__name__}. Pass a DataLoader, or a list of tensors."
        )


def _batch_size(x: Any) -> int:
    """The first axis' size that all tensors in ``x`` share."""
    # None for a scalar, which has no rows: as a size of 0 it would pass for an empty batch.
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in latent_leaves(x) if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or None in sizes:
        found = "no tensor" if not sizes else f"first axes of sizes {sorted(map(str, sizes))}"
        raise ValueError(f"expected data whose tensors share their first axis, one row per datum; got {found}.")
    return int(next(iter(sizes)) or 0)


def digest_of(leaves: Iterable[Any]) -> str:
    """Sixteen hexadecimal digits that tell these values from others."""
    state = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            # Bytes, whatever the dtype: NumPy has no bfloat16.
            state.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            state.update(repr(leaf).encode())
    # 64 bits: a mix-up of data is to be seen by it, not an attack to be withstood.
    return state.hexdigest()[:16]
