"""The small bricks: linear layers, norms, activations, layer scale and drop path.

Weights are output-major. Products take inputs in the compute dtype and accumulate in float32; norms, softmax and
activations are computed in float32 and cast back.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.sharding import param

Axes = tuple[str | None, ...]


def normal(stddev: float) -> Callable:
    return jax.nn.initializers.normal(stddev)


_FEW = 64  # rows, as in decoding

zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


def identity(x: jax.Array) -> jax.Array:
    """In place of a norm that a family lacks."""
    return x


def along(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value` with leading dimensions of 1, to meet the last dimensions of x: broadcasting is never silent here."""
    return value.reshape((1,) * (x.ndim - value.ndim) + value.shape)


@jax.custom_vjp
def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x[..., I] . w[O, I] -> [..., O]` in x's dtype, accumulated in float32.

    The gradient is written out since differentiating an accumulate-in-float32 product makes products of float32 with
    bfloat16, which no platform has a fast path for. That of w is computed in float32 and has w's own dtype.
    """
    return product(x, w.astype(x.dtype)).astype(x.dtype)


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x[..., I] . w[O, I] -> [..., O]` in float32."""
    contract = lambda x, w: _contract(x, w, x.ndim - 1, 1)
    rows = x.size // x.shape[-1]
    if x.dtype == jnp.float32 and 1 < rows <= _FEW:

        def turned(x, w):
            y = _contract(w, x.reshape(rows, -1), 1, 1)
            return lax.optimization_barrier(y).T.reshape(*x.shape[:-1], -1)  # or XLA would turn the product back

        # On CPU a few rows are multiplied 1.3 to 1.7 times as fast from the right; those of bfloat16 are not, and not
        # everywhere can be (2026-11, jax 0.10.2).
        return lax.platform_dependent(x, w, cpu=turned, default=contract)
    if x.dtype != jnp.bfloat16 or x.size > x.shape[-1]:
        return contract(x, w)

    def padded(x, w):
        rows = lax.pad(x.reshape(1, -1), jnp.bfloat16(0), ((0, 3, 0), (0, 0, 0)))
        return contract(rows, w)[:1].reshape(*x.shape[:-1], -1)

    # XLA on CPU multiplies four rows of bfloat16 16 times as fast as one (2026-11, jax 0.10.2).
    return lax.platform_dependent(x, w, cpu=padded, default=contract)


def _contract(x: jax.Array, w: jax.Array, x_dim: int, w_dim: int) -> jax.Array:
    return lax.dot_general(x, w, (((x_dim,), (w_dim,)), ((), ())), preferred_element_type=jnp.float32)


def _dot_forward(x, w):
    return dot(x, w), (x, w)


def _dot_backward(residuals, g):
    x, w = residuals
    dx = _contract(g, w.astype(x.dtype), g.ndim - 1, 0).astype(x.dtype)
    batch = tuple(range(x.ndim - 1))
    dw = lax.dot_general(g, x, ((batch, batch), ((), ())), preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


dot.defvjp(_dot_forward, _dot_backward)


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
        self.weight = param(rngs, (*outputs, *inputs), (*axes[0], *axes[1]), init)
        self.bias = param(rngs, outputs, axes[0], zeros) if bias else None
        self.num_inputs = len(inputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight[...]
        outputs, inputs = weight.shape[: -self.num_inputs], weight.shape[-self.num_inputs :]
        lead = x.shape[: x.ndim - self.num_inputs]
        y = dot(x.reshape(*lead, -1), weight.reshape(-1, math.prod(inputs)))
        if self.bias is not None:
            y = y + along(self.bias[...].reshape(-1).astype(y.dtype), y)
        return y.reshape(*lead, *outputs)


class RmsNorm(nnx.Module):
    """Root-mean-square norm over the trailing dimensions that `shape` names (full-width q/k norm: heads and width)."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, eps: float):
        self.scale = param(rngs, shape, axes, ones)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        dims = tuple(range(-self.scale.ndim, 0))
        x32 = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=dims, keepdims=True) + self.eps)
        return (x32 * along(self.scale[...].astype(jnp.float32), x)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last dimension, with scale and bias."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, eps: float):
        self.scale = param(rngs, shape, axes, ones)
        self.bias = param(rngs, shape, axes, zeros)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        scale, bias = (along(part[...].astype(jnp.float32), x) for part in (self.scale, self.bias))
        return (x32 * scale + bias).astype(x.dtype)


NORMS = {"layer_norm": LayerNorm, "rms_norm": RmsNorm}


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) form, in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def silu(x: jax.Array) -> jax.Array:
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


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
      x: [G, P, D], one entry of the first dimension is dropped or kept as a whole.
      rate: scalar.
      key: None outside training.
    """
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)
