"""Functions of tokens that run where the experts lie: tokens travel to the owners of experts, and results back.

If the compiler were left to partition them, every device would gather the tokens of all to sort them, and products of
ragged groups would be summed over all devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from internvl_jax.sharding.flat import Params
from internvl_jax.sharding.rules import MeshAxes, context

_TOKENS = ("batch", "time", None)


@dataclasses.dataclass(frozen=True)
class Share:
    """A device's part of the experts.

    Attributes:
      first: the number of its first expert.
      shards: how many parts the experts are in.
    """

    first: jax.Array | int
    shards: int


def by_token(function: Callable, x_BTD: jax.Array) -> Any:
    """`function(x_BTD)`, run by every device on its own tokens; what it makes of a token may depend on no other."""
    if context() is None:
        return function(x_BTD)
    mesh, rules = context()
    spec = rules.spec(_TOKENS)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)(x_BTD)


def by_owner(
    function: Callable, params: Params, axes: dict[str, tuple[str | None, ...]], *rows: jax.Array
) -> jax.Array:
    """The sum over devices of `function(params, *rows, share)`, which each device calls with its own experts.

    1. Rows are gathered over the mesh axes that spread both experts and rows. (An all-to-all would send a token once
       for each of its choices. Over no more devices than a token has choices, gathering sends no more.)
    2. Parameters are gathered over all mesh axes but those of the experts, in the dtype of the first rows.
    3. Results are summed over the mesh axes of the experts; every device keeps its own rows.

    Args:
      function: takes arrays of tokens `[T, ...]` for `rows`, and returns `[T, D]`.
      params: parameters whose first dimension is 'expert'.
      axes: the logical axes of every parameter.
      rows: arrays `[B, T, ...]`; the result has the shape and dtype of the first.
    """
    if context() is None:
        flat = (x.reshape(-1, x.shape[-1]) for x in rows)
        return function(params, *flat, Share(0, 1)).reshape(rows[0].shape)
    mesh, rules = context()
    several = lambda names: [tuple(axis for axis in part if mesh.shape[axis] > 1) for part in rules.parts(names)]
    tokens, (experts,) = several(_TOKENS), several(("expert",))
    spread = tuple(axis for part in tokens for axis in part)
    # Over a mesh axis that spreads neither experts nor rows, the compiler gathers a parameter beforehand.
    known = {*experts, *spread}
    parts = {path: [tuple(axis for axis in part if axis in known) for part in several(axes[path])] for path in params}
    shards = math.prod(mesh.shape[axis] for axis in experts)
    local = functools.partial(_on_device, function, parts, experts, spread, shards)
    specs = ({path: P(*part) for path, part in parts.items()}, *(P(*tokens) for _ in rows))
    # Without JAX's check of which values differ between devices (check_vma). It does not take Pallas kernels; and the
    # sums over devices that it puts in would stand in branches that only some of the devices take.
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(*tokens), check_vma=False)(params, *rows)


def _on_device(
    function: Callable,
    parts: dict[str, list[MeshAxes]],
    experts: MeshAxes,
    spread: MeshAxes,
    shards: int,
    params: Params,
    *rows: jax.Array,
) -> jax.Array:
    both = tuple(axis for axis in experts if axis in spread)
    only = tuple(axis for axis in experts if axis not in spread)
    first = lax.axis_index(experts) * len(next(iter(params.values()))) if experts else 0

    def of_group(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, x.shape[-1])
        return lax.all_gather(x, both, axis=0, tiled=True) if both else x

    whole = {path: _gather(value, tuple(parts[path]), rows[0].dtype) for path, value in params.items()}
    out_TD = function(whole, *(of_group(x) for x in rows), Share(first, shards))
    if only:
        out_TD = lax.psum(out_TD, only)
    if both:
        out_TD = lax.psum_scatter(out_TD, both, scatter_dimension=0, tiled=True)
    return out_TD.reshape(rows[0].shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(value: jax.Array, parts: tuple[MeshAxes, ...], dtype: jnp.dtype) -> jax.Array:
    """The value, gathered in all dimensions but the first, in `dtype`. Gradients are summed over devices in float32."""
    value = value.astype(dtype)
    for dim, axes in enumerate(parts):
        if dim and axes:
            value = lax.all_gather(value, axes, axis=dim, tiled=True)
    return value


def _gather_forward(value: jax.Array, parts: tuple[MeshAxes, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    return _gather(value, parts, dtype), value[:0]  # for its dtype


def _gather_backward(parts: tuple[MeshAxes, ...], dtype: jnp.dtype, like: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    g = g.astype(jnp.float32)
    for dim, axes in enumerate(parts):
        if dim and axes:
            g = lax.psum_scatter(g, axes, scatter_dimension=dim, tiled=True)
    return (g.astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)
