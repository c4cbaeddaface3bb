"""The key/value cache: stacked over layers beside stacked parameters, an array per layer beside a list of layers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """Keys and values of S slots per row, and what each slot holds.

    Attributes:
      k, v: `[L, B, M, S, H]`, or a tuple of L arrays `[B, M, S, H]`.
      segments_BS: 0 where a slot is empty, else the segment of the token in it.
      positions_BS: position of the token in a slot.
    """

    k: jax.Array | tuple[jax.Array, ...]
    v: jax.Array | tuple[jax.Array, ...]
    segments_BS: jax.Array
    positions_BS: jax.Array

    def place(self, slots_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array) -> "Cache":
        """Marks the slots that the tokens of this call take; a slot number of S or more is dropped (padding)."""
        rows = jnp.arange(slots_BT.shape[0])[:, None]
        return self._replace(
            segments_BS=self.segments_BS.at[rows, slots_BT].set(segments_BT, mode="drop"),
            positions_BS=self.positions_BS.at[rows, slots_BT].set(positions_BT, mode="drop"),
        )

    def write(self, layer: jax.Array | int, k_BMTH: jax.Array, v_BMTH: jax.Array, slots_BT: jax.Array) -> "Cache":
        """Stores the keys and values of one layer in their slots."""
        return self._replace(k=_write(self.k, layer, k_BMTH, slots_BT), v=_write(self.v, layer, v_BMTH, slots_BT))

    def read(self, layer: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """`k_BMSH, v_BMSH` of one layer."""
        return self.k[layer], self.v[layer]

    @property
    def num_slots(self) -> int:
        return self.segments_BS.shape[1]


def make_cache(layers: int, shape_BMSH: tuple[int, int, int, int], dtype: jnp.dtype, stacked: bool) -> Cache:
    """An empty cache of `shape_BMSH` for each layer."""

    def zeros():
        return (
            jnp.zeros((layers, *shape_BMSH), dtype)
            if stacked
            else tuple(jnp.zeros(shape_BMSH, dtype) for _ in range(layers))
        )

    B, _, S, _ = shape_BMSH
    return Cache(zeros(), zeros(), jnp.zeros((B, S), jnp.int32), jnp.zeros((B, S), jnp.int32))


def _write(store, layer, new_BMTH, slots_BT):
    B, M = new_BMTH.shape[:2]
    b, m, t = jnp.arange(B)[:, None, None], jnp.arange(M)[None, :, None], slots_BT[:, None, :]
    if isinstance(store, tuple):
        updated = store[layer].at[b, m, t].set(new_BMTH.astype(store[layer].dtype), mode="drop")
        return (*store[:layer], updated, *store[layer + 1 :])
    return store.at[layer, b, m, t].set(new_BMTH.astype(store.dtype), mode="drop")
