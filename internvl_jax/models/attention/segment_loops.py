"""Attention of packed rows by plain products, a block of queries and a block of keys at a time, on CPU.

Both passes walk over those blocks of keys alone that a block of queries may see: from the first with a token of its
segments (or of its window) to its own. How many these are is known only when the program runs, so the passes are loops
of that many turns, and the backward pass is written out: JAX differentiates no such loop.

Source: FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from internvl_jax.models import scopes
from internvl_jax.models.attention import blocks

# Tokens of a block.
QUERIES, KEYS = 256, 512
_MASKED = -1e30  # finite: padding gets a mean, not NaN


class _Row(NamedTuple):
    """What decides in a row which keys a query sees.

    Attributes:
      segments_T, positions_T: as `attention.Mask` has them.
      first: int32 `[query blocks]`, the first block of keys that each block of queries has to meet.
    """

    segments_T: jax.Array
    positions_T: jax.Array
    first: jax.Array


def attend_in_loops(
    q_BMRTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    segments_BT: jax.Array,
    positions_BT: jax.Array,
    size: int | None,
    holds: jax.Array | None,
    sinks_MR: jax.Array | None,
) -> jax.Array:
    """Softmax attention of the tokens of a row to each other, by queries that are scaled already.

    Args:
      segments_BT, positions_BT: a token attends to itself and to earlier ones of its segment. The results of padding
        (segment 0) are finite.
      size: how many tokens a query sees, its own included; None: all.
      holds: bool scalar, whether this layer has the window at all.
      sinks_MR: a logit per head that takes part in the softmax, or None.

    Returns:
      `[B, M, R, T, H]` in q's dtype.
    """
    B, M, R, T, H = q_BMRTH.shape
    padding = -T % KEYS
    along = lambda x, axis: jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)])
    q, k, v = along(q_BMRTH, 3), along(k_BMTH, 2), along(v_BMTH, 2)
    segments_BT, positions_BT = along(segments_BT, 1), along(positions_BT, 1)
    first = jax.vmap(lambda segments_T: blocks.first_met(segments_T, segments_T, QUERIES, KEYS))(segments_BT)
    if size is not None:
        start = jnp.arange(first.shape[1], dtype=jnp.int32) * QUERIES
        near = (jnp.maximum(start - (size - 1), 0) // KEYS)[None]
        first = jnp.where(holds, jnp.maximum(first, near), first)
    rows = _Row(segments_BT, positions_BT, first)
    # A layer that has no window sees as far as there are tokens.
    reach = None if size is None else jnp.where(holds, size, T + padding)
    sinks_MR = jnp.full((M, R), -jnp.inf) if sinks_MR is None else sinks_MR

    def one_row(inputs: tuple) -> jax.Array:
        q, k, v, row = inputs
        return lax.map(lambda heads: _one_head(*heads, row, reach), (q, k, v, sinks_MR))

    # [query blocks, R x QUERIES, H] a head: one product serves all queries of a key/value head.
    q = q.reshape(B, M, R, -1, QUERIES, H).transpose(0, 1, 3, 2, 4, 5).reshape(B, M, -1, R * QUERIES, H)
    out = lax.map(one_row, (q, k, v, rows))
    out = out.reshape(B, M, -1, R, QUERIES, H).transpose(0, 1, 3, 2, 4, 5)
    return out.reshape(B, M, R, -1, H)[:, :, :, :T]


@jax.custom_vjp
def _one_head(
    q: jax.Array, k_TH: jax.Array, v_TH: jax.Array, sinks_R: jax.Array, row: _Row, reach: jax.Array | None
) -> jax.Array:
    """The queries of a key/value head, `[query blocks, R x QUERIES, H]`; returns as much."""
    return _forward(q, k_TH, v_TH, sinks_R, row, reach)[0]


def _forward(
    q: jax.Array, k_TH: jax.Array, v_TH: jax.Array, sinks_R: jax.Array, row: _Row, reach: jax.Array | None
) -> tuple[jax.Array, tuple]:
    """The result, and what the backward pass needs."""
    sinks = jnp.repeat(sinks_R, QUERIES)

    def queries(inputs: tuple) -> tuple[jax.Array, jax.Array]:
        q, index = inputs

        def keys(j: jax.Array, carry: tuple) -> tuple:
            out, total, largest = carry
            scores = jnp.where(_allowed(row, index, j, q, reach), _product(q, _keys(k_TH, j), 1, 1), _MASKED)
            larger = jnp.maximum(largest, jnp.max(scores, axis=1))
            weights = jnp.exp(scores - larger[:, None])
            shrunk = jnp.exp(largest - larger)
            total = total * shrunk + jnp.sum(weights, axis=1)
            out = out * shrunk[:, None] + _product(weights.astype(q.dtype), _keys(v_TH, j), 1, 0)
            return out, total, larger

        empty = jnp.zeros(q.shape, jnp.float32), jnp.exp(sinks - jnp.maximum(sinks, _MASKED))
        start = (*empty, jnp.maximum(sinks, _MASKED))
        out, total, largest = _over_keys(row, index, keys, start)
        return (out / total[:, None]).astype(q.dtype), largest + jnp.log(total)

    out, statistics = lax.map(queries, (q, jnp.arange(len(q), dtype=jnp.int32)))
    return out, (q, k_TH, v_TH, sinks_R, row, reach, out, statistics)


def _backward(saved: tuple, g: jax.Array) -> tuple[Any, ...]:
    q, k_TH, v_TH, sinks_R, row, reach, out, statistics = saved
    inner = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), axis=2)  # of each query

    def queries(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        q, g, inner, statistics, index = inputs

        def keys(j: jax.Array, carry: tuple) -> tuple:
            dq, dk_TH, dv_TH = carry
            k, v = _keys(k_TH, j), _keys(v_TH, j)
            scores = _product(q, k, 1, 1)
            weights = jnp.where(_allowed(row, index, j, q, reach), jnp.exp(scores - statistics[:, None]), 0)
            dscores = (weights * (_product(g, v, 1, 1) - inner[:, None])).astype(q.dtype)
            dv_TH = _added(dv_TH, _product(weights.astype(q.dtype), g, 0, 0), j)
            return dq + _product(dscores, k, 1, 0), _added(dk_TH, _product(dscores, q, 0, 0), j), dv_TH

        start = jnp.zeros(q.shape, jnp.float32), *carry
        dq, *carry = _over_keys(row, index, keys, start)
        return tuple(carry), dq.astype(q.dtype)

    zeros = tuple(jnp.zeros(part.shape, jnp.float32) for part in (k_TH, v_TH))
    inputs = q, g, inner, statistics, jnp.arange(len(q), dtype=jnp.int32)
    (dk_TH, dv_TH), dq = lax.scan(queries, zeros, inputs)
    of_sinks = jnp.exp(jnp.repeat(sinks_R, QUERIES)[None] - statistics) * inner
    dsinks_R = -jnp.sum(of_sinks.reshape(len(q), -1, QUERIES), axis=(0, 2))
    return dq, dk_TH.astype(k_TH.dtype), dv_TH.astype(v_TH.dtype), dsinks_R, None, None


_one_head.defvjp(_forward, _backward)


def _over_keys(row: _Row, index: jax.Array, body: Callable, start: Any) -> Any:
    """The loop over the blocks of keys that a block of queries has to meet: up to its own, the last that it may see."""
    most = -(-len(row.segments_T) // KEYS)
    end = (index * QUERIES + QUERIES - 1) // KEYS + 1
    with jax.named_scope(scopes.turns_scope((most + 1) // 2)):  # on average over the blocks of queries
        return lax.fori_loop(row.first[index], end, body, start)


def _keys(x_TH: jax.Array, j: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(x_TH, j * KEYS, KEYS)


def _added(x_TH: jax.Array, part: jax.Array, j: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x_TH, _keys(x_TH, j) + part, j * KEYS, 0)


def _product(one: jax.Array, other: jax.Array, one_axis: int, other_axis: int) -> jax.Array:
    contract = (((one_axis,), (other_axis,)), ((), ()))
    return lax.dot_general(one, other, contract, preferred_element_type=jnp.float32)


def _allowed(row: _Row, index: jax.Array, j: jax.Array, q: jax.Array, reach: jax.Array | None) -> jax.Array:
    """bool `[R x QUERIES, KEYS]`: as `attention.Mask.allowed`."""
    cut = lambda x, number, size: lax.dynamic_slice_in_dim(x, number * size, size)
    segments, positions = (cut(part, j, KEYS)[None] for part in (row.segments_T, row.positions_T))
    own, place = (cut(part, index, QUERIES)[:, None] for part in (row.segments_T, row.positions_T))
    allowed = (own == segments) & (segments > 0) & (place >= positions)
    if reach is not None:
        allowed &= place - positions < reach
    return jnp.tile(allowed, (len(q) // QUERIES, 1))
