"""Products of rows with the weights of their groups: the rows of a group stand together, and groups are ragged.

XLA's own product costs as many times too much as there are groups: on CPU always, on TPU in the gradient of the weights
(2026-11, jax 0.10.2). So TPU has a library's kernels, and CPU a loop over blocks of rows.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from internvl_jax.sharding import meshed, platform

# [rows, in] . [groups, out, in], [rows, out] . [groups, out, in] and [rows, out] . [rows, in] of every group.
_FORWARD = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
_BACKWARD = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
_WEIGHTS = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
# ROWS: rows that a kernel takes at once. Fewer rows (decoding) are filled up to a multiple of _FEW.
ROWS, _FEW = 512, 128
# Rows that the loop takes at once. The last block of a group also has rows of the next groups.
_BLOCK = 64


class Groups(NamedTuple):
    """How rows are grouped.

    Attributes:
      sizes: how many rows every group has, int32; they stand in the order of the groups.
      first: the place of the first group's weights. Weights before them, and behind those of the last, are not read.
    """

    sizes: jax.Array
    first: jax.Array | int = 0


def grouped_product(x: jax.Array, w: jax.Array, groups: Groups) -> jax.Array:
    """`x[rows, in] . w[first + group of the row, out, in] -> [rows, out]` in x's dtype, accumulated in float32.

    Integers for w are multiplied as numbers of x's dtype; they have no gradient. Rows beyond the last group may come
    out as anything.
    """
    kind = platform()
    # Outside of `use`, weights may be spread in ways that only XLA's own product knows to follow.
    if kind != "tpu" or not meshed():
        return _product(x, w, groups, "any" if kind == "tpu" else kind)
    filled = jnp.pad(x, ((0, -len(x) % (_FEW if len(x) < ROWS else ROWS)), (0, 0)))
    return _product(filled, w, groups, kind)[: len(x)]


def _tiles(rows: int, contracted: int, out: int) -> tuple[int, int, int]:
    """What a kernel takes at once: of widths 512 to 1,024, whichever fills up the last part least."""
    fitting = lambda size: min(range(1024, 511, -128), key=lambda part: -size % part)
    return math.gcd(rows, ROWS), fitting(contracted), fitting(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x: jax.Array, w: jax.Array, groups: Groups, kind: str) -> jax.Array:
    w = _cast(w, x.dtype)
    if kind == "tpu":
        return _kernel(x, w, groups, transposed=True)
    if kind == "cpu":
        return _loop_rows(x, w, groups, 1)
    return _ragged(x, w, groups, _FORWARD).astype(x.dtype)


def _forward(x: jax.Array, w: jax.Array, groups: Groups, kind: str) -> tuple[jax.Array, tuple]:
    return _product(x, w, groups, kind), (x, w, groups)


def _inputs(kind: str, g: jax.Array, w: jax.Array, groups: Groups) -> jax.Array:
    """What a product passes back to its input."""
    if kind == "tpu":
        return _kernel(g, w, groups, transposed=False)
    return _loop_rows(g, w, groups, 0) if kind == "cpu" else _ragged(g, w, groups, _BACKWARD)


def _backward(kind: str, residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array | None, None]:
    x, w, groups = residuals
    if jnp.issubdtype(w.dtype, jnp.integer):
        return _inputs(kind, g, w, groups).astype(x.dtype), None, None
    dx = _inputs(kind, g, w.astype(x.dtype), groups)
    if kind == "tpu":
        from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm  # here: it takes long to import

        dw = tgmm(g.swapaxes(0, 1), x, groups.sizes, w.dtype, _tiles)
    elif kind == "cpu":
        dw = _loop_weights(g, x, groups.sizes)
    else:
        dw = lax.ragged_dot_general(g, x, groups.sizes, _WEIGHTS, preferred_element_type=jnp.float32)
    others = jnp.zeros(w.shape, w.dtype)
    return dx.astype(x.dtype), lax.dynamic_update_slice_in_dim(others, dw.astype(w.dtype), groups.first, 0), None


_product.defvjp(_forward, _backward)


def _cast(w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Floats in this dtype. Integers stay, until those that are multiplied are cut out of the stack."""
    return w if jnp.issubdtype(w.dtype, jnp.integer) else w.astype(dtype)


def _own(w: jax.Array, groups: Groups, dtype: jnp.dtype) -> jax.Array:
    return lax.dynamic_slice_in_dim(w, groups.first, len(groups.sizes)).astype(dtype)


def _kernel(x: jax.Array, w: jax.Array, groups: Groups, transposed: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    if w.dtype != x.dtype:  # the kernel takes no integers
        w, groups = _own(w, groups, x.dtype), Groups(groups.sizes)

    # The kernel reads the weights of group - offset, where w holds a part of all groups. Here groups are a part of w.
    return gmm(x, w, groups.sizes, x.dtype, _tiles, -groups.first, transpose_rhs=transposed)


def _ragged(x: jax.Array, w: jax.Array, groups: Groups, dimensions: lax.RaggedDotDimensionNumbers) -> jax.Array:
    """In float32. XLA's product may take as long for a group without rows as for others."""
    w = _own(w, groups, x.dtype)
    return lax.ragged_dot_general(x, w, groups.sizes, dimensions, preferred_element_type=jnp.float32)


def _loop_rows(x: jax.Array, w: jax.Array, groups: Groups, dim: int) -> jax.Array:
    """Every row of x times dimension 1 + dim of its group's weights."""
    rows, size = len(x), min(_BLOCK, len(x))
    x = jnp.pad(x, ((0, size), (0, 0)))

    def block(out: jax.Array, group: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, start, size)
        weight = lax.dynamic_index_in_dim(w, groups.first + group, keepdims=False).astype(x.dtype)
        y = lax.dot_general(part, weight, (((1,), (dim,)), ((), ())), preferred_element_type=jnp.float32)
        # Rows beyond the group's end are those of later groups, which write theirs afterwards.
        return lax.dynamic_update_slice_in_dim(out, y.astype(x.dtype), start, 0)

    return _blocks(block, jnp.zeros((rows + size, w.shape[2 - dim]), x.dtype), groups.sizes, size)[:rows]


def _loop_weights(g: jax.Array, x: jax.Array, sizes: jax.Array) -> jax.Array:
    """`[groups, out, in]` in float32: the sum over a group's rows of g `[rows, out]` times x `[rows, in]`."""
    size = min(_BLOCK, len(x))
    g, x = (jnp.pad(part, ((0, size), (0, 0))) for part in (g, x))

    def block(dw: jax.Array, group: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
        own = (start + jnp.arange(size) < end)[:, None]
        ours = (jnp.where(own, lax.dynamic_slice_in_dim(part, start, size), 0) for part in (g, x))
        new = lax.dot_general(*ours, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return dw.at[group].add(new)

    return _blocks(block, jnp.zeros((len(sizes), g.shape[1], x.shape[1]), jnp.float32), sizes, size)


def _blocks(block: Callable, out: jax.Array, sizes: jax.Array, size: int) -> jax.Array:
    """Folds `block(out, group, first row, end of the group)` over all blocks that have rows, in order."""
    ends = jnp.cumsum(sizes)
    last = jnp.cumsum((sizes + size - 1) // size)  # blocks up to the group's last

    def step(index: jax.Array, out: jax.Array) -> jax.Array:
        group = jnp.searchsorted(last, index, side="right", method="compare_all")
        blocks = (sizes[group] + size - 1) // size
        start = ends[group] - sizes[group] + (index - last[group] + blocks) * size
        return block(out, group, start, ends[group])

    return lax.fori_loop(0, last[-1], step, out)
