"""Functions of tokens that run where the experts lie: tokens travel to the owners of experts, and results back.

If the compiler were left to partition them, every device would gather the tokens of all to sort them, and products of
ragged groups would be summed over all devices.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from internvl_jax.sharding.flat import Params
from internvl_jax.sharding.rules import MeshAxes, context

Axes = dict[str, tuple[str | None, ...]]
Dtypes = Mapping[str, jnp.dtype]

_TOKENS = ("batch", "time", None)
_FEW = 64  # tokens of a device, as in decoding: what they take to travel is the number of transfers, not their bytes


@dataclasses.dataclass(frozen=True)
class Share:
    """A device's part of the experts.

    Attributes:
      first: the number of its first expert.
      count: how many experts it has.
      shards: how many parts the experts are in.
      offset: how many experts stand before these in its parameters; they are other layers'.
    """

    first: jax.Array | int
    count: int
    shards: int
    offset: jax.Array | int


def by_token(function: Callable, x_BTD: jax.Array) -> Any:
    """`function(x_BTD)`, run by every device on its own tokens; what it makes of a token may depend on no other."""
    if context() is None:
        return function(x_BTD)
    mesh, rules = context()
    spec = rules.spec(_TOKENS)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)(x_BTD)


def by_owner(
    function: Callable, params: Params, axes: Axes, dtypes: Dtypes, layer: jax.Array | int, *rows: jax.Array
) -> jax.Array:
    """The sum over devices of `function(params, *rows, share)`, which each device calls with its own experts.

    1. Rows are gathered over the mesh axes that spread both experts and rows. (An all-to-all would send a token once
       for each of its choices. Over no more devices than a token has choices, gathering sends no more.)
    2. Parameters are gathered over all mesh axes but those of the experts, in the dtype that they are wanted in.
    3. Results are summed over the mesh axes of the experts; every device keeps its own rows.

    Args:
      function: takes arrays of tokens `[T, ...]` for `rows`, and returns `[T, D]`.
      params: parameters of a layer's experts, `[E, ...]`; or of all layers', `[L, E, ...]`, which the function gets as
        `[L * E, ...]`. So no layer's are copied out, unless they must be gathered or cast.
      axes: the logical axes of every parameter.
      dtypes: the dtype that the function wants it in.
      layer: the number of the layer, for parameters of all layers.
      rows: arrays `[B, T, ...]`; the result has the shape and dtype of the first.
    """
    if not _lies_ready(params, axes, dtypes):
        params, axes, layer = _of_layer(params, axes, layer)
    dim = next(iter(axes.values())).index("expert")
    if context() is None:
        flat = (x.reshape(-1, x.shape[-1]) for x in rows)
        return _call(function, dim, params, layer, 0, 1, *flat).reshape(rows[0].shape)
    mesh, _ = context()
    tokens, (experts,) = _spread(_TOKENS), _spread(("expert",))
    spread = tuple(axis for part in tokens for axis in part)
    # Over a mesh axis that spreads neither experts nor rows, the compiler gathers a parameter beforehand.
    known = {*experts, *spread}
    parts = {path: [tuple(axis for axis in part if axis in known) for part in _spread(axes[path])] for path in params}
    shards = math.prod(mesh.shape[axis] for axis in experts)
    others = lambda part: tuple(() if index == dim else axes for index, axes in enumerate(part))
    gathers = {path: functools.partial(_gather, parts=others(parts[path]), dtype=dtypes[path]) for path in params}
    local = functools.partial(_on_device, function, dim, gathers, experts, spread, shards)
    specs = ({path: P(*part) for path, part in parts.items()}, P(), *(P(*tokens) for _ in rows))
    # Without JAX's check of which values differ between devices (check_vma). It does not take Pallas kernels; and the
    # sums over devices that it puts in would stand in branches that only some of the devices take.
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(*tokens), check_vma=False)(params, layer, *rows)


def _spread(names: tuple[str | None, ...]) -> list[MeshAxes]:
    """For every dimension the mesh axes that spread it over several devices."""
    if context() is None:
        return [()] * len(names)
    mesh, rules = context()
    return [tuple(axis for axis in part if mesh.shape[axis] > 1) for part in rules.parts(names)]


def _lies_ready(params: Params, axes: Axes, dtypes: Dtypes) -> bool:
    """Whether experts can be called with the parameters as they lie: in these dtypes, and spread by expert alone."""
    moved = [
        part for names in axes.values() for name, part in zip(names, _spread(names), strict=True) if name != "expert"
    ]
    return not any(moved) and all(value.dtype == dtypes[path] for path, value in params.items())


def _of_layer(params: Params, axes: Axes, layer: jax.Array | int) -> tuple[Params, Axes, int]:
    """The parameters of one layer, their axes, and the number of the layer there."""
    if not any("layers" in names for names in axes.values()):
        return params, axes, 0
    cut = {path: lax.dynamic_index_in_dim(value, layer, keepdims=False) for path, value in params.items()}
    return cut, {path: names[1:] for path, names in axes.items()}, 0


def _call(
    function: Callable,
    dim: int,
    params: Params,
    layer: jax.Array | int,
    number: jax.Array | int,
    shards: int,
    *rows: jax.Array,
) -> jax.Array:
    """The function of a device's experts, part `number` of `shards`; `dim` is their dimension, 1 in a stack."""
    count = next(iter(params.values())).shape[dim]
    offset = layer * count if dim else 0
    flat = {path: value.reshape(-1, *value.shape[dim + 1 :]) for path, value in params.items()}
    return function(flat, *rows, Share(number * count, count, shards, offset))


