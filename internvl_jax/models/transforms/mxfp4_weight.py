"""Weights as 4-bit floats in blocks of 32 that share a power of two: what GPT-OSS's experts are released as.

`checkpoint_convert.mxfp4` has the format. Here a value is an integer of half units under its scale, so that what comes
out is exact in bfloat16, and the same bits as if it had been stored so.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models.bricks.grouped import Groups, grouped_product
from internvl_jax.models.bricks.weight import Weight, product

BLOCK = 32  # values that share a scale
# Between which two magnitudes of 0, 0.5, 1, 1.5, 2, 3, 4, 6 a value lies; and the largest one's power of two.
_BETWEEN, _LARGEST_POWER = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0), 2
_BIAS = 127  # of scales


class Mxfp4Weight(nnx.Module):
    """A weight in 4 bits, with the methods that products need of a `Weight`.

    `mxfp4[..., out..., in / 2]`, two values a byte, the low half first, and `mxfp4_scale[..., out..., in / 32]`, where
    `...` are layers of a stack and experts. They lie where the weight would.
    """

    def __init__(self, weight: Weight):
        axes, self.width = weight.get_metadata("axes"), weight[...].shape[-1]
        values, scale = packed(weight[...])
        self.mxfp4 = nnx.Param(values, axes=axes)
        self.mxfp4_scale = nnx.Param(scale, axes=(*axes[:-1], None))

    def dense(self, dtype: jnp.dtype | None = None) -> jax.Array:
        """See `Weight`; bfloat16 without a dtype."""
        return unpacked(self.mxfp4[...], self.mxfp4_scale[...], self.width, dtype or jnp.bfloat16)

    def dot(self, x: jax.Array) -> jax.Array:
        """See `Weight`."""
        return self.product(x).astype(x.dtype)

    def product(self, x: jax.Array) -> jax.Array:
        """See `Weight`."""
        w = self.dense(x.dtype)
        return product(x, w.reshape(-1, self.width)).reshape(*x.shape[:-1], *w.shape[:-1])

    def grouped(self, x: jax.Array, groups: Groups) -> jax.Array:
        """See `Weight`; of a stack, those of one layer are unpacked."""
        cut = lambda stack: lax.dynamic_slice_in_dim(stack, groups.first, len(groups.sizes))
        w = unpacked(cut(self.mxfp4[...]), cut(self.mxfp4_scale[...]), self.width, x.dtype)
        return grouped_product(x, w.reshape(len(w), -1, self.width), Groups(groups.sizes))


def packed(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """uint8 values `[..., n * 16]` and scales `[..., n]` of `w[..., width]`, n blocks filled up with zeros.

    A block that is floats of 4 bits under some scale is kept exactly; anything else is rounded to the nearest ones.
    """
    blocks = jnp.pad(w.astype(jnp.float32), (*((0, 0),) * (w.ndim - 1), (0, -w.shape[-1] % BLOCK)))
    blocks = blocks.reshape(*w.shape[:-1], -1, BLOCK)
    largest = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    power = jnp.clip(jnp.frexp(largest)[1] - 1 - _LARGEST_POWER, 1 - _BIAS, _BIAS)
    magnitudes = jnp.abs(blocks) * _power(-power)
    codes = sum((magnitudes > edge).astype(jnp.uint8) for edge in _BETWEEN) | jnp.signbit(blocks).astype(jnp.uint8) << 3
    pairs = codes.reshape(*w.shape[:-1], -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, (power[..., 0] + _BIAS).astype(jnp.uint8)


def unpacked(values: jax.Array, scale: jax.Array, width: int, dtype: jnp.dtype) -> jax.Array:
    """`[..., width]` in a dtype that holds them: what `packed` packed."""
    codes = jnp.stack([values & 15, values >> 4], axis=-1).reshape(*scale.shape, BLOCK).astype(jnp.int32)
    exponent, mantissa = (codes >> 1) & 3, codes & 1
    halves = jnp.where(exponent == 0, mantissa, (2 + mantissa) << jnp.maximum(exponent - 1, 0))
    halves = halves.astype(jnp.float32)
    blocks = jnp.where(codes >= 8, -halves, halves) * (0.5 * _power(scale.astype(jnp.int32) - _BIAS))[..., None]
    return blocks.reshape(*scale.shape[:-1], -1)[..., :width].astype(dtype)


def _power(exponent: jax.Array) -> jax.Array:
    """Two to the power of normal exponents, exactly."""
    return lax.bitcast_convert_type((exponent + _BIAS).astype(jnp.uint32) << 23, jnp.float32)
