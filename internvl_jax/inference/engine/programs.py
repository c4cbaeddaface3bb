"""The seven device programs of generation, pure functions that `Generator` compiles.

    encode(tiles) -> features            one program per number of tiles
    gather(features, index) -> rows      image features in the order of every row's image tokens
    prefill(tokens, features) -> logits, keys and values of whole prompts
    store(keys or values) -> cache       a fresh cache's half that holds them
    start(cache) -> state
    first(state, logits) -> state, tokens
    decode(state) -> state, tokens       one token per row

Prompts are padded on the right. Padding has segment 0: nothing attends to it, and the answer overwrites its slots,
so a row is computed as if it were alone.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax import sharding
from internvl_jax.inference.engine.sampling import Sampling, ban, choose, penalise
from internvl_jax.models import Cache, DecoderOut
from internvl_jax.sharding import Params, bind

try:
    _TRIM = ctypes.CDLL(None).malloc_trim
except (AttributeError, TypeError):  # another C library
    _TRIM = None


class Features(NamedTuple):
    """What the vision tower makes of tiles.

    Attributes:
      pool_GPD: the features of every tile; in Flash models those at full resolution, then the compressed ones.
      probability_G: float32, the probability that a tile may be compressed; None in models that are not Flash.
    """

    pool_GPD: jax.Array
    probability_G: jax.Array | None


class State(NamedTuple):
    """Rows in the middle of their answers.

    Attributes:
      cache: the keys and values of all tokens but the last.
      tokens_B: the last token, not yet in the cache.
      lengths_B: how many tokens the cache holds, which is the next slot and position.
      seen_BV: which tokens prompt and answer hold, for the repetition penalty.
      steps_B: how many tokens were generated.
      limits_B: how many tokens may be generated.
      stops_BZ: the ids that end the answer; negative ids fill up.
      done_B: whether the answer is complete.
      penalty_B: the repetition penalty.
      sampling: how each row's tokens are drawn.
    """

    cache: Cache
    tokens_B: jax.Array
    lengths_B: jax.Array
    seen_BV: jax.Array
    steps_B: jax.Array
    limits_B: jax.Array
    stops_BZ: jax.Array
    done_B: jax.Array
    penalty_B: jax.Array
    sampling: Sampling


class Programs:
    """The functions for one model structure.

    Args:
      graphdef: the structure of an InternVL.
      decode_graphdef: the structure of the same model as `decode` takes its parameters.
      table_size: the number of rows of the embedding table.
      vocab_size: ids from here on are unused rows of the table.
      banned: the ids that the model must not write.
      cache_dtype: the dtype of keys and values.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        decode_graphdef: nnx.GraphDef,
        table_size: int,
        vocab_size: int,
        banned: tuple[int, ...],
        cache_dtype: jnp.dtype,
    ):
        self._graphdef, self._decode_graphdef = graphdef, decode_graphdef
        self._table_size, self._vocab_size, self._banned = table_size, vocab_size, banned
        self._cache_dtype = cache_dtype
        self.encode = DeviceProgram(self._encode)
        self.gather = DeviceProgram(self._gather)
        self.prefill = DeviceProgram(self._prefill)
        self._widen = DeviceProgram(self._store, static_argnames="slots")
        self.start = DeviceProgram(self._start, static_argnames="slots")
        self.first = DeviceProgram(self._choose, donate_argnames="state")
        self.decode = DeviceProgram(self._decode, donate_argnames="state")

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return sum(program.num_compiled for program in vars(self).values() if isinstance(program, DeviceProgram))

    def _encode(self, params: Params, tiles_GHWC: jax.Array) -> Features:
        model = bind(self._graphdef, params)

        def together(tiles_GHWC: jax.Array) -> Features:
            encoded = model.encode(tiles_GHWC)
            return Features(encoded.pool_GPD, encoded.probability_G)

        def one_by_one(tiles_GHWC: jax.Array) -> Features:
            first = lambda features: jax.tree.map(lambda x: x[0], features)
            return jax.lax.map(lambda tile_HWC: first(together(tile_HWC[None])), tiles_GHWC)

        if sharding.meshed():  # the devices of a mesh take tiles each
            features = together(tiles_GHWC)
            return features._replace(probability_G=jax.tree.map(sharding.whole, features.probability_G))
        # A tile's activations stay nearer to the CPU's cache: 1.2 times as fast, 1.3 in bfloat16, and less memory.
        return jax.lax.platform_dependent(tiles_GHWC, cpu=one_by_one, default=together)

    def _gather(self, pool_GPD: jax.Array, index_BP: jax.Array) -> jax.Array:
        """`[B, P, D]`: the features that each row names by their place in the pool, its tiles one after the other."""
        return pool_GPD.reshape(-1, pool_GPD.shape[-1])[index_BP]

    def _prefill(
        self, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array, features_BPD: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Logits after the last token of every prompt, `[B, V]` float32, and keys and values `[L, B, M, T, H]`."""
        logits_BV, out = self.run(params, tokens_BT, lengths_B, features_BPD, ("kv",))
        return logits_BV, out.kv_LBMTH

    def run(
        self,
        params: Params,
        tokens_BT: jax.Array,
        lengths_B: jax.Array,
        features_BPD: jax.Array,
        collect: tuple[str, ...],
    ) -> tuple[jax.Array, DecoderOut]:
        """Logits after the last token of every prompt, and what else is collected of them."""
        model = bind(self._graphdef, params)
        B, T = tokens_BT.shape
        positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
        x_BTD = model.embed(tokens_BT, features_BPD)
        out = model.lm(x_BTD, segments_BT, positions_BT, collect=collect)
        last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
        hidden_BD = jnp.take_along_axis(out.hidden_BTD, last_B11, axis=1)[:, 0]
        return model.logits(hidden_BD), out

    def store(self, new_LBMTH: jax.Array, slots: int) -> jax.Array:
        """Keys or values of prompts, widened to a cache of `slots` slots, T or more."""
        fits = slots == new_LBMTH.shape[3] and new_LBMTH.dtype == self._cache_dtype
        return new_LBMTH if fits else self._widen(new_LBMTH, slots=slots)

    def _store(self, new_LBMTH: jax.Array, slots: int) -> jax.Array:
        free = slots - new_LBMTH.shape[3]
        return jnp.pad(new_LBMTH.astype(self._cache_dtype), ((0, 0),) * 3 + ((0, free), (0, 0)))

    def _start(
        self,
        tokens_BT: jax.Array,
        lengths_B: jax.Array,
        limits_B: jax.Array,
        stops_BZ: jax.Array,
        penalty_B: jax.Array,
        sampling: Sampling,
        slots: int,
    ) -> State:
        """The state before the first token of every answer, without keys and values; a row with limit 0 is padding."""
        B, T = tokens_BT.shape
        places_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        real_BT = places_BT < lengths_B[:, None]
        empty_BS = jnp.zeros((B, slots), jnp.int32)
        cache = Cache(None, None, empty_BS, empty_BS).place(places_BT, real_BT.astype(jnp.int32), places_BT)
        rows_B1 = jnp.arange(B)[:, None]
        V = self._table_size
        seen_BV = jnp.zeros((B, V), bool).at[rows_B1, jnp.where(real_BT, tokens_BT, V)].set(True, mode="drop")
        zeros_B = jnp.zeros((B,), jnp.int32)
        # The last token of an answer needs no slot.
        limits_B = jnp.minimum(limits_B, slots - lengths_B + 1)
        done_B = limits_B == 0
        return State(cache, zeros_B, lengths_B, seen_BV, zeros_B, limits_B, stops_BZ, done_B, penalty_B, sampling)

    def _decode(self, params: Params, state: State) -> tuple[State, jax.Array]:
        """One step of all rows.

        Returns:
          the state, and the token of every row, -1 where the answer was complete before.
        """
        model = bind(self._decode_graphdef, params)
        x_BTD = model.embed(state.tokens_B[:, None], None)
        # A finished row writes nowhere.
        slots_B1 = jnp.where(state.done_B, state.cache.num_slots, state.lengths_B)[:, None]
        positions_B1 = state.lengths_B[:, None]
        out = model.lm(x_BTD, jnp.ones_like(positions_B1), positions_B1, state.cache, slots_B1)
        lengths_B = jnp.where(state.done_B, state.lengths_B, state.lengths_B + 1)
        return self._choose(state._replace(cache=out.cache, lengths_B=lengths_B), model.logits(out.hidden_BTD[:, 0]))

    def _choose(self, state: State, logits_BV: jax.Array) -> tuple[State, jax.Array]:
        """Adds a token to every row that isn't done."""
        allowed_BV = penalise(ban(logits_BV, self._vocab_size, self._banned), state.seen_BV, state.penalty_B)
        tokens_B = choose(logits_BV, allowed_BV, state.sampling, state.steps_B).tokens_B
        steps_B = state.steps_B + ~state.done_B
        ends_B = jnp.any(tokens_B[:, None] == state.stops_BZ, axis=1) | (steps_B >= state.limits_B)
        shown_B = jnp.where(state.done_B, -1, tokens_B)
        seen_BV = state.seen_BV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
        state = state._replace(tokens_B=tokens_B, steps_B=steps_B, done_B=state.done_B | ends_B, seen_BV=seen_BV)
        return state, shown_B


class DeviceProgram:
    """`jax.jit`, whose compiler's working memory goes back to the system: glibc would keep it.

    Compiling the three large programs of the 1B leaves 0.24 GB free but resident (2026-11, jax 0.10.2).
    """

    def __init__(self, function: Callable, **options: Any):
        self._jitted = jax.jit(function, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = self.num_compiled
        out = self._jitted(*args, **kwargs)
        if self.num_compiled > before and _TRIM is not None:
            _TRIM(0)
        return out

    def lower(self, *args: Any) -> Any:
        """Traced for arrays, or for structs of their shapes, and not compiled."""
        return self._jitted.lower(*args)

    @property
    def num_compiled(self) -> int:
        return self._jitted._cache_size()