def _on_device(
    function: Callable,
    dim: int,
    gathers: Mapping[str, Callable],
    experts: MeshAxes,
    spread: MeshAxes,
    shards: int,
    params: Params,
    layer: jax.Array | int,
    *rows: jax.Array,
) -> jax.Array:
    both = tuple(axis for axis in experts if axis in spread)
    only = tuple(axis for axis in experts if axis not in spread)
    number = lax.axis_index(experts) if experts else 0

    whole = {path: gathers[path](value) for path, value in params.items()}
    call = functools.partial(_call, function, dim, whole, layer, number, shards)
    flat = [x.reshape(-1, x.shape[-1]) for x in rows]
    T = len(flat[0])
    if both and T <= _FEW:
        out_TD = lax.psum(call(*_gather_few(flat, both)), experts)
        return lax.dynamic_slice_in_dim(out_TD, lax.axis_index(both) * T, T).reshape(rows[0].shape)
    out_TD = call(*(lax.all_gather(x, both, axis=0, tiled=True) if both else x for x in flat))
    if only:
        out_TD = lax.psum(out_TD, only)
    if both:
        out_TD = lax.psum_scatter(out_TD, both, scatter_dimension=0, tiled=True)
    return out_TD.reshape(rows[0].shape)


def _gather_few(rows: list[jax.Array], axes: MeshAxes) -> list[jax.Array]:
    """All rows gathered in one transfer: float32 holds numbers of experts and bfloat16 as they are."""
    joined = jnp.concatenate([x.astype(jnp.float32) for x in rows], axis=1)
    joined = lax.all_gather(joined, axes, axis=0, tiled=True)
    ends = itertools.accumulate(x.shape[1] for x in rows)
    return [joined[:, end - x.shape[1] : end].astype(x.dtype) for x, end in zip(rows, ends, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(value: jax.Array, parts: tuple[MeshAxes, ...], dtype: jnp.dtype) -> jax.Array:
    """The value, gathered in its dimensions over `parts`, in `dtype`. Gradients are summed over devices in float32."""
    value = value.astype(dtype)
    for dim, axes in enumerate(parts):
        if axes:
            value = lax.all_gather(value, axes, axis=dim, tiled=True)
    return value


def _gather_forward(value: jax.Array, parts: tuple[MeshAxes, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    return _gather(value, parts, dtype), value[:0]  # for its dtype


def _gather_backward(parts: tuple[MeshAxes, ...], dtype: jnp.dtype, like: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    g = g.astype(jnp.float32)
    for dim, axes in enumerate(parts):
        if axes:
            g = lax.psum_scatter(g, axes, scatter_dimension=dim, tiled=True)
    return (g.astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)
