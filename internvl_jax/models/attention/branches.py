"""The cache of many answers to few prompts: a prompt's keys and values once, those of its answers side by side.

All answers are equally long at any time, so a token's slot is one number. The queries of all answers to a prompt meet
its keys in one product: with 16 answers the prompt is read a 16th as often as if each had a copy.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from internvl_jax.models.attention.attention import MASKED, Mask, Window

# An array for each layer, or one that is stacked over layers.
Layered: TypeAlias = tuple[jax.Array, ...] | jax.Array


class Branches(NamedTuple):
    """Keys and values of Q prompts of T tokens, and of B answers with S slots.

    Every prompt has A = B / Q answers; those of the first come first.

    Attributes:
      prompt_k, prompt_v: keys and values of the prompts, in every layer `[Q, M, T, H]`.
      k: keys of the answers, in every layer `[B, M, H, S]`, which a CPU reads 1.5 times as fast as `[B, M, S, H]`.
      v: values of the answers, in every layer `[B, M, S, H]`.
      lengths_Q: how many tokens a prompt has; what stands behind them is padding.
      step: how many tokens of every answer are in the cache.
    """

    prompt_k: Layered
    prompt_v: Layered
    k: Layered
    v: Layered
    lengths_Q: jax.Array
    step: jax.Array

    def mask(self, segments_B1: jax.Array, positions_B1: jax.Array) -> None:
        """None: what an answer sees follows from its prompt's length and from the step."""

    def place(self, slots_B1: jax.Array, segments_B1: jax.Array, positions_B1: jax.Array) -> "Branches":
        """The cache with the token of this call counted; it takes the next slot of every answer."""
        return self._replace(step=self.step + 1)

    def write(self, layer: jax.Array | int, k_BM1H: jax.Array, v_BM1H: jax.Array, slots_B1: jax.Array) -> "Branches":
        """Stores the keys and values of one layer."""
        put = lambda stack, new, axis: _put(stack, layer, new, self.step - 1, axis)
        return self._replace(k=put(self.k, k_BM1H.swapaxes(2, 3), 3), v=put(self.v, v_BM1H, 2))

    def attend(
        self,
        layer: jax.Array | int,
        q_BN1H: jax.Array,
        mask: Mask | None,
        window: Window | None,
        sinks_N: jax.Array | None,
    ) -> jax.Array:
        """Attention of one query an answer to its prompt and to what the answer has written; see `attention.attend`."""
        prompt_k, prompt_v, k, v = (part[layer] for part in (self.prompt_k, self.prompt_v, self.k, self.v))
        (B, N, _, H), (Q, M, T, _), S = q_BN1H.shape, prompt_k.shape, k.shape[3]
        R = N // M
        q_BMRH = (q_BN1H * H**-0.5).reshape(B, M, R, H)
        # To meet a prompt's keys, the queries of its answers stand together, as if they were heads of one.
        A = B // Q
        by_answer = lambda x: x.reshape(Q, M, A, R, -1).swapaxes(1, 2).reshape(B, M, R, -1)
        by_prompt = lambda x: x.reshape(Q, A, M, R, -1).swapaxes(1, 2).reshape(Q, M, A * R, -1)
        before = _product("qmah,qmth->qmat", by_prompt(q_BMRH), prompt_k)
        since_BMRS = _product("bmrh,bmhs->bmrs", q_BMRH, k)

        position_Q = self.lengths_Q + self.step - 1
        seen_QT = jnp.arange(T)[None] < self.lengths_Q[:, None]
        seen_S = jnp.arange(S) < self.step
        if window is not None:
            near = lambda distance: (distance < window.size) | ~window.holds
            seen_QT &= near(position_Q[:, None] - jnp.arange(T)[None])
            seen_S &= near(self.step - 1 - jnp.arange(S))
        before = jnp.where(seen_QT[:, None, None], before, MASKED)
        since_BMRS = jnp.where(seen_S[None, None, None], since_BMRS, MASKED)

        largest = lambda scores: jnp.max(scores, axis=-1, keepdims=True)
        largest_BMR1 = jnp.maximum(by_answer(largest(before)), largest(since_BMRS))
        sinks_BMR1 = None if sinks_N is None else sinks_N.astype(jnp.float32).reshape(1, M, R, 1)
        if sinks_N is not None:
            largest_BMR1 = jnp.maximum(largest_BMR1, sinks_BMR1)
        before = jnp.exp(before - by_prompt(largest_BMR1))
        since_BMRS = jnp.exp(since_BMRS - largest_BMR1)
        total = lambda weights: jnp.sum(weights, axis=-1, keepdims=True)
        total_BMR1 = by_answer(total(before)) + total(since_BMRS)
        if sinks_N is not None:
            total_BMR1 += jnp.exp(sinks_BMR1 - largest_BMR1)
        dtype = q_BN1H.dtype
        out_BMRH = by_answer(_product("qmat,qmth->qmah", before.astype(dtype), prompt_v))
        out_BMRH += _product("bmrs,bmsh->bmrh", since_BMRS.astype(dtype), v)
        return (out_BMRH / total_BMR1).astype(dtype).reshape(B, N, 1, H)


def _product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _put(stack: Layered, layer: jax.Array | int, new: jax.Array, slot: jax.Array, axis: int) -> Layered:
    """The stack with new values in one slot of one layer; `axis` is that of the slots in a layer."""
    if isinstance(stack, tuple):
        part = lax.dynamic_update_slice_in_dim(stack[layer], new.astype(stack[layer].dtype), slot, axis)
        return (*stack[:layer], part, *stack[layer + 1 :])
    starts = (layer, *(slot if dimension == axis else 0 for dimension in range(4)))
    return lax.dynamic_update_slice(stack, new[None].astype(stack.dtype), starts)
