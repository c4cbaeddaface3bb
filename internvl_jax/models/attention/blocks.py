"""Which blocks of keys a block of queries has to meet in packed rows: those that share a segment with it.

The rest is masked whole, so leaving it out changes no value. A block is judged by the smallest and the largest of its
segments. That is exact where segments ascend along a row, as packing lays them; where they don't, a block too many is
computed.

The rows and columns of the tables here are blocks of queries and blocks of keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_NONE = jnp.iinfo(jnp.int32).max  # the smallest segment of a block that has only padding


class Steps(NamedTuple):
    """The steps of a kernel's grid, int32 `[outer, inner]`.

    Attributes:
      runs: 0 where a step is left out.
      fetched: the block that each step works on; for one that is left out, the block of the next that is not.
    """

    runs: jax.Array
    fetched: jax.Array


def meeting(
    q_segments_T: jax.Array, k_segments_S: jax.Array, q_block: int, k_block: int, start: jax.Array | int = 0
) -> jax.Array:
    """bool `[query blocks, key blocks]`: whether any query may have a key of its own segment there.

    Where a block stands against itself it always may, so that no query is left without a key: padding (segments below
    1) has no other blocks.

    Args:
      q_block, k_block: tokens of a block.
      start: where the first query stands among the keys.
    """
    (q_low, q_high), (k_low, k_high) = _range(q_segments_T, q_block), _range(k_segments_S, k_block)
    q_first = start + jnp.arange(len(q_low), dtype=jnp.int32)[:, None] * q_block
    k_first = jnp.arange(len(k_low), dtype=jnp.int32)[None] * k_block
    itself = (q_first < k_first + k_block) & (k_first < q_first + q_block)
    return itself | ((q_low[:, None] <= k_high[None]) & (k_low[None] <= q_high[:, None]))


def ahead(runs: jax.Array, indices: jax.Array) -> Steps:
    """Steps of a grid, of which some are left out.

    Args:
      runs: bool `[outer, inner]`, in the grid's order: the inner axis is walked first.
      indices: int32, the block that each step works on.
    """
    size = runs.size
    number = jnp.arange(size, dtype=jnp.int32)
    steps = jnp.where(runs.reshape(-1), number, size)
    following = lax.cummin(steps, reverse=True)
    # Behind the last step that runs the first one is fetched, which comes next.
    following = jnp.where(following < size, following, jnp.min(steps))
    fetched = indices.reshape(-1)[jnp.minimum(following, size - 1)]
    return Steps(runs.astype(jnp.int32), fetched.reshape(runs.shape).astype(jnp.int32))


def first_met(q_segments_T: jax.Array, k_segments_S: jax.Array, q_block: int, k_block: int) -> jax.Array:
    """int32 `[query blocks]`: the first block of keys that each block of queries has to meet."""
    return jnp.argmax(meeting(q_segments_T, k_segments_S, q_block, k_block), axis=1).astype(jnp.int32)


def share(segments_BT: jax.Array, q_block: int, k_block: int, window: int | None = None) -> jax.Array:
    """float32 scalar: of the blocks that causal attention meets, those that packed rows have to.

    Args:
      segments_BT: T is a multiple of both blocks.
      window: how many tokens a query sees, its own included; None: all.
    """
    T = segments_BT.shape[1]
    q_first, k_first = jnp.arange(0, T, q_block)[:, None], jnp.arange(0, T, k_block)[None]
    causal = k_first < q_first + q_block
    if window is not None:
        causal &= q_first - (k_first + k_block - 1) < window
    met = jax.vmap(lambda segments_T: meeting(segments_T, segments_T, q_block, k_block))(segments_BT)
    return jnp.sum(met & causal[None]) / (len(segments_BT) * jnp.sum(causal))


def _range(segments_T: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest segment of every block; those of padding meet nothing."""
    segments = segments_T.reshape(-1, block)
    real = segments > 0
    return jnp.min(jnp.where(real, segments, _NONE), axis=1), jnp.max(jnp.where(real, segments, 0), axis=1)
