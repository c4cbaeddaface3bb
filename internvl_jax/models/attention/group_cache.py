"""The cache of groups of answers: a prompt's keys and values once, those of its answers side by side.

The answers' slots are a ring that all rows write into at the same place, whatever step each of them is at: what a row
wrote n tokens ago is as far behind that place in every row. So who sees a slot follows from its age, a token is written
in one piece for all rows, and rows begin and end as they like.

The queries of all answers to a prompt meet its keys in one product: with 16 answers the prompt is read a 16th as often
as if each had a copy.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from internvl_jax.models.attention.attention import MASKED, Window
from internvl_jax.models.attention.cache import SlotCache
from internvl_jax.sharding import gather, per_device, shard

# An array for each layer, or one that is stacked over layers.
Layered: TypeAlias = tuple[jax.Array, ...] | jax.Array

_LAYER = ("batch", "act_heads", None, None)  # keys or values, or queries, of a layer


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["prompts", "k", "v", "lengths_Q", "count"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class GroupCache:
    """Keys and values of Q prompts, and of B answers with S slots.

    Every prompt has A = B / Q rows; those of the first come first. A row may have at most S tokens of its answer.

    Attributes:
      prompts: keys and values of the prompts, a row each: one cache of all layers, or one for each layer.
      k: keys of the answers: stacked over layers `[L, B, M, S, H]`, which a TPU reads where it lies; of layers apart
        `[B, M, H, S]` each, which a CPU reads 1.5 times as fast.
      v: values of the answers, in every layer `[B, M, S, H]`.
      lengths_Q: how many tokens a prompt has; what stands behind them is padding.
      count: how many tokens were written; the next one goes to slot count modulo S of every row.
    """

    prompts: tuple[SlotCache, ...]
    k: Layered
    v: Layered
    lengths_Q: jax.Array
    count: jax.Array

    @classmethod
    def empty(
        cls,
        layers: int,
        kv_heads: int,
        width: int,
        rows: tuple[int, int],
        slots: tuple[int, int],
        dtype: jnp.dtype,
        apart: bool,
    ) -> "GroupCache":
        """A cache of nothing.

        Args:
          rows: how many prompts, and how many answers to each of them.
          slots: of a prompt, and of an answer.
          apart: with arrays for each layer.
        """
        (Q, A), (T, S) = rows, slots
        depths = [1] * layers if apart else [layers]
        prompts = tuple(SlotCache.empty(depth, kv_heads, width, ((Q, T),), dtype) for depth in depths)

        def make(*shape: int) -> Layered:
            if apart:
                return tuple(jnp.zeros((Q * A, kv_heads, *shape), dtype) for _ in depths)
            return jnp.zeros((layers, Q * A, kv_heads, *shape), dtype)

        k = make(width, S) if apart else make(S, width)
        return cls(prompts, k, make(S, width), jnp.zeros(Q, jnp.int32), jnp.int32(0))

    @property
    def apart(self) -> bool:
        """Whether every layer has arrays of its own."""
        return isinstance(self.k, tuple)

    @property
    def slots(self) -> int:
        """S."""
        return jax.tree.leaves(self.v)[0].shape[-2]

    @property
    def reach(self) -> int:
        """How many slots of an answer attention reads: all of them."""
        return self.slots

    def within(self, reach: int) -> "GroupCache":
        """The cache itself: the slots that a row has written last may lie anywhere."""
        return self

    def laid(self) -> "GroupCache":
        """The cache spread as rows are."""
        spread = lambda part: shard(part, *(None,) * (part.ndim - 4), *_LAYER)
        k, v = jax.tree.map(spread, (self.k, self.v))
        prompts, lengths_Q = tuple(part.laid() for part in self.prompts), shard(self.lengths_Q, "batch")
        return GroupCache(prompts, k, v, lengths_Q, shard(self.count))

    def mask(self, segments_B1: jax.Array, positions_B1: jax.Array) -> jax.Array:
        """What a row sees follows from its position and its prompt's length."""
        return positions_B1

    def place(self, slots_B1: jax.Array, segments_B1: jax.Array, positions_B1: jax.Array) -> "GroupCache":
        """The cache with the token of this call counted; it takes the next slot of every row."""
        return dataclasses.replace(self, count=self.count + 1)

    def write(self, layer: jax.Array | int, k_BM1H: jax.Array, v_BM1H: jax.Array, slots_B1: jax.Array) -> "GroupCache":
        """Stores the keys and values of one layer."""
        slot = (self.count - 1) % self.slots
        if not self.apart:
            # Written in one piece, the stack would be copied for it on TPU, once before and once after the loop over
            # tokens, and each layer besides where it is read: five times the time of a token (2026-11, libtpu 0.0.42).
            own = SlotCache((self.k,), (self.v,), self.slots)
            own = own.write(layer, k_BM1H, v_BM1H, jnp.broadcast_to(slot, (len(k_BM1H), 1)))
            return dataclasses.replace(self, k=own.k[0], v=own.v[0])
        k = _put(self.k, layer, k_BM1H.swapaxes(2, 3), slot, 3)
        return dataclasses.replace(self, k=k, v=_put(self.v, layer, v_BM1H, slot, 2))

    def attend(
        self,
        layer: jax.Array | int,
        q_BN1H: jax.Array,
        mask: jax.Array,
        window: Window | None,
        sinks_N: jax.Array | None,
    ) -> jax.Array:
        """Attention of one query a row to its prompt and to what the row has written; see `attention.attend`."""
        size, holds = (None, None) if window is None else window

        def on_device(
            q_BN1H: jax.Array,
            prompt: tuple[jax.Array, jax.Array],
            own: tuple[jax.Array, jax.Array],
            where: tuple[jax.Array, jax.Array],
            count: jax.Array,
            layer: jax.Array,
            holds: jax.Array | None,
            sinks_N: jax.Array | None,
        ) -> jax.Array:
            if not self.apart:  # cut here, within the products
                prompt, own = ((k[layer], v[layer]) for k, v in (prompt, own))
            (positions_B1, lengths_Q), (T, S) = where, (prompt[0].shape[2], own[1].shape[2])
            B, Q = len(positions_B1), len(lengths_Q)
            steps_B = positions_B1[:, 0] - jnp.repeat(lengths_Q, B // Q)
            ages_S = (count - 1 - jnp.arange(S)) % S
            seen_BS = ages_S[None] <= steps_B[:, None]
            seen_QAT = (jnp.arange(T)[None] < lengths_Q[:, None])[:, None]
            if size is not None:
                near = lambda distance: (distance < size) | ~holds
                seen_QAT &= near(positions_B1.reshape(Q, B // Q, 1) - jnp.arange(T)[None, None])
                seen_BS &= near(ages_S)[None]
            keys = "bmhs" if self.apart else "bmsh"
            return _attend(q_BN1H, prompt, (*own, keys), (seen_QAT, seen_BS), sinks_N)

        if self.apart:
            halves = (self.prompts[layer].k[0][0], self.prompts[layer].v[0][0]), (self.k[layer], self.v[layer])
        else:
            halves = (self.prompts[0].k[0], self.prompts[0].v[0]), (self.k, self.v)
        rows, stack = (("batch", None), ("batch",)), (None, *_LAYER)
        inputs = (_LAYER, (stack, stack), (stack, stack), rows, (), (), (), ("act_heads",))
        run = per_device(on_device, inputs=inputs, output=_LAYER)
        return run(q_BN1H, *halves, (mask, self.lengths_Q), self.count, jnp.asarray(layer), holds, sinks_N)

    def rows(self, number: int, rows_B: jax.Array, reach: int) -> SlotCache:
        """A cache of some prompts, see `SlotCache.rows`."""
        parts = [part.rows(number, rows_B, reach) for part in self.prompts]
        k, v = (jnp.concatenate([getattr(part, name)[0] for part in parts]) for name in ("k", "v"))
        return SlotCache((k,), (v,), reach)

    def put(
        self,
        number: int,
        rows_B: jax.Array,
        starts_B: jax.Array,
        counts_B: jax.Array,
        kv_LBMTH: tuple[jax.Array, jax.Array],
    ) -> "GroupCache":
        """The cache with tokens of some prompts, see `SlotCache.put`; they are the last ones of these prompts yet."""
        depth, prompts = self.prompts[0].k[0].shape[0], []
        for index, part in enumerate(self.prompts):
            new = tuple(half[index * depth : (index + 1) * depth] for half in kv_LBMTH)
            prompts.append(part.put(number, rows_B, starts_B, counts_B, new))

        def measured(lengths_Q: jax.Array, rows_B: jax.Array, ends_B: jax.Array, counts_B: jax.Array) -> jax.Array:
            return lengths_Q.at[jnp.where(counts_B > 0, rows_B, len(lengths_Q))].set(ends_B, mode="drop")

        run = per_device(measured, inputs=(("batch",),) * 4, output=("batch",))
        lengths_Q = run(self.lengths_Q, rows_B, starts_B + counts_B, counts_B)
        return dataclasses.replace(self, prompts=tuple(prompts), lengths_Q=lengths_Q)

    def resume(self, rows_B: jax.Array, counts_B: jax.Array, kv_LBMTH: tuple[jax.Array, jax.Array]) -> "GroupCache":
        """The cache with the first tokens of some answers, as if their rows had written them last.

        Args:
          rows_B: the answers' rows, by their numbers on their device, of every device equally many.
          counts_B: how many of the T tokens are real, at most S; where none is, the row is left as it is.
        """

        def filled(stacks: Layered, new_LBMTH: jax.Array, axis: int) -> Layered:
            each = _LAYER if self.apart else (None, *_LAYER)
            fill = per_device(
                functools.partial(_resumed, axis=axis), inputs=(each, each, ("batch",), ("batch",), ()), output=each
            )
            news = tuple(new_LBMTH) if self.apart else new_LBMTH
            return jax.tree.map(lambda stack, new: fill(stack, new, rows_B, counts_B, self.count), stacks, news)

        k, v = filled(self.k, kv_LBMTH[0], -1 if self.apart else -2), filled(self.v, kv_LBMTH[1], -2)
        return dataclasses.replace(self, k=k, v=v)

    def moved(self, prompts_Q: jax.Array, rows_B: jax.Array) -> "GroupCache":
        """A cache of the prompts and rows that are named."""
        take = lambda part, rows: _by_layer(part, lambda layer: _rows(layer, rows, _LAYER))
        prompts = [
            SlotCache((take(part.k[0], prompts_Q),), (take(part.v[0], prompts_Q),), part.reach) for part in self.prompts
        ]
        k, v = take(self.k, rows_B), take(self.v, rows_B)
        return GroupCache(tuple(prompts), k, v, _rows(self.lengths_Q, prompts_Q, ("batch",)), self.count)

    def grown(self, slots: int) -> "GroupCache":
        """The same rows, with more slots for an answer."""

        def wider(axis: int) -> Callable[[jax.Array], jax.Array]:
            widths = [(slots - self.slots if dimension == axis else 0, 0) for dimension in range(4)]
            # The slot that was written last becomes the last one; the new ones are as old as any.
            return lambda layer: jnp.pad(jnp.roll(layer, -(self.count % self.slots), axis), widths)

        k, v = _by_layer(self.k, wider(3 if self.apart else 2)), _by_layer(self.v, wider(2))
        return dataclasses.replace(self, k=k, v=v, count=jnp.int32(0))


def _by_layer(layers: Layered, change: Callable[[jax.Array], jax.Array]) -> Layered:
    """Every layer changed, of a stack one after the other: so no more than one is there twice, or, where devices
    exchange rows, whole on each of them.
    """
    if isinstance(layers, tuple):
        return tuple(change(layer) for layer in layers)
    return lax.map(lambda layer: shard(change(layer), *_LAYER), layers)


def _rows(x: jax.Array, rows: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The rows that are named, wherever they lie: every device gets all of them, and keeps its own.

    The compiler would do the same, but libtpu 0.0.42 aborts on what it makes of it where each device has one row.
    """
    take = lambda x, rows: jnp.take(gather(x, "batch"), rows, axis=0)
    return per_device(take, inputs=(axes, ("batch",)), output=axes)(x, rows)


def _attend(
    q_BN1H: jax.Array,
    prompt: tuple[jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array, str],
    seen: tuple[jax.Array, jax.Array],
    sinks_N: jax.Array | None,
) -> jax.Array:
    """Softmax over the keys of both parts together, each with its own product.

    Args:
      prompt, own: keys and values of prompts and answers, in one layer, and the order of dimensions of answers' keys.
      seen: bool `[Q, A or 1, T]` and `[B, S]`, the keys that a row sees.
    """
    (prompt_k, prompt_v), (k, v, keys), (seen_QAT, seen_BS) = prompt, own, seen
    (B, N, _, H), (Q, M) = q_BN1H.shape, prompt_k.shape[:2]
    A, R = B // Q, N // M
    q_BMRH = (q_BN1H * H**-0.5).reshape(B, M, R, H)
    # To meet a prompt's keys, the queries of its answers stand together, as if they were heads of one.
    by_answer = lambda x: x.reshape(Q, M, A, R, -1).swapaxes(1, 2).reshape(B, M, R, -1)
    by_prompt = lambda x: x.reshape(Q, A, M, R, -1).swapaxes(1, 2).reshape(Q, M, A * R, -1)
    before = _product("qmah,qmth->qmat", by_prompt(q_BMRH), prompt_k)
    since_BMRS = _product(f"bmrh,{keys}->bmrs", q_BMRH, k)
    if seen_QAT.shape[1] > 1:
        seen_QAT = jnp.repeat(seen_QAT, R, axis=1)
    before = jnp.where(seen_QAT[:, None], before, MASKED)
    since_BMRS = jnp.where(seen_BS[:, None, None], since_BMRS, MASKED)

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


def _resumed(
    stack: jax.Array, new: jax.Array, rows_B: jax.Array, counts_B: jax.Array, count: jax.Array, axis: int
) -> jax.Array:
    """Keys or values with tokens `[.., B, M, T, H]` in some rows; `axis` is that of the slots."""
    new = new.astype(stack.dtype)
    if axis == -1:
        new = new.swapaxes(-1, -2)
    rows, (S, T) = stack.ndim - 4, (stack.shape[axis], new.shape[axis])
    for b in range(len(rows_B)):
        # The slot before the next one has the last token.
        at_S = (jnp.arange(S) - count + counts_B[b]) % S
        own = jnp.take(lax.slice_in_dim(new, b, b + 1, axis=rows), jnp.minimum(at_S, T - 1), axis=axis)
        real_S = jnp.expand_dims(at_S < counts_B[b], -1 if axis == -2 else ())
        old = lax.dynamic_slice_in_dim(stack, rows_B[b], 1, axis=rows)
        stack = lax.dynamic_update_slice_in_dim(stack, jnp.where(real_S, own, old), rows_B[b], axis=rows)
    return stack


def _product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _put(layers: Layered, layer: int, new: jax.Array, slot: jax.Array, axis: int) -> Layered:
    """Layers with new values in one slot of one of them; `axis` is that of the slots."""
    part = lax.dynamic_update_slice_in_dim(layers[layer], new.astype(layers[layer].dtype), slot, axis)
    return (*layers[:layer], part, *layers[layer + 1 :])
