"""Attention behind one signature: full or causal, packed, cached, windowed, grouped heads.

Heads stand before time (`q_BNTH`, `k_BMSH`): each head's keys are contiguous, which the products and the cache want.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Queries a block: bounds the scores held at once to B x N x QUERY_BLOCK x S.
QUERY_BLOCK = 512
_MASKED = -1e30  # finite: a row with nothing to attend to gives a mean, not NaN


class Mask(NamedTuple):
    """Which keys a query may attend to: those of its own segment, not later, and inside the window.

    Segment 0 is padding (as a key it is never attended to). Positions restart in every segment.

    Attributes:
      ordered: keys and queries are the same tokens in the same order, so key s > t is never seen by query t and whole
        blocks of keys can be left out.
    """

    q_segments_BT: jax.Array
    q_positions_BT: jax.Array
    k_segments_BS: jax.Array
    k_positions_BS: jax.Array
    ordered: bool

    @classmethod
    def within(cls, segments_BT: jax.Array, positions_BT: jax.Array) -> "Mask":
        """Tokens that attend to each other."""
        return cls(segments_BT, positions_BT, segments_BT, positions_BT, ordered=True)

    def block(self, start: int, stop: int, keys: int) -> "Mask":
        """The mask of queries start to stop against the first `keys` keys."""
        return Mask(
            self.q_segments_BT[:, start:stop],
            self.q_positions_BT[:, start:stop],
            self.k_segments_BS[:, :keys],
            self.k_positions_BS[:, :keys],
            self.ordered,
        )

    def allowed(self, window: jax.Array | None) -> jax.Array:
        """bool `[B, T, S]`.

        Args:
          window: a query sees this many last positions, itself included; None sees all.
        """
        distance_BTS = self.q_positions_BT[:, :, None] - self.k_positions_BS[:, None, :]
        same_BTS = self.q_segments_BT[:, :, None] == self.k_segments_BS[:, None, :]
        allowed_BTS = same_BTS & (self.k_segments_BS[:, None, :] > 0) & (distance_BTS >= 0)
        return allowed_BTS if window is None else allowed_BTS & (distance_BTS < window)


def attend(
    q_BNTH: jax.Array, k_BMSH: jax.Array, v_BMSH: jax.Array, mask: Mask | None, window: jax.Array | None = None
) -> jax.Array:
    """Softmax attention, scores and softmax in float32, scaled by H**-0.5.

    Args:
      q_BNTH: queries; N is a multiple of M, head n reads key/value head n // (N / M).
      k_BMSH, v_BMSH: keys and values.
      mask: None attends to everything (the vision tower).
      window: see `Mask.allowed`.

    Returns:
      `[B, N, T, H]` in q's dtype.
    """
    T, S = q_BNTH.shape[2], k_BMSH.shape[2]
    blocks = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        keys = stop if mask is not None and mask.ordered else S
        block_mask = None if mask is None else mask.block(start, stop, keys)
        blocks.append(
            _attend_block(q_BNTH[:, :, start:stop], k_BMSH[:, :, :keys], v_BMSH[:, :, :keys], block_mask, window)
        )
    return jnp.concatenate(blocks, axis=2)


def _attend_block(q_BNTH, k_BMSH, v_BMSH, mask, window):
    B, N, T, H = q_BNTH.shape
    M = k_BMSH.shape[1]
    q_BMGTH = (q_BNTH * H**-0.5).reshape(B, M, N // M, T, H)
    scores = jnp.einsum("bmgth,bmsh->bmgts", q_BMGTH, k_BMSH, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask.allowed(window)[:, None, None], scores, _MASKED)
    # exp, product, then division: one pass less over the scores than a softmax before the product.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bmgts,bmsh->bmgth", weights.astype(q_BNTH.dtype), v_BMSH, preferred_element_type=jnp.float32)
    return (out / total).astype(q_BNTH.dtype).reshape(B, N, T, H)
