"""Tokens to their experts and back, on one device or many; no token is dropped and all shapes are static."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models import scopes
from internvl_jax.models.bricks.grouped import ROWS, Groups
from internvl_jax.models.transforms.quantised_names import stored_dtype
from internvl_jax.sharding import Params, Share, bind, by_owner, by_token, flatten, logical_axes

# A chunk has 1.25 times the rows that a device has if all have equal shares: mostly one chunk is enough. For memory's
# sake it has at most 65,536 rows (32,768 tokens with 8 experts each are four such chunks).
_CHUNK, _MOST = 1.25, 65536


def choose(logits_BTE: jax.Array, per_token: int) -> tuple[jax.Array, jax.Array]:
    """The largest logits of every token, best first, and the numbers of their experts; `[B, T, K]` each."""
    return by_token(lambda logits_BTE: lax.top_k(logits_BTE, per_token), logits_BTE)


def dispatch(
    experts: nnx.Module, x_BTD: jax.Array, chosen_BTK: jax.Array, weights_BTK: jax.Array, layer: jax.Array | int
) -> jax.Array:
    """`[B, T, D]`: for every token the sum of its experts' outputs, weighted.

    Args:
      experts: called with rows `[U, D]` sorted by expert, their groups, and the place of every row's expert in the
        parameters `[U]`. These begin with the dimension 'expert', or with 'layers' and 'expert', which are made one.
      chosen_BTK: numbers of the chosen experts.
      weights_BTK: the factors of their outputs, float32.
      layer: which of the layers.
    """
    graphdef, params = nnx.split(experts, nnx.Param)[0], flatten(experts)
    multiply = functools.partial(_multiply, graphdef)
    dtypes = {path: stored_dtype(path, x_BTD.dtype) for path in params}
    return by_owner(multiply, params, logical_axes(experts), dtypes, layer, x_BTD, chosen_BTK, weights_BTK)


def _multiply(
    graphdef: nnx.GraphDef, params: Params, x_TD: jax.Array, chosen_TK: jax.Array, weights_TK: jax.Array, share: Share
) -> jax.Array:
    """`[T, D]`: what the experts of one device contribute.

    Choices are sorted by expert; choices of other devices' experts come last. The rows of this device's experts are
    multiplied in chunks, and chunks without any are skipped: a device that more tokens go to needs more time, but no
    more memory.
    """
    places, count = chosen_TK.size, share.count  # a place is a token's choice
    expert = chosen_TK.reshape(-1) - share.first
    expert = jnp.where((expert >= 0) & (expert < count), expert, count)
    order = jnp.argsort(expert, stable=True)
    ends_E = jnp.cumsum(jnp.bincount(expert, length=count).astype(jnp.int32))

    even = math.ceil(places / share.shards)
    size = min(places, _MOST, ROWS * math.ceil(even * _CHUNK / ROWS))
    chunks = math.ceil(places / size)
    orders = jnp.pad(order, (0, chunks * size - places)).reshape(chunks, size)
    choices = _Choices(expert, ends_E, orders, share.offset)
    filled = math.ceil(even / size)
    name = scopes.chunks_scope(filled, chunks, even / (filled * size))
    out_TD = _chunks(graphdef, name, params, jnp.asarray(x_TD), weights_TK, choices)
    return out_TD.astype(x_TD.dtype)


class _Choices(NamedTuple):
    """All choices of all tokens, sorted by expert.

    Attributes:
      expert: the number of every choice's expert, among those of the device; E where it is another device's.
      ends_E: how many choices go to an expert or to one before it.
      orders: the numbers of the choices, sorted, `[chunks, U]`.
      offset: see `Share`.
    """

    expert: jax.Array
    ends_E: jax.Array
    orders: jax.Array
    offset: jax.Array | int


class _Chunk(NamedTuple):
    """A part of the rows that a device multiplies, sorted by expert. A row is one token's choice of one expert.

    Attributes:
      place_U: the number of the choice, among all choices of all tokens.
      token_U: the number of the token.
      expert_U: the place of the expert in the device's parameters.
      groups: the rows of every expert.
      real_U1: False where the expert is another device's.
    """

    place_U: jax.Array
    token_U: jax.Array
    expert_U: jax.Array
    groups: Groups
    real_U1: jax.Array


def _fold(name: str, add: Callable, carry: Any, choices: _Choices, per_token: int) -> Any:
    """Folds `add(carry, chunk)` over the chunks that have rows."""
    expert, ends_E, orders, offset = choices
    chunks, U = orders.shape

    def step(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        start, order_U = inputs

        def run(carry: Any) -> Any:
            sizes_E = jnp.diff(jnp.clip(ends_E - start, 0, U), prepend=0)
            expert_U = offset + jnp.minimum(expert[order_U], len(ends_E) - 1)
            real_U1 = (start + jnp.arange(U) < ends_E[-1])[:, None]
            return add(carry, _Chunk(order_U, order_U // per_token, expert_U, Groups(sizes_E, offset), real_U1))

        with jax.named_scope(name):
            return lax.cond(start < ends_E[-1], run, lambda carry: carry, carry), None

    return lax.scan(step, carry, (jnp.arange(chunks) * U, orders))[0]


def _rows(graphdef: nnx.GraphDef, chunk: _Chunk, params: Params, x_UD: jax.Array, weights_U: jax.Array) -> jax.Array:
    """Weighted outputs of the experts; 0 for rows that are not real, where a grouped product may return anything."""
    y_UD = bind(graphdef, params)(jnp.where(chunk.real_U1, x_UD, 0), chunk.groups, chunk.expert_U)
    return jnp.where(chunk.real_U1, y_UD.astype(jnp.float32), 0) * weights_U[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunks(
    graphdef: nnx.GraphDef,
    name: str,
    params: Params,
    x_TD: jax.Array,
    weights_TK: jax.Array,
    choices: _Choices,
) -> jax.Array:
    """For every token the sum over its choices, in float32.

    The gradient computes the rows of a chunk again, and skips the chunks that were skipped.
    """
    weights = weights_TK.reshape(-1)

    def add(out_TD: jax.Array, chunk: _Chunk) -> jax.Array:
        y_UD = _rows(graphdef, chunk, params, x_TD[chunk.token_U], weights[chunk.place_U])
        return out_TD.at[chunk.token_U].add(y_UD)

    return _fold(name, add, jnp.zeros(x_TD.shape, jnp.float32), choices, weights_TK.shape[1])


def _chunks_forward(graphdef: nnx.GraphDef, name: str, *given: Any) -> tuple[jax.Array, tuple]:
    return _chunks(graphdef, name, *given), given


def _chunks_backward(graphdef: nnx.GraphDef, name: str, given: tuple, g_TD: jax.Array) -> tuple:
    params, x_TD, weights_TK, choices = given
    weights = weights_TK.reshape(-1)
    integers = {path: value for path, value in params.items() if jnp.issubdtype(value.dtype, jnp.integer)}
    params = {path: value for path, value in params.items() if path not in integers}

    def add(sums: tuple, chunk: _Chunk) -> tuple:
        rows = lambda params, *given: _rows(graphdef, chunk, params | integers, *given)
        pull = jax.vjp(rows, params, x_TD[chunk.token_U], weights[chunk.place_U])[1]
        dparams, dx_UD, dweights_U = pull(g_TD[chunk.token_U])
        return (
            jax.tree.map(jnp.add, sums[0], dparams),
            sums[1].at[chunk.token_U].add(dx_UD.astype(jnp.float32)),
            sums[2].at[chunk.place_U].add(dweights_U),
        )

    zeros = jax.tree.map(lambda value: jnp.zeros(value.shape, jnp.float32), (params, x_TD, weights))
    dparams, dx_TD, dweights = _fold(name, add, zeros, choices, weights_TK.shape[1])
    dparams = jax.tree.map(lambda grad, value: grad.astype(value.dtype), dparams, params)
    dparams |= dict.fromkeys(integers)
    return dparams, dx_TD.astype(x_TD.dtype), dweights.reshape(weights_TK.shape), None


_chunks.defvjp(_chunks_forward, _chunks_backward)
