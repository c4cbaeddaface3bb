"""The small bricks: linear layers, norms, activations, layer scale and drop path.

Products take inputs in the compute dtype and accumulate in float32; norms, softmax and activations are computed in
float32 and cast back. Of norms and activations the backward pass keeps the inputs, and computes what is between again:
that takes no product, and in float32 it was half of what a layer kept.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models.bricks.weight import make_weight
from internvl_jax.sharding import param

Axes = tuple[str | None, ...]
# Inside a loop over layers nothing of a forward pass is left that could be taken for the same (prevent_cse).
_made_again = functools.partial(jax.checkpoint, prevent_cse=False)


def normal(stddev: float) -> Callable:
    return jax.nn.initializers.normal(stddev)


zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


def identity(x: jax.Array) -> jax.Array:
    """x itself: stands where a family has no norm."""
    return x


def along(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value` with leading dimensions of 1, as many as it takes to broadcast along the last dimensions of x.

    Arrays of different ranks are never combined in this project: tests refuse it (jax_numpy_rank_promotion).
    """
    return value.reshape((1,) * (x.ndim - value.ndim) + value.shape)


class Linear(nnx.Module):
    """`y[..., out...] = x[..., in...] . weight[out..., in...] + bias[out...]`."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        outputs: tuple[int, ...],
        inputs: tuple[int, ...],
        axes: tuple[Axes, Axes],
        init: Callable,
        bias: bool,
    ):
        self.weight = make_weight(rngs, outputs, inputs, axes, init)
        self.bias: nnx.Param | None = param(rngs, outputs, axes[0], zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.weight.dot(x)
        return y if self.bias is None else y + along(self.bias[...].astype(y.dtype), y)


class RmsNorm(nnx.Module):
    """Root-mean-square norm over the last dimensions, those of `shape` (heads and width in the full-width q/k norm)."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, eps: float):
        self.scale: nnx.Param = param(rngs, shape, axes, ones)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        dims = tuple(range(-self.scale.ndim, 0))

        @_made_again
        def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
            x32 = x.astype(jnp.float32)
            x32 = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=dims, keepdims=True) + self.eps)
            return (x32 * along(scale.astype(jnp.float32), x)).astype(x.dtype)

        return normed(x, self.scale[...])


class LayerNorm(nnx.Module):
    """Layer norm over the last dimension, with scale and bias."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, eps: float):
        self.scale: nnx.Param = param(rngs, shape, axes, ones)
        self.bias: nnx.Param = param(rngs, shape, axes, zeros)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        @_made_again
        def normed(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            x32 = x.astype(jnp.float32)
            centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
            x32 = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
            scale, bias = (along(part.astype(jnp.float32), x) for part in (scale, bias))
            return (x32 * scale + bias).astype(x.dtype)

        return normed(x, self.scale[...], self.bias[...])


NORMS: dict[str, type[LayerNorm] | type[RmsNorm]] = {"layer_norm": LayerNorm, "rms_norm": RmsNorm}


@_made_again
def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) form, in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


@_made_again
def gated(gate: jax.Array, x: jax.Array) -> jax.Array:
    """x, gated: silu(gate) * x, the first factor computed in float32."""
    return jax.nn.silu(gate.astype(jnp.float32)).astype(gate.dtype) * x


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Drops single values with probability `rate` and scales the others by 1 / (1 - rate); without a key the identity.

    At rate 0 no random numbers are made: they cost compile time.
    """
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: jax.Array, rate: jax.Array, key: jax.Array | None) -> jax.Array:
    """Drops the whole residual branch of a tile with probability `rate`, and scales what is kept by 1 / (1 - rate).

    Args:
      x: the branch's output, `[G, P, D]`; a tile is dropped or kept as a whole.
      rate: scalar, the probability of being dropped.
      key: randomness; None outside training, where nothing is dropped.
    """
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)
