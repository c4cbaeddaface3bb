"""A checkpoint as parameters of this project that can be read slice by slice, whatever it is stored as."""

import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from checkpoint_convert.account import Leaf, match
from checkpoint_convert.source import open_directory
from checkpoint_convert.tables import Table
from checkpoint_convert.wrapped import split
from internvl_jax.sharding import ParamSpec, params_io
from internvl_jax.validation import all_finite

Index = tuple[slice, ...]

_ALIGNMENT = 64  # bytes


class Reader(Protocol):
    """Attributes:
    num_tensors, nbytes: how many tensors are stored, and their bytes.
    """

    num_tensors: int
    nbytes: int

    @property
    def specs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shape and stored dtype of every parameter."""

    def read(self, path: str, index: Index) -> np.ndarray:
        """A slice of a parameter; it may be a view of a file."""

    def not_finite(self, path: str, index: Index) -> list[str]:
        """What the checkpoint calls those tensors of a slice that hold a NaN or an infinity."""


class ReleasedReader:
    """A directory of safetensors files, its tensors paired with parameters by a table; without the adapters that may be
    wrapped in (`peft_reader.wrapped_adapter`).

    Raises:
      InputError: see `open_directory` and `match`.
    """

    def __init__(self, directory: str | os.PathLike, table: Table, specs: Mapping[str, ParamSpec]):
        directory = pathlib.Path(directory)
        self._tensors, _ = split(open_directory(directory))
        self._leaves = {leaf.row.target: leaf for leaf in match(directory, self._tensors, table, specs)}
        self.specs = {path: jax.ShapeDtypeStruct(leaf.shape, self._dtype(leaf)) for path, leaf in self._leaves.items()}
        self.num_tensors = len(self._tensors)
        self._checked: set[str] = set()
        self.nbytes = sum(tensor.nbytes for tensor in self._tensors.values())

    def read(self, path: str, index: Index) -> np.ndarray:
        positions, leaf = list(self._positions(path, index)), self._leaves[path]
        if len(positions) > 1 or leaf.row.in_bytes:
            return self.read_aligned(path, index)
        piece = leaf.row.forwards(self._arrays(leaf, positions[0]), leaf.shape)[index[leaf.row.stacked_axes :]]
        return piece.reshape(_extent(leaf.shape, index))

    def read_aligned(self, path: str, index: Index) -> np.ndarray:
        """A slice in memory of its own, aligned as XLA on CPU wants it to take it over without a copy."""
        leaf = self._leaves[path]
        out = _aligned(_extent(leaf.shape, index), self.specs[path].dtype)
        lead = leaf.row.stacked_axes
        starts = [part.indices(size)[0] for part, size in zip(index, leaf.shape, strict=True)][:lead]
        for position in self._positions(path, index):
            at: tuple[Any, ...] = tuple(place - start for place, start in zip(position, starts, strict=True))
            leaf.row.read(self._arrays(leaf, position), leaf.shape, index[lead:], out[(*at, ...)])
        return out

    def not_finite(self, path: str, index: Index) -> list[str]:
        leaf, found = self._leaves[path], []
        for position in self._positions(path, index):
            here = (*(slice(i, i + 1) for i in position), *index[leaf.row.stacked_axes :])
            if not all_finite(self.read(path, here)):
                names = leaf.names[position]
                found += [name for name in names if leaf.row.in_bytes or not all_finite(self._tensors[name].array())]
        return found

    def _positions(self, path: str, index: Index) -> Iterator[tuple[int, ...]]:
        leaf = self._leaves[path]
        bounds = (range(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True))
        return itertools.product(*itertools.islice(bounds, leaf.row.stacked_axes))

    def _arrays(self, leaf: Leaf, position: tuple[int, ...]) -> list[np.ndarray]:
        for name in leaf.names[position]:
            if name not in self._checked:  # all of it, whatever is read of it
                self._tensors[name].check()
                self._checked.add(name)
        return [self._tensors[name].array() for name in leaf.names[position]]

    def _dtype(self, leaf: Leaf) -> np.dtype:
        return leaf.row.dtype(list({self._tensors[name].dtype for names in leaf.names.values() for name in names}))


class OrbaxReader:
    """An orbax checkpoint of parameters.

    Raises:
      InputError: see `params_io.open_arrays`; `read`: it is damaged.
    """

    def __init__(self, checkpoint: str | os.PathLike):
        self._checkpoint = pathlib.Path(checkpoint)
        self._arrays = params_io.open_arrays(checkpoint)
        self.specs = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in self._arrays.items()}
        self.num_tensors = len(self.specs)
        self.nbytes = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in self.specs.values())

    def read(self, path: str, index: Index) -> np.ndarray:
        try:
            return self._arrays[path].read(index)
        except params_io.DAMAGE as error:
            raise params_io.damaged(self._checkpoint, error) from error

    def not_finite(self, path: str, index: Index) -> list[str]:
        return [] if all_finite(self.read(path, index)) else [path]


def _extent(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    return tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
