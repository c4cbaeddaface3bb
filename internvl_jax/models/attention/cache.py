"""The key/value cache, stacked over layers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from internvl_jax.models.attention.attention import Mask, Window, attend


class Cache(NamedTuple):
    """Keys and values in the S slots of every row, and what each slot holds.

    Attributes:
      k, v: keys and values, `[L, B, M, S, H]`.
      segments_BS: the segment of the token in a slot; 0 where it is empty.
      positions_BS: position of the token in a slot.
    """

    k: jax.Array
    v: jax.Array
    segments_BS: jax.Array
    positions_BS: jax.Array

    def mask(self, segments_BT: jax.Array, positions_BT: jax.Array) -> Mask:
        """What the tokens of a call see."""
        return Mask(segments_BT, positions_BT, self.segments_BS, self.positions_BS, ordered=False)

    def place(self, slots_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array) -> "Cache":
        """The cache with the slots marked that the tokens of this call take.

        A token whose slot is S or more takes none: so padding is left out.
        """
        rows = jnp.arange(slots_BT.shape[0])[:, None]
        return self._replace(
            segments_BS=self.segments_BS.at[rows, slots_BT].set(segments_BT, mode="drop"),
            positions_BS=self.positions_BS.at[rows, slots_BT].set(positions_BT, mode="drop"),
        )

    def write(self, layer: jax.Array | int, k_BMTH: jax.Array, v_BMTH: jax.Array, slots_BT: jax.Array) -> "Cache":
        """The cache with the keys and values of one layer in their slots."""
        B, M = k_BMTH.shape[:2]
        place = layer, jnp.arange(B)[:, None, None], jnp.arange(M)[None, :, None], slots_BT[:, None, :]
        return self._replace(
            k=self.k.at[place].set(k_BMTH.astype(self.k.dtype), mode="drop"),
            v=self.v.at[place].set(v_BMTH.astype(self.v.dtype), mode="drop"),
        )

    def attend(
        self, layer: jax.Array | int, q_BNTH: jax.Array, mask: Mask, window: Window | None, sinks_N: jax.Array | None
    ) -> jax.Array:
        """Attention to all that a layer has stored."""
        return attend(q_BNTH, self.k, self.v, mask, window, layer, sinks_N)

    @property
    def num_slots(self) -> int:
        return self.segments_BS.shape[1]
