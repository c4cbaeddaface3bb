"""Tokens to their experts and back, on one device or many; no token is dropped and all shapes are static."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models.grouped import ROWS
from internvl_jax.sharding import Share, bind, by_owner, by_token, flatten
from internvl_jax.sharding.state import Params

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
        row `[R]`; `axes(path)` are the logical axes of its parameters.
      chosen_BTK: numbers of the chosen experts.
      weights_BTK: float32.
    """
    graphdef, params = nnx.split(experts, nnx.Param)[0], flatten(experts)
    axes = {path: experts.axes(path) for path in params}
    return by_owner(functools.partial(_multiply, graphdef), params, axes, x_BTD, chosen_BTK, weights_BTK)


def _multiply(
    graphdef: nnx.GraphDef, params: Params, x_ND: jax.Array, chosen_NK: jax.Array, weights_NK: jax.Array, share: Share
) -> jax.Array:
    """`[N, D]`: what the experts of one device contribute.

    Choices are sorted by expert, those of other devices last. Rows of the own experts are multiplied in chunks; chunks
    without such rows are skipped. So a device that more tokens want takes longer, but no more memory.
    """
    K, places = chosen_NK.shape[1], chosen_NK.size  # a place is a token's choice
    count, weights = len(next(iter(params.values()))), weights_NK.reshape(-1)
    expert = chosen_NK.reshape(-1) - share.first
    expert = jnp.where((expert >= 0) & (expert < count), expert, count)
    order = jnp.argsort(expert, stable=True)
    ends_E = jnp.cumsum(jnp.bincount(expert, length=count).astype(jnp.int32))

    def add(out_ND, start, order_R):
        """Adds the rows from `start` on of the sorted places."""
        R = len(order_R)
        sizes_E = jnp.diff(jnp.clip(ends_E - start, 0, R), prepend=0)
        # What a grouped product returns for rows beyond its groups is not defined.
        real_R1 = (start + jnp.arange(R) < ends_E[-1])[:, None]
        tokens_R, expert_R = order_R // K, jnp.minimum(expert[order_R], count - 1)
        y_RD = bind(graphdef, params)(jnp.where(real_R1, x_ND[tokens_R], 0), sizes_E, expert_R)
        y_RD = jnp.where(real_R1, y_RD.astype(jnp.float32), 0) * weights[order_R][:, None]
        return out_ND.at[tokens_R].add(y_RD)

    zeros_ND = jnp.zeros(x_ND.shape, jnp.float32)
    size = min(places, _MOST, ROWS * math.ceil(places / share.shards * _CHUNK / ROWS))
    chunks = math.ceil(places / size)
    if chunks == 1:
        return add(zeros_ND, 0, order).astype(x_ND.dtype)

    # How many chunks have rows where experts have equal shares of the tokens: nothing else in the program tells.
    scope = f"chunks_if_even_{math.ceil(places / share.shards / size)}_of_{chunks}"

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(out_ND, inputs):
        start, order_R = inputs
        with jax.named_scope(scope):
            return lax.cond(start < ends_E[-1], add, lambda out_ND, *_: out_ND, out_ND, start, order_R), None

    order = jnp.pad(order, (0, chunks * size - places)).reshape(chunks, size)
    return lax.scan(step, zeros_ND, (jnp.arange(chunks) * size, order))[0].astype(x_ND.dtype)
