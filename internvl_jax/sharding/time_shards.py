"""A row whose tokens lie on several devices: how a function that needs them all, run by every device on its part
(`per_device`), gets them.

Attention takes either way. By `heads_for_time` each device trades its tokens of all heads for all tokens of its heads
(Ulysses, arXiv 2309.14509): all devices do the same work, whatever the row is packed of. Where the heads can't be
shared so, keys and values are gathered.
"""

import jax
from jax import lax

from internvl_jax.sharding.rules import MeshAxes, context, spread

# Dimensions of arrays [B, heads, T, width].
_HEADS, _TIME = 1, 2


def heads_for_time(x_BNTH: jax.Array) -> jax.Array:
    """From a device's tokens of N heads to all tokens of its share of the heads; N is a multiple of the devices."""
    return lax.all_to_all(x_BNTH, _axes(), split_axis=_HEADS, concat_axis=_TIME, tiled=True)


def time_for_heads(x_BNTH: jax.Array) -> jax.Array:
    """The way back."""
    return lax.all_to_all(x_BNTH, _axes(), split_axis=_TIME, concat_axis=_HEADS, tiled=True)


def gather_time(x: jax.Array, axis: int) -> jax.Array:
    """All tokens; `axis` is the one that they stand along."""
    return lax.all_gather(x, _axes(), axis=axis, tiled=True)


def own_share(x: jax.Array) -> jax.Array:
    """Of what all devices of a row have, a device's share along the first axis."""
    size = len(x) // spread("time")
    return lax.dynamic_slice_in_dim(x, time_part() * size, size)


def time_part() -> jax.Array:
    """Which part of the row's tokens a device has."""
    return lax.axis_index(_axes())


def _axes() -> MeshAxes:
    return context()[1].time
