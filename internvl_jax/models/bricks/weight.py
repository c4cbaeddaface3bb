"""Weights: no other module knows how one is stored.

Bricks call the methods of `Weight` and never read its array. What is stored in another way (a base and a low-rank
difference, integers and scales) is a module with the same methods: it takes a weight's place in the structure of a
model, and no brick changes. The paths of its parameters then begin with the weight's: `vit.layers.attn.qkv.weight.q`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models.bricks.grouped import Groups, grouped_product
from internvl_jax.sharding import param, shard

Multiply = Callable[[jax.Array, jax.Array], jax.Array]

_FEW = 64  # rows, as in decoding


class Weight(nnx.Param):
    """`weight[out..., in...]`, stored as it is; make one with `make_weight`."""

    def dense(self, dtype: jnp.dtype | None = None) -> jax.Array:
        """The whole weight, `[out..., in...]`; without a dtype in the one that it is stored in."""
        value = self[...]
        return value if dtype is None else value.astype(dtype)

    def dot(self, x: jax.Array) -> jax.Array:
        """`x[..., in...] -> [..., out...]` in x's dtype, accumulated in float32."""
        return dot(x, self[...], self.get_metadata("num_inputs"))

    def product(self, x: jax.Array) -> jax.Array:
        """As `dot`, but what was accumulated in float32 stays so."""
        value, inputs = self[...], self.get_metadata("num_inputs")
        rows, matrix = _matrices(x, value, inputs)
        return product(rows, matrix.astype(x.dtype)).reshape(_shape(x, value, inputs))

    def take(self, numbers: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """`[...] -> [..., in]`: rows of a table, by their numbers."""
        # Whole in width on every device, as the batch is spread over the axes that the table's width lies on.
        return jnp.take(shard(self.dense(dtype), "act_vocab", None), numbers, axis=0)

    def grouped(self, x: jax.Array, groups: Groups) -> jax.Array:
        """Products with the weights of several experts, `[expert, out..., in]`: `x[rows, in] -> [rows, out]`, the
        outputs in one dimension.

        Args:
          groups: the rows of every expert.
        """
        value = self[...]
        return grouped_product(x, value.reshape(len(value), -1, value.shape[-1]), groups)


def make_weight(
    rngs: nnx.Rngs,
    outputs: tuple[int, ...],
    inputs: tuple[int, ...],
    axes: tuple[tuple[str | None, ...], tuple[str | None, ...]],
    init: Callable,
) -> Weight:
    """A weight `[out..., in...]`; `axes` are the logical axes of its outputs and of its inputs."""
    shape, names = (*outputs, *inputs), (*axes[0], *axes[1])
    return param(rngs, shape, names, init, kind=Weight, num_inputs=len(inputs))


def as_matrices(stacked: nnx.State) -> tuple[nnx.State, Callable[[nnx.State], nnx.State]]:
    """Parameters of all layers with weights `[L, out..., in]` as matrices `[L, out, in]`, and the way back for those of
    one layer.

    XLA on TPU cuts a layer's matrix out of the stack within its product, and anything else before it: a copy, which was
    a tenth of the 8B's time of a token (2026-11, libtpu 0.0.42). Weights of several inputs stay as they are: as
    matrices they would lie otherwise.
    """
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(stacked)]

    def matrix(parameter: nnx.Variable) -> nnx.Variable:
        axes = parameter.get_metadata("axes")
        if parameter.get_metadata("num_inputs", 0) != 1 or any(axes[2:-1]):
            return parameter
        return jax.tree.map(lambda w: w.reshape(len(w), -1, w.shape[-1]), parameter)

    def restored(layer: nnx.State) -> nnx.State:
        leaves, tree = jax.tree.flatten(layer)
        return tree.unflatten([leaf.reshape(shape) for leaf, shape in zip(leaves, shapes, strict=True)])

    return jax.tree.map(matrix, stacked, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)), restored


