"""Tokens to their experts and back, on one device or many; no token is dropped and all shapes are static."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models import scopes
from internvl_jax.models.bricks.grouped import ROWS
from internvl_jax.sharding import Share, bind, by_owner, by_token, flatten
from internvl_jax.sharding.flat import Params, logical_axes

# Rows of a chunk: so many even shares, so that mostly one is enough, but at most so many rows, for memory's sake
# (32,768 tokens with 8 experts each are four such chunks).
_CHUNK, _MOST = 1.25, 65536


def choose(logits_BTE: jax.Array, per_token: int) -> tuple[jax.Array, jax.Array]:
    """`[B, T, K]`: the largest logits, best first, and whose they are."""
    return by_token(lambda logits_BTE: lax.top_k(logits_BTE, per_token), logits_BTE)


def dispatch(experts: nnx.Module, x_BTD: jax.Array, chosen_BTK: jax.Array, weights_BTK: jax.Array) -> jax.Array:
    """`[B, T, D]`: for every token the sum of its experts' outputs, weighted.

    Args:
      experts: called with rows `[R, D]` sorted by expert, how many rows each expert has `[E]`, and the expert of every
        row `[R]`. The first dimension of every parameter is 'expert'.
      chosen_BTK: numbers of the chosen experts.
      weights_BTK: float32.
    """
    graphdef, params = nnx.split(experts, nnx.Param)[0], flatten(experts)
    multiply = functools.partial(_multiply, graphdef)
    return by_owner(multiply, params, logical_axes(experts), x_BTD, chosen_BTK, weights_BTK)


def _multiply(
    graphdef: nnx.GraphDef, params: Params, x_ND: jax.Array, chosen_NK: jax.Array, weights_NK: jax.Array, share: Share
) -> jax.Array:
    """`[N, D]`: what the experts of one device contribute.

    Choices are sorted by expert, those of other devices last. Rows of the own experts are multiplied in chunks; chunks
    without such rows are skipped. So a device that more tokens want takes longer, but no more memory.
    """
    places, count = chosen_NK.size, len(next(iter(params.values())))  # a place is a token's choice
    expert = chosen_NK.reshape(-1) - share.first
    expert = jnp.where((expert >= 0) & (expert < count), expert, count)
    order = jnp.argsort(expert, stable=True)
    ends_E = jnp.cumsum(jnp.bincount(expert, length=count).astype(jnp.int32))

    even = math.ceil(places / share.shards)
    size = min(places, _MOST, ROWS * math.ceil(even * _CHUNK / ROWS))
    chunks = math.ceil(places / size)
    order_CR = jnp.pad(order, (0, chunks * size - places)).reshape(chunks, size)
    name = scopes.chunks_scope(math.ceil(even / size), chunks)
    out_ND = _chunks(graphdef, name, params, jnp.asarray(x_ND), weights_NK, expert, ends_E, order_CR)
    return out_ND.astype(x_ND.dtype)


class _Chunk(NamedTuple):
    """Rows of some places, sorted by expert.

    Attributes:
      place_R, token_R, expert_R: numbers.
      sizes_E: rows of every expert.
      real_R1: False for rows beyond those of the own experts.
    """

    place_R: jax.Array
    token_R: jax.Array
    expert_R: jax.Array
    sizes_E: jax.Array
    real_R1: jax.Array


def _fold(name: str, add: Callable, carry, expert, ends_E, order_CR, per_token: int):
    """Folds `add(carry, chunk)` over the chunks that have rows."""
    C, R = order_CR.shape

    def step(carry, inputs):
        start, order_R = inputs

        def run(carry):
            sizes_E = jnp.diff(jnp.clip(ends_E - start, 0, R), prepend=0)
            expert_R = jnp.minimum(expert[order_R], len(ends_E) - 1)
            real_R1 = (start + jnp.arange(R) < ends_E[-1])[:, None]
            return add(carry, _Chunk(order_R, order_R // per_token, expert_R, sizes_E, real_R1))

        with jax.named_scope(name):
            return lax.cond(start < ends_E[-1], run, lambda carry: carry, carry), None

    return lax.scan(step, carry, (jnp.arange(C) * R, order_CR))[0]


def _rows(graphdef: nnx.GraphDef, chunk: _Chunk, params: Params, x_RD: jax.Array, weights_R: jax.Array) -> jax.Array:
    """Weighted outputs of the experts. What a grouped product returns for rows beyond its groups is not defined."""
    y_RD = bind(graphdef, params)(jnp.where(chunk.real_R1, x_RD, 0), chunk.sizes_E, chunk.expert_R)
    return jnp.where(chunk.real_R1, y_RD.astype(jnp.float32), 0) * weights_R[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunks(graphdef, name, params, x_ND, weights_NK, expert, ends_E, order_CR):
    """The sum over a token's places, in float32. Its gradient recomputes a chunk's rows, and skips what is skipped."""
    weights = weights_NK.reshape(-1)

    def add(out_ND, chunk):
        y_RD = _rows(graphdef, chunk, params, x_ND[chunk.token_R], weights[chunk.place_R])
        return out_ND.at[chunk.token_R].add(y_RD)

    return _fold(name, add, jnp.zeros(x_ND.shape, jnp.float32), expert, ends_E, order_CR, weights_NK.shape[1])


def _chunks_forward(graphdef, name, *given):
    return _chunks(graphdef, name, *given), given


def _chunks_backward(graphdef, name, given, g_ND):
    params, x_ND, weights_NK, expert, ends_E, order_CR = given
    weights = weights_NK.reshape(-1)

    def add(sums, chunk):
        rows = functools.partial(_rows, graphdef, chunk)
        pull = jax.vjp(rows, params, x_ND[chunk.token_R], weights[chunk.place_R])[1]
        dparams, dx_RD, dweights_R = pull(g_ND[chunk.token_R])
        return (
            jax.tree.map(jnp.add, sums[0], dparams),
            sums[1].at[chunk.token_R].add(dx_RD.astype(jnp.float32)),
            sums[2].at[chunk.place_R].add(dweights_R),
        )

    zeros = jax.tree.map(lambda value: jnp.zeros(value.shape, jnp.float32), (params, x_ND, weights))
    dparams, dx_ND, dweights = _fold(name, add, zeros, expert, ends_E, order_CR, weights_NK.shape[1])
    dparams = jax.tree.map(lambda grad, value: grad.astype(value.dtype), dparams, params)
    return dparams, dx_ND.astype(x_ND.dtype), dweights.reshape(weights_NK.shape), None, None, None


_chunks.defvjp(_chunks_forward, _chunks_backward)
