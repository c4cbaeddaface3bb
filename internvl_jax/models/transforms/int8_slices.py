"""Weights that become integers as they are read, in slices: none is ever there whole as floats."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.models.transforms.int8 import rounded
from internvl_jax.models.transforms.int8_config import SCALE, VALUES, weight_path

Index = tuple[slice, ...]
Read = Callable[[Index], np.ndarray]

_TOGETHER = 1 << 25  # values that are rounded at a time: 128 MB of float32

_rounded = jax.jit(rounded, static_argnames="num_inputs")


@dataclasses.dataclass(frozen=True)
class Int8Slices:
    """The integers of a weight, or the scales of its outputs.

    Attributes:
      weight: reads a slice of the weight, in any dtype of floats.
      outputs, inputs: the shape of the weight, layers and experts among the outputs.
      scales: whether these are the scales.
    """

    weight: Read
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    scales: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.outputs if self.scales else (*self.outputs, *self.inputs)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.scales else np.int8)

    def read(self, index: Index, dtype: np.dtype | None = None) -> np.ndarray:
        """A slice; rows are rounded by all of their inputs, whatever of them is asked for."""
        del dtype  # there is one
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        rows, inputs = bounds[: len(self.outputs)], index[len(self.outputs) :]
        out = np.empty([b - a for a, b in bounds], self.dtype)
        whole = (slice(None),) * len(self.inputs)
        for part in _pieces(rows, math.prod(self.inputs)):
            piece = self.weight((*(slice(a, b) for a, b in part), *whole))
            at = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(part, rows, strict=True))
            with jax.default_device(jax.devices("cpu")[0]):
                values, scale = _rounded(jnp.asarray(piece), num_inputs=len(self.inputs))
                out[at] = np.asarray(scale) if self.scales else np.asarray(values)[(..., *inputs)]
        return out


def _pieces(rows: list[tuple[int, int]], width: int) -> Iterator[list[tuple[int, int]]]:
    """Parts of rows, halved along their first axes until they are small."""
    axis = next((axis for axis, (a, b) in enumerate(rows) if b - a > 1), None)
    if axis is None or width * math.prod(b - a for a, b in rows) <= _TOGETHER:
        yield rows
        return
    start, stop = rows[axis]
    middle = (start + stop) // 2
    for part in ((start, middle), (middle, stop)):
        yield from _pieces([*rows[:axis], part, *rows[axis + 1 :]], width)


def int8_slices(path: str, wanted: Mapping[str, Any], weight: Read) -> Int8Slices:
    """What a parameter of integers or scales is read by.

    Args:
      wanted: shapes of the parameters of the model in 8 bits.
      weight: see `Int8Slices`.
    """
    plain = weight_path(path)
    outputs, shape = (tuple(wanted[f"{plain}{suffix}"].shape) for suffix in (SCALE, VALUES))
    return Int8Slices(weight, outputs, shape[len(outputs) :], path.endswith(SCALE))


def as_wanted(directory: Any, wanted: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint, those of weights that are wanted in 8 bits as integers and scales.

    Args:
      directory: for errors.
      wanted: the parameters that are wanted, with their shapes.
      arrays: with `shape`, `dtype` and `read(index, dtype)`, by path.

    Raises:
      InputError: the checkpoint is in 8 bits, and something else is wanted.
    """
    seen = dict(arrays)
    for path in wanted:
        plain = weight_path(path)
        if plain is None and f"{path}{VALUES}" in arrays:
            raise InputError(
                f"{directory} is in 8 bits, which is not asked for here; give the checkpoint that it was made of"
            )
        if plain not in arrays or path in arrays:
            continue
        slices = int8_slices(path, wanted, arrays[plain].read)
        if (*slices.outputs, *slices.inputs) == tuple(arrays[plain].shape):
            seen.pop(plain, None)
            seen[path] = slices
    return seen
