"""Quantised weights: as a change of a model's structure, and as they are read.

They are read in slices: no weight is ever there whole as floats.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvl_jax.errors import InputError
from internvl_jax.models.bricks.weight import Weight
from internvl_jax.models.transforms.int8 import Int8Product, Int8Weight, RoundedWeight, rounded
from internvl_jax.models.transforms.mxfp4_weight import BLOCK, Mxfp4Weight, packed, unpacked
from internvl_jax.models.transforms.quantised_names import Quantised, is_quantised, quantised_as, weight_path

Index = tuple[slice, ...]
Read = Callable[[Index], np.ndarray]

KINDS: dict[Quantised, Callable[[Weight], nnx.Module]] = {
    "int8": Int8Weight,
    "w8a8": Int8Product,
    "mxfp4": Mxfp4Weight,
}
_TOGETHER = 1 << 25  # values that are rounded at a time: 128 MB of float32

_rounded = jax.jit(rounded, static_argnames="num_inputs")
_packed, _unpacked = jax.jit(packed), jax.jit(unpacked, static_argnames=("width", "dtype"))


def quantise(model: nnx.Module, how: Quantised) -> None:
    """Stores those weights of a model quantised that are to be (`is_quantised`)."""
    _replace(model, how, KINDS[how])


def round_products(model: nnx.Module) -> None:
    """Has the products that `w8a8` rounds rounded in the forward pass of training; weights stay as they are."""
    _replace(model, "w8a8", lambda weight: RoundedWeight(weight[...], **weight.get_metadata()))


def _replace(model: nnx.Module, how: Quantised, make: Callable[[Weight], Any]) -> None:
    for path, module in list(nnx.iter_modules(model)):
        for name, part in list(vars(module).items()):
            if isinstance(part, Weight) and is_quantised(".".join(map(str, (*path, name))), how):
                setattr(module, name, make(part))


@dataclasses.dataclass(frozen=True)
class QuantisedSlices:
    """A parameter of a quantised weight, made as it is read.

    Attributes:
      source: reads a slice of the weight, in any dtype of floats.
      make: makes the parameter's rows of rows of the weight, on the host.
      rows: the shape of rows: layers, experts, outputs.
      width: how many values a row of the weight has.
      num_inputs: in how many dimensions they stand.
      shape, dtype: the parameter's.
    """

    source: Read
    make: Callable[[np.ndarray], np.ndarray]
    rows: tuple[int, ...]
    width: int
    num_inputs: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: Index, dtype: np.dtype | None = None) -> np.ndarray:
        """A slice; rows are made of all of their inputs, whatever of them is asked for."""
        del dtype  # there is one
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        rows, within = bounds[: len(self.rows)], index[len(self.rows) :]
        out = np.empty([b - a for a, b in bounds], self.dtype)
        for part in _pieces(rows, self.width):
            piece = self.source((*(slice(a, b) for a, b in part), *(slice(None),) * self.num_inputs))
            at = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(part, rows, strict=True))
            with jax.default_device(jax.local_devices(backend="cpu")[0]):  # other processes' are listed before ours
                out[at] = self.make(piece)[(*(slice(None),) * len(rows), *within)]
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


def quantised_slices(path: str, wanted: Mapping[str, Any], source: Read, shape: tuple[int, ...]) -> QuantisedSlices:
    """What a parameter of a quantised weight is read by.

    Args:
      wanted: shapes and dtypes of the parameters of the quantised model.
      source: see `QuantisedSlices`.
      shape: the shape of the weight.
    """
    plain, own = weight_path(path), wanted[path]
    part = 1 if path.endswith("_scale") else 0
    if f"{plain}.int8" in wanted:
        rows = tuple(wanted[f"{plain}.int8_scale"].shape)
        num_inputs = len(shape) - len(rows)
        make = lambda piece: np.asarray(_rounded(jnp.asarray(piece), num_inputs=num_inputs)[part])
    else:
        rows, num_inputs, make = shape[:-1], 1, functools.partial(_exactly, path, part)
    width = math.prod(shape[len(rows) :])
    return QuantisedSlices(source, make, rows, width, num_inputs, tuple(own.shape), np.dtype(own.dtype))


def _exactly(path: str, part: int, piece: np.ndarray) -> np.ndarray:
    whole = _packed(jnp.asarray(piece))
    if not jnp.array_equal(_unpacked(*whole, width=piece.shape[-1], dtype=jnp.float32), piece.astype(np.float32)):
        raise InputError(f"{weight_path(path)} was not stored as mxfp4 and would be rounded; quantise it as int8")
    return np.asarray(whole[part])


def as_wanted(directory: Any, wanted: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint, and of weights that are wanted quantised those parameters.

    Args:
      directory: for errors.
      wanted: the parameters that are wanted, with their shapes.
      arrays: with `shape`, `dtype` and `read(index, dtype)`, by path.

    Raises:
      InputError: the checkpoint is quantised, and something else is wanted.
    """
    stored = quantised_as(arrays)
    if stored not in (None, quantised_as(wanted)):
        raise InputError(
            f"{directory} is quantised as {stored}, and something else is asked for; give the checkpoint that it was "
            "made of"
        )
    seen = dict(arrays)
    for path in wanted:
        plain = weight_path(path)
        if plain in arrays and path not in arrays and _fits(plain, wanted, arrays[plain].shape):
            seen.pop(plain, None)
            seen[path] = quantised_slices(path, wanted, arrays[plain].read, tuple(arrays[plain].shape))
    return seen


def _fits(plain: str, wanted: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether parameters that are wanted can be made of a weight of this shape."""
    if (values := wanted.get(f"{plain}.int8")) is not None:
        return tuple(values.shape) == tuple(shape)
    return tuple(wanted[f"{plain}.mxfp4_scale"].shape) == (*shape[:-1], -(-shape[-1] // BLOCK))
