"""Log-probabilities of given tokens from hidden states, in chunks of time: the logits are never stored whole."""

import jax
import jax.numpy as jnp

from internvl_jax.sharding import shard


def token_logprobs(hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, chunk: int) -> jax.Array:
    """float32 `[B, T]`: log p(target) at every position.

    Args:
      hidden_BTD: after the final norm.
      head_VD: output matrix.
      targets_BT: int32 ids.
      chunk: positions a step; B x chunk x V logits live at once, in the backward pass too (they are recomputed).
    """
    B, T, D = hidden_BTD.shape
    # Gathered once, and its gradient summed over devices once: inside the loop that would be once a chunk.
    head_VD = shard(head_VD, "act_vocab", None)

    def logprobs(hidden, targets):
        logits = jax.lax.dot_general(
            hidden, head_VD.astype(hidden.dtype), (((2,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        picked = jnp.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0]
        return picked - jax.nn.logsumexp(logits, axis=2)

    if T <= chunk:
        return logprobs(hidden_BTD, targets_BT)
    padding = -T % chunk
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, padding), (0, 0))).reshape(B, -1, chunk, D).swapaxes(0, 1)
    targets = jnp.pad(targets_BT, ((0, 0), (0, padding))).reshape(B, -1, chunk).swapaxes(0, 1)
    out = jax.lax.map(lambda inputs: jax.checkpoint(logprobs)(*inputs), (hidden, targets))
    return out.swapaxes(0, 1).reshape(B, -1)[:, :T]
