"""Rotary position embeddings, the half-split form of Qwen3."""

import jax
import jax.numpy as jnp


def rope_table(positions_BT: jax.Array, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32 `[B, 1, T, H/2]`: bfloat16 rounds 257 to 256, and sin of the two differs widely."""
    inverse_H = theta ** -(jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions_BT.astype(jnp.float32)[:, None, :, None] * inverse_H[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BNTH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates (x[i], x[i + H/2]) by the position's i-th angle, in float32."""
    cos, sin = table
    low, high = jnp.split(x_BNTH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x_BNTH.dtype)
