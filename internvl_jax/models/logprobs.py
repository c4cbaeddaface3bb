"""Functions of logits, such as log-probabilities of given tokens, a chunk of positions at a time.

The logits of a whole row are never in memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from internvl_jax.sharding import shard, spread


def over_logits(
    function: Callable[..., Any],
    states: Sequence[tuple[jax.Array, jax.Array]],
    extras: Sequence[jax.Array],
    chunk: int,
) -> Any:
    """`function(*logits, *extras)` over all positions, computed a chunk of them at a time.

    Args:
      function: takes float32 logits `[B, t, V]` of every model and the extras `[B, t, ...]`; returns arrays
        `[B, t, ...]` in any tree. What it returns for a position depends on that position alone.
      states: for every model, its hidden states `[B, T, D]` after the final norm and its output matrix `[V, D]`.
      extras: arrays `[B, T, ...]`.
      chunk: positions that are computed at a time, on every device that has a part of the row. B x chunk x V logits of
        every model are in memory at once, in the backward pass too, which computes them again.

    Returns:
      What `function` returns, each array `[B, T, ...]`.
    """
    hiddens = [hidden_BTD for hidden_BTD, _ in states]
    # Outside of the loop: so a matrix is gathered once and its gradient summed over devices once, not once a chunk.
    heads = [shard(head_VD, "act_vocab", None) for _, head_VD in states]
    B, T, _ = hiddens[0].shape
    C = spread("time")  # devices that have a part of the row: a chunk is of the tokens of each

    def part(hiddens: Sequence[jax.Array], extras: Sequence[jax.Array]) -> Any:
        return function(*map(_logits, hiddens, heads), *extras)

    def split(x: jax.Array) -> jax.Array:
        rest = x.shape[2:]
        parts = x.reshape(B, C, T // C, *rest)
        parts = jnp.pad(parts, ((0, 0), (0, 0), (0, -(T // C) % chunk), *((0, 0),) * len(rest)))
        parts = jnp.moveaxis(parts.reshape(B, C, -1, chunk, *rest), 2, 0)
        return shard(parts.reshape(-1, B, C * chunk, *rest), None, "batch", "time", *(None,) * len(rest))

    def join(x: jax.Array) -> jax.Array:
        rest = x.shape[3:]
        parts = jnp.moveaxis(x.reshape(-1, B, C, chunk, *rest), 0, 2)
        return parts.reshape(B, C, -1, *rest)[:, :, : T // C].reshape(B, T, *rest)

    if T // C <= chunk:
        return part(hiddens, extras)
    parts = jax.tree.map(split, (hiddens, list(extras)))
    return jax.tree.map(join, jax.lax.map(lambda inputs: jax.checkpoint(part)(*inputs), parts))


def token_logprobs(hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, chunk: int) -> jax.Array:
    """float32 `[B, T]`: log p(target) at every position.

    Args:
      hidden_BTD: hidden states after the final norm.
      head_VD: the output matrix.
      targets_BT: ids of the tokens, int32.
      chunk: see `over_logits`.
    """
    return over_logits(_logprobs, [(hidden_BTD, head_VD)], [targets_BT], chunk)


def token_statistics(
    hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """What `token_logprobs` returns and, from the same pass, the entropy of the distribution, float32 `[B, T]`, without
    gradient.
    """
    return over_logits(
        lambda logits, targets: (_logprobs(logits, targets), _entropy(jax.lax.stop_gradient(logits))),
        [(hidden_BTD, head_VD)],
        [targets_BT],
        chunk,
    )


def _logits(hidden_BTD: jax.Array, head_VD: jax.Array) -> jax.Array:
    return jax.lax.dot_general(
        hidden_BTD, head_VD.astype(hidden_BTD.dtype), (((2,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def _logprobs(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    picked_BT = jnp.take_along_axis(logits_BTV, targets_BT[:, :, None], axis=2)[:, :, 0]
    return picked_BT - jax.nn.logsumexp(logits_BTV, axis=2)


def _entropy(logits_BTV: jax.Array) -> jax.Array:
    logprobs_BTV = jax.nn.log_softmax(logits_BTV)
    return -jnp.sum(jnp.exp(logprobs_BTV) * logprobs_BTV, axis=2)
