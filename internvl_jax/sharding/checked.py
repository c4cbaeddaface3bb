"""Arrays on disk whose chunks have checksums: written whole chunk by whole chunk, checked wherever a slice is read.

The checksum of a chunk stands beside it, under `checksum/` and the chunk's numbers. Tensorstore's own CRC-32C is not
used: it costs a copy of every chunk, a quarter of the time that reading takes; this one is a sum of 64-bit words.
"""

import collections
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorstore as ts

from internvl_jax.errors import InputError

Index = tuple[slice, ...]
Bounds = list[tuple[int, int]]  # start and stop along every axis

_BLOCK = 512  # words
_AHEAD = 2  # chunks that are read while one is checked


def checksum(array: np.ndarray) -> int:
    """A sum of the array's 64-bit words modulo 2^64, each weighted by an odd number, which is that of its 4 KiB block:
    any word that differs changes it, and so do blocks that changed places.
    """
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(data) // (8 * _BLOCK) * (8 * _BLOCK)
    rest = np.zeros((1, _BLOCK), np.uint64)
    rest.view(np.uint8).reshape(-1)[: len(data) - whole] = data[whole:]
    sums = [part.sum(axis=1, dtype=np.uint64) for part in (data[:whole].view(np.uint64).reshape(-1, _BLOCK), rest)]
    words = np.concatenate(sums)
    return int((words * np.arange(1, 2 * len(words), 2, dtype=np.uint64)).sum(dtype=np.uint64))


class WritableArray:
    """An array, or a slice of one, that waits to be written."""

    def __init__(self, array: ts.TensorStore):
        self._array = array

    def __getitem__(self, index: Index) -> "WritableArray":
        return WritableArray(self._array[index])

    def write(self, values: np.ndarray) -> ts.WriteFutures:
        """Begins to write whole chunks, from memory that stays as it is."""
        start, size = self._array.domain.origin, self._array.chunk_layout.write_chunk.shape
        for chunk in _chunks(start, self._array.domain.exclusive_max, size):
            noted = checksum(values[_within(chunk, start)]).to_bytes(8, "little")
            self._array.kvstore.write(_key(chunk, size), noted).result()
        return self._array.write(values, can_reference_source_data_indefinitely=True)


class StoredArray:
    """An array on disk, with checksums or without.

    Args:
      file: where it is, for errors.
      name: what it is there.
    """

    def __init__(self, array: ts.TensorStore, file: pathlib.Path, name: str):
        self._array, self._file, self._name = array, file, name
        self.shape, self.dtype = tuple(array.shape), array.dtype.numpy_dtype
        self._size = array.chunk_layout.read_chunk.shape
        first = array.kvstore.read(_key([(0, 0)] * len(self.shape), self._size))
        self._checked = first.result().state == "value"

    def read(self, index: Index, dtype: np.dtype | None = None) -> np.ndarray:
        """A slice in its own or another dtype.

        Raises:
          InputError: a chunk is damaged. Tensorstore's own errors are ValueErrors.
        """
        dtype = np.dtype(dtype or self.dtype)
        if not self._checked:
            return ts.cast(self._array, dtype)[index].read().result()
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        start, stop = zip(*bounds) if bounds else ((), ())
        out = np.empty([b - a for a, b in bounds], dtype)
        pending: collections.deque[Callable[[], None]] = collections.deque()
        for part in _chunks(start, stop, self._size):
            pending.append(self._begin(part, out[_within(part, start)]))
            if len(pending) > _AHEAD:
                pending.popleft()()
        for finish in pending:
            finish()
        return out

    def _begin(self, part: Bounds, out: np.ndarray) -> Callable[[], None]:
        """Begins to read the chunk that a part is of; calling the result checks it and puts the part into `out`."""
        chunk = [(a // s * s, min(-(-b // s) * s, n)) for (a, b), s, n in zip(part, self._size, self.shape)]
        direct = chunk == part and out.dtype == self.dtype
        values = out if direct else np.empty([b - a for a, b in chunk], self.dtype)
        noted = self._array.kvstore.read(_key(chunk, self._size))
        reading = ts.array(values).write(self._array[_within(chunk, (0,) * len(chunk))])

        def finish() -> None:
            reading.result()
            if checksum(values).to_bytes(8, "little") != noted.result().value:
                raise InputError(
                    f"{self._name} in {self._file} is damaged (its checksum differs); copy or convert it again"
                )
            if not direct:
                piece = values[_within(part, tuple(a for a, _ in chunk))]
                ts.array(out).write(ts.cast(ts.array(piece), out.dtype)).result()  # numpy casts twenty times slower

        return finish


def _within(part: Bounds, start: tuple[int, ...]) -> tuple[Any, ...]:
    """The index of a part in what starts there; it gives a view even of an array without axes."""
    return (*(slice(a - s, b - s) for (a, b), s in zip(part, start, strict=True)), ...)


def _chunks(start: tuple[int, ...], stop: tuple[int, ...], size: tuple[int, ...]) -> Iterator[Bounds]:
    """The parts of chunks between two corners."""
    cuts = ([a, *range(a // s * s + s, b, s), b] for a, b, s in zip(start, stop, size, strict=True))
    for part in itertools.product(*(itertools.pairwise(each) for each in cuts)):
        yield list(part)


def _key(chunk: Bounds, size: tuple[int, ...]) -> str:
    return "/".join(["checksum", *(str(a // s) for (a, _), s in zip(chunk, size, strict=True))])
