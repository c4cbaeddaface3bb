"""Weights in 8 bits: an integer for every value and a scale for every output, `w = q * scale`; and products in 8
bits of weights that are trained.

A model with `InternVLConfig.quantised` has them in its structure: an `Int8Weight` in the place of a `Weight`, also of
one beside which an adapter stands. No brick knows. They are frozen: nothing has a gradient to them.

Scales are the largest magnitude of a row divided by 127, values are rounded half to even, as PyTorch's symmetric
per-channel quantisation does (weight-only int8).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models.bricks.grouped import Groups, grouped_product
from internvl_jax.models.bricks.weight import Weight, backwards, dot, product

_LARGEST = 127


class Int8Weight(nnx.Module):
    """A weight in 8 bits, with the methods that products need of a `Weight`.

    `int8[..., out..., in...]` and `int8_scale[..., out...]`, where `...` are layers of a stack and experts. They lie
    where the weight would.
    """

    def __init__(self, weight: Weight):
        axes = weight.get_metadata("axes")
        self.num_inputs: int = weight.get_metadata("num_inputs")
        values, scale = rounded(weight[...], self.num_inputs)
        self.int8 = nnx.Param(values, axes=axes, num_inputs=self.num_inputs)
        self.int8_scale = nnx.Param(scale, axes=axes[: -self.num_inputs])

    def dense(self, dtype: jnp.dtype | None = None) -> jax.Array:
        """See `Weight`; float32 without a dtype."""
        value = dequantised(self.int8[...], self.int8_scale[...])
        return value if dtype is None else value.astype(dtype)

    def dot(self, x: jax.Array) -> jax.Array:
        """See `Weight`."""
        return self.product(x).astype(x.dtype)

    def product(self, x: jax.Array) -> jax.Array:
        """See `Weight`."""
        scale = self.int8_scale[...]
        lead, outputs = x.shape[: x.ndim - self.num_inputs], scale.shape
        y = self.multiply(x.reshape(*lead, -1), self.int8[...].reshape(scale.size, -1), scale.reshape(-1))
        return y.reshape(*lead, *outputs)

    def grouped(self, x: jax.Array, groups: Groups) -> jax.Array:
        """See `Weight`."""
        values, scale = self.int8[...], self.int8_scale[...]
        y = grouped_product(x, values.reshape(len(values), -1, values.shape[-1]), groups)
        own = lax.dynamic_slice_in_dim(scale.reshape(len(scale), -1), groups.first, len(groups.sizes))
        # Rows beyond the last group are nobody's, and may have any scale.
        return (y * jnp.repeat(own, groups.sizes, axis=0, total_repeat_length=len(x))).astype(x.dtype)

    def multiply(self, x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
        """`x[..., in] . (values[out, in] * scale[out]) -> [..., out]` in float32."""
        return _scaled_product(x, values, scale)


class Int8Product(Int8Weight):
    """As `Int8Weight`, multiplied by inputs that are rounded to 8 bits as well, with a scale for every row: sums are
    exact in int32. Experts multiply inputs as they are.
    """

    def multiply(self, x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
        """See `Int8Weight`."""
        return _rounded_product(x, values, scale)


class RoundedWeight(Weight):
    """A weight that is trained, whose products round both sides to 8 bits in the forward pass, a scale for every row of
    either. Gradients are those of the product that isn't rounded, in the dtype of activations. Experts multiply as
    ever.
    """

    def dot(self, x: jax.Array) -> jax.Array:
        """See `Weight`."""
        return dot(x, self[...], self.get_metadata("num_inputs"), _both_rounded)


def rounded(w: jax.Array, num_inputs: int) -> tuple[jax.Array, jax.Array]:
    """Integers `[..., in...]` and float32 scales `[...]` of `w[..., in...]`."""
    w = w.astype(jnp.float32)
    dims = tuple(range(w.ndim - num_inputs, w.ndim))
    largest = jnp.max(jnp.abs(w), axis=dims, keepdims=True)
    # A divisor that XLA does not know: it would multiply by the inverse of a constant, which rounds otherwise.
    scale = largest / (_LARGEST + 0 * largest)
    values = jnp.clip(jnp.round(w / jnp.where(scale > 0, scale, 1)), -_LARGEST, _LARGEST)
    return values.astype(jnp.int8), jnp.squeeze(scale, dims)


def dequantised(values: Any, scale: Any) -> jax.Array:
    """float32: what integers and their scales stand for."""
    scale = jnp.asarray(scale).reshape(*scale.shape, *(1,) * (values.ndim - scale.ndim))
    return jnp.asarray(values, jnp.float32) * scale


@jax.custom_vjp
def _scaled_product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    return product(x, values.astype(x.dtype)) * scale.reshape(*(1,) * (x.ndim - 1), -1)


def _forward(x: jax.Array, values: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple]:
    return _scaled_product(x, values, scale), (values, scale, x[..., :0])


def _backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, None, None]:
    values, scale, like = residuals
    g = (g * scale.reshape(*(1,) * (g.ndim - 1), -1)).astype(like.dtype)
    return backwards(g, values.astype(like.dtype)), None, None


_scaled_product.defvjp(_forward, _backward)


def _rounded_product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    q, x_scale = rounded(x, 1)
    rows = q.reshape(-1, q.shape[-1])
    if len(rows) == 1:  # XLA on CPU multiplies two rows of int8 ten times as fast as one (2026-11, jax 0.10.2)
        rows = jnp.pad(rows, ((0, 1), (0, 0)))
    y = lax.dot_general(rows, values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    y = y[: x_scale.size].reshape(*x_scale.shape, -1).astype(jnp.float32)
    return y * x_scale[..., None] * scale.reshape(*(1,) * (x.ndim - 1), -1)


def _both_rounded(x: jax.Array, w: jax.Array) -> jax.Array:
    return _rounded_product(x, *rounded(w, 1))
