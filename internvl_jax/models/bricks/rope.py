"""Rotary position embeddings, half-split, and YaRN for contexts longer than those of the first training."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.models.config import YarnConfig


def rope_table(
    positions_BT: jax.Array, head_width: int, theta: float, yarn: YarnConfig | None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32 `[B, 1, T, H/2]`: bfloat16 rounds 257 to 256, and sin of the two differs widely."""
    inverse_H = theta ** -(np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width))
    scale = 1.0
    if yarn is not None:
        inverse_H, scale = _yarn(inverse_H, head_width, theta, yarn), 0.1 * math.log(yarn.factor) + 1
    angles = positions_BT.astype(jnp.float32)[:, None, :, None] * jnp.asarray(inverse_H)[None, None, None, :]
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def _yarn(inverse_H: np.ndarray, head_width: int, theta: float, yarn: YarnConfig) -> np.ndarray:
    """Slow rotations are slowed by `factor`, fast ones stay, a ramp between (arXiv 2309.00071, section 3.2).

    The bounds of the ramp are not rounded, as GPT-OSS has it.
    """

    def place(rotations: float) -> float:
        """Index of the frequency that turns so often over the first training's context."""
        return head_width * math.log(yarn.positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(place(yarn.beta_fast), 0), min(place(yarn.beta_slow), head_width - 1)
    ramp = np.clip((np.arange(head_width // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (inverse_H / yarn.factor * ramp + inverse_H * (1 - ramp)).astype(np.float32)


def apply_rope(x_BNTH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates (x[i], x[i + H/2]) by the position's i-th angle, in float32."""
    cos, sin = table
    low, high = jnp.split(x_BNTH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x_BNTH.dtype)