def dot(x: jax.Array, w: jax.Array, inputs: int = 1, multiply: Multiply | None = None) -> jax.Array:
    """`x[..., in...] . w[out..., in...] -> [..., out...]` in x's dtype, accumulated in float32.

    The gradient is written out since differentiating an accumulate-in-float32 product makes products of float32 with
    bfloat16, which no platform has a fast path for. That of w is computed in float32 and has w's own dtype. Between the
    passes w is kept as it was given: in another shape a loop over layers would keep a copy of all of them.

    Args:
      inputs: how many dimensions are summed over.
      multiply: `x[..., in] . w[out, in] -> [..., out]` in float32, of the forward pass; None: `product`. The gradient
        is that of a product whichever it is.
    """
    return _dot(x, w, inputs, multiply or product)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dot(x: jax.Array, w: jax.Array, inputs: int, multiply: Multiply) -> jax.Array:
    rows, matrix = _matrices(x, w, inputs)
    return multiply(rows, matrix.astype(x.dtype)).astype(x.dtype).reshape(_shape(x, w, inputs))


def _matrices(x: jax.Array, w: jax.Array, inputs: int) -> tuple[jax.Array, jax.Array]:
    """`[..., in]` and `[out, in]`: the fast paths of `product` know no other shapes."""
    width = math.prod(w.shape[w.ndim - inputs :])
    return x.reshape(*x.shape[: x.ndim - inputs], width), w.reshape(-1, width)


def _shape(x: jax.Array, w: jax.Array, inputs: int) -> tuple[int, ...]:
    return (*x.shape[: x.ndim - inputs], *w.shape[: w.ndim - inputs])


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x[..., in] . w[out, in] -> [..., out]` in float32."""
    contract = lambda x, w: _contract(x, w, x.ndim - 1, 1)
    rows = x.size // x.shape[-1]
    if x.dtype == jnp.float32 and 1 < rows <= _FEW:

        def turned(x: jax.Array, w: jax.Array) -> jax.Array:
            y = _contract(w, x.reshape(rows, -1), 1, 1)
            return lax.optimization_barrier(y).T.reshape(*x.shape[:-1], -1)  # or XLA would turn the product back

        # On CPU a few rows are multiplied 1.3 to 1.7 times as fast from the right; those of bfloat16 are not, and not
        # everywhere can be (2026-11, jax 0.10.2).
        return lax.platform_dependent(x, w, cpu=turned, default=contract)
    if x.dtype != jnp.bfloat16 or x.size > x.shape[-1]:
        return contract(x, w)

    def padded(x: jax.Array, w: jax.Array) -> jax.Array:
        rows = lax.pad(x.reshape(1, -1), jnp.bfloat16(0), ((0, 3, 0), (0, 0, 0)))
        return contract(rows, w)[:1].reshape(*x.shape[:-1], -1)

    # XLA on CPU multiplies four rows of bfloat16 16 times as fast as one (2026-11, jax 0.10.2).
    return lax.platform_dependent(x, w, cpu=padded, default=contract)


def backwards(g: jax.Array, w: jax.Array) -> jax.Array:
    """`g[..., out] . w[out, in] -> [..., in]` in w's dtype: what a product passes back to its input."""
    return _contract(g, w, g.ndim - 1, 0).astype(w.dtype)


def _contract(x: jax.Array, w: jax.Array, x_dim: int, w_dim: int) -> jax.Array:
    return lax.dot_general(x, w, (((x_dim,), (w_dim,)), ((), ())), preferred_element_type=jnp.float32)


def _dot_forward(
    x: jax.Array, w: jax.Array, inputs: int, multiply: Multiply
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dot(x, w, inputs, multiply), (x, w)


def _dot_backward(
    inputs: int, multiply: Multiply, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del multiply
    x, w = kept
    rows, matrix = _matrices(x, w, inputs)
    g = g.reshape(*rows.shape[:-1], -1)
    dx = backwards(g, matrix.astype(x.dtype))
    batch = tuple(range(rows.ndim - 1))
    dw = lax.dot_general(g, rows, ((batch, batch), ((), ())), preferred_element_type=jnp.float32)
    return dx.reshape(x.shape), dw.astype(w.dtype).reshape(w.shape)


_dot.defvjp(_dot_forward, _dot_backward)
