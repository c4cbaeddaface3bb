"""The six device programs of generation, pure functions that `Generator` compiles.

    encode(tiles) -> features            one program per number of tiles
    gather(features, which) -> rows      image features in the order of every row's image tokens
    prefill(tokens, features) -> logits, keys and values of whole prompts
    start(keys and values) -> state      a fresh cache that holds them
    first(state, logits) -> state, tokens
    decode(state) -> state, tokens       one token per row

Prompts are padded on the right. Padding has segment 0: nothing attends to it, and the answer overwrites its slots,
so a row is computed as if it were alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.inference.sampling import Sampling, ban, sample
from internvl_jax.models import Cache, InternVL, make_cache
from internvl_jax.sharding import bind
from internvl_jax.sharding.state import Params


class State(NamedTuple):
    """Rows in the middle of their answers.

    Attributes:
      cache: keys and values of all tokens but the last.
      tokens_B: the last token, not yet in the cache.
      lengths_B: tokens in the cache: the next slot and position.
      seen_BV: tokens that prompt and answer hold, for the repetition penalty.
      steps_B: tokens generated.
      limits_B: tokens to generate at most.
      stops_BK: ids that end the answer; negative ids fill up.
      done_B: the answer is complete.
      sampling: parameters of the rows.
    """

    cache: Cache
    tokens_B: jax.Array
    lengths_B: jax.Array
    seen_BV: jax.Array
    steps_B: jax.Array
    limits_B: jax.Array
    stops_BK: jax.Array
    done_B: jax.Array
    sampling: Sampling


class Programs:
    """The functions for one model structure.

    Args:
      graphdef: of an InternVL.
      table_size: rows of the embedding table.
      vocab_size: ids from here on are unused rows of it.
      banned: ids that the model must not write.
      cache_dtype: of keys and values.
      stacked: whether layers are stacked; the cache then is too.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        table_size: int,
        vocab_size: int,
        banned: tuple[int, ...],
        cache_dtype: jnp.dtype,
        stacked: bool,
    ):
        self._graphdef, self._table_size = graphdef, table_size
        self._vocab_size, self._banned = vocab_size, banned
        self._cache_dtype, self._stacked = cache_dtype, stacked
        self.encode = jax.jit(self._encode)
        self.gather = jax.jit(self._gather)
        self.prefill = jax.jit(self._prefill)
        self.start = jax.jit(self._start, static_argnames="slots")
        self.first = jax.jit(self._choose, donate_argnames="state")
        self.decode = jax.jit(self._decode, donate_argnames="state")

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        programs = (self.encode, self.gather, self.prefill, self.start, self.first, self.decode)
        return sum(program._cache_size() for program in programs)

    def _model(self, params: Params) -> InternVL:
        return bind(self._graphdef, params)

    def _encode(self, params: Params, tiles_GHWC: jax.Array) -> jax.Array:
        """`[G, P, D]` features of tiles."""
        return self._model(params).encode(tiles_GHWC)

    def _gather(self, features_GPD: jax.Array, tiles_BJ: jax.Array) -> jax.Array:
        """`[B, J * P, D]`: features of the tiles that each row names, one after the other."""
        B = tiles_BJ.shape[0]
        return features_GPD[tiles_BJ].reshape(B, -1, features_GPD.shape[-1])

    def _prefill(
        self, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array, features_BKD: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Logits after the last token of every prompt, `[B, V]` float32, and keys and values `[L, B, M, T, H]`."""
        model = self._model(params)
        B, T = tokens_BT.shape
        positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
        x_BTD = model.embed(tokens_BT, features_BKD)
        out = model.lm(x_BTD, segments_BT, positions_BT, collect=("kv",))
        last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
        hidden_BD = jnp.take_along_axis(out.hidden_BTD, last_B11, axis=1)[:, 0]
        return model.logits(hidden_BD), out.kv_LBMTH

    def _start(
        self,
        kv_LBMTH: tuple[jax.Array, jax.Array],
        tokens_BT: jax.Array,
        lengths_B: jax.Array,
        limits_B: jax.Array,
        stops_BK: jax.Array,
        sampling: Sampling,
        slots: int,
    ) -> State:
        """The state before the first token of every answer; a row with limit 0 is padding."""
        B, T = tokens_BT.shape
        places_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        real_BT = places_BT < lengths_B[:, None]
        k_LBMTH, v_LBMTH = kv_LBMTH
        L, _, M, _, H = k_LBMTH.shape
        cache = make_cache(L, (B, M, slots, H), self._cache_dtype, self._stacked)
        cache = cache._replace(k=_fill(cache.k, k_LBMTH), v=_fill(cache.v, v_LBMTH))
        cache = cache.place(places_BT, real_BT.astype(jnp.int32), places_BT)
        rows_B1 = jnp.arange(B)[:, None]
        V = self._table_size
        seen_BV = jnp.zeros((B, V), bool).at[rows_B1, jnp.where(real_BT, tokens_BT, V)].set(True, mode="drop")
        zeros_B = jnp.zeros((B,), jnp.int32)
        # The last token of an answer needs no slot.
        limits_B = jnp.minimum(limits_B, slots - lengths_B + 1)
        return State(cache, zeros_B, lengths_B, seen_BV, zeros_B, limits_B, stops_BK, limits_B == 0, sampling)

    def _decode(self, params: Params, state: State) -> tuple[State, jax.Array]:
        """One step of all rows.

        Returns:
          the state, and the token of every row, -1 where the answer was complete before.
        """
        model = self._model(params)
        x_BTD = model.embed(state.tokens_B[:, None], None)
        # A finished row writes nowhere.
        slots_B1 = jnp.where(state.done_B, state.cache.num_slots, state.lengths_B)[:, None]
        positions_B1 = state.lengths_B[:, None]
        out = model.lm(x_BTD, jnp.ones_like(positions_B1), positions_B1, state.cache, slots_B1)
        lengths_B = jnp.where(state.done_B, state.lengths_B, state.lengths_B + 1)
        return self._choose(state._replace(cache=out.cache, lengths_B=lengths_B), model.logits(out.hidden_BTD[:, 0]))

    def _choose(self, state: State, logits_BV: jax.Array) -> tuple[State, jax.Array]:
        """Adds a token to every row that isn't done."""
        logits_BV = ban(logits_BV, self._vocab_size, self._banned)
        tokens_B = sample(logits_BV, state.sampling, state.seen_BV, state.steps_B)
        steps_B = state.steps_B + ~state.done_B
        ends_B = jnp.any(tokens_B[:, None] == state.stops_BK, axis=1) | (steps_B >= state.limits_B)
        shown_B = jnp.where(state.done_B, -1, tokens_B)
        seen_BV = state.seen_BV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
        state = state._replace(tokens_B=tokens_B, steps_B=steps_B, done_B=state.done_B | ends_B, seen_BV=seen_BV)
        return state, shown_B


def _fill(store, new_LBMTH: jax.Array):
    """A fresh cache's array or arrays with the keys or values of prompts in their first T slots."""
    T = new_LBMTH.shape[3]
    if isinstance(store, tuple):
        return tuple(
            layer.at[:, :, :T].set(new_BMTH.astype(layer.dtype))
            for layer, new_BMTH in zip(store, new_LBMTH, strict=True)
        )
    return store.at[:, :, :, :T].set(new_LBMTH.astype(store.dtype))
