"""The model's pass over rows of several texts, which share the tiles that they are about."""

import jax
import jax.numpy as jnp

from internvl_jax.data import Batch
from internvl_jax.models import InternVL, Out, Slots


def read_rows(
    model: InternVL,
    rows: Batch,
    key: jax.Array | None = None,
    collect: tuple[str, ...] = (),
    routes_BTLK: jax.Array | None = None,
) -> Out:
    """The model's pass over rows of several texts, which may replay noted experts."""
    encoded = model.encode(rows.tiles_GHWC, key) if len(rows.tiles_GHWC) else None
    inputs = rows.tokens_BT, rows.tile_mask_G, rows.segments_BT, rows.positions_BT
    replay_LBTK = None if routes_BTLK is None else by_layer(routes_BTLK)
    return model.read(encoded, *inputs, collect, Slots(rows.slots_BJ, None), replay_LBTK)


def by_layer(routes_BTLK: jax.Array) -> jax.Array:
    """Noted experts as the model takes them, int32 `[L, B, T, K]`."""
    return jnp.moveaxis(routes_BTLK, 2, 0).astype(jnp.int32)
