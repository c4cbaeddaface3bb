"""The device programs of the engine, pure functions of arrays of fixed sizes.

    encode(tiles) -> features               one program per number of tiles
    keep(pool, features) -> pool            features in their places
    gather(pool, index) -> features         those of the image tokens of some rows, in their order
    chunk(state, tokens) -> state, logits   a part of the prompts of some rows
    begin(state, logits) -> state, tokens   the first token of some rows
    decode(state) -> state, tokens          tokens of all rows that are answering
    copy(state) -> state                    the slots of one row to another one
    resize(state) -> state                  other numbers of rows and slots
    adapt(places) -> places                 an adapter in one of them

Groups of answers share the keys of their prompts (`GroupCache`). What of the above has to do with prompts then means
rows of prompts, all else is the same, and besides there are

    join(state) -> state                    rows go on with answers whose first tokens are known
    resume(state, tokens) -> state          tokens of such answers, all but the last of each, are read again
    move(state) -> state                    answers to other rows
    grow(state) -> state                    more slots for each of them

Rows are padded on the right, and a token sees its own row's slots up to its position only: so a row is computed as if
it were alone.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.inference.engine.device_program import DeviceProgram
from internvl_jax.inference.engine.row_state import (
    STOPS,
    Begin,
    Features,
    Joining,
    Part,
    State,
    Wanted,
    Written,
    laid,
    laid_shaping,
)
from internvl_jax.inference.engine.sampling import (
    Chosen,
    Sampling,
    Shaping,
    ban,
    choose,
    no_shaping,
    uniform,
    uniforms,
    wrote,
)
from internvl_jax.inference.engine.vision_tower import encode_tiles
from internvl_jax.models import (
    NO_PLACE,
    Cache,
    DecoderOut,
    GroupCache,
    InternVLConfig,
    PageCache,
    SlotCache,
    bind_for_rows,
    put_in_place,
    scopes,
)
from internvl_jax.sharding import Params, copies, shard, whole

_NOWHERE = 1 << 30  # a slot beyond all


class Programs:
    """The functions for one model structure.

    Args:
      config: the model's config.
      graphdef: the structure of an InternVL, or of its language half: then there is no `encode`.
      decode_graphdef: the structure of the same model as `decode` takes its parameters.
      vocab_size: ids from here on are unused rows of the table.
      banned: the ids that the model must not write.
      cache_dtype: the dtype of keys and values.
      piece: the most tokens that a call of `decode` writes.
      routes: whether to note every token's experts.
    """

    def __init__(
        self,
        config: InternVLConfig,
        graphdef: nnx.GraphDef,
        decode_graphdef: nnx.GraphDef,
        vocab_size: int,
        banned: tuple[int, ...],
        cache_dtype: jnp.dtype,
        piece: int,
        routes: bool = False,
    ):
        self._config, self._graphdef, self._decode_graphdef = config, graphdef, decode_graphdef
        self._vocab_size, self._banned, self.cache_dtype = vocab_size, banned, jnp.dtype(cache_dtype)
        self.piece, self._noted = piece, ("experts",) if routes else ()
        self._apart = decode_graphdef is not graphdef
        self.encode = DeviceProgram(self._encode)
        self.keep = DeviceProgram(self._keep, donate_argnames="pool_GPD")
        self.widen = DeviceProgram(self._widen, static_argnames="size")
        self.gather = DeviceProgram(self._gather)
        self.adapt = DeviceProgram(put_in_place, static_argnames="axis")
        # What makes something of nothing takes a parameter to stand beside, see `committed`.
        self.empty = DeviceProgram(self._empty, static_argnames=("classes", "adapted"), keep_unused=True)
        self.empty_groups = DeviceProgram(self._empty_groups, static_argnames=("rows", "slots"), keep_unused=True)
        self.unshaped = DeviceProgram(self._unshaped, static_argnames="rows", keep_unused=True)
        self.chunk = DeviceProgram(self._chunk, donate_argnames="state", static_argnames=("number", "reach"))
        self.begin = DeviceProgram(self._begin, donate_argnames=("state", "shaping"), static_argnames="best")
        self.decode = DeviceProgram(
            self._decode, donate_argnames=("state", "shaping"), static_argnames=("reach", "best")
        )
        self.copy = DeviceProgram(self._copy, donate_argnames="state", static_argnames=("source", "target", "reach"))
        self.resize = DeviceProgram(self._resize, static_argnames="slots")
        self.join = DeviceProgram(self._join, donate_argnames="state")
        self.resume = DeviceProgram(self._resume, donate_argnames="state", static_argnames="reach")
        self.move = DeviceProgram(self._move)
        self.grow = DeviceProgram(self._grow, static_argnames="slots")

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return sum(program.num_compiled for program in vars(self).values() if isinstance(program, DeviceProgram))

    def _encode(self, params: Params, tiles_GHWC: jax.Array) -> Features:
        return encode_tiles(self._config, self._graphdef, params, tiles_GHWC)

    def _keep(self, pool_GPD: jax.Array, new_GPD: jax.Array, places_G: jax.Array) -> jax.Array:
        """The pool with features in their places; a place beyond the last one takes none."""
        return shard(pool_GPD.at[places_G].set(new_GPD, mode="drop"), "tiles", None, None)

    def _widen(self, pool_GPD: jax.Array, size: int) -> jax.Array:
        """The pool with room for `size` tiles."""
        return shard(jnp.pad(pool_GPD, ((0, size - len(pool_GPD)), (0, 0), (0, 0))), "tiles", None, None)

    def _gather(self, pool_GPD: jax.Array, index_BP: jax.Array) -> jax.Array:
        """`[B, P, D]`: the features that each row names by their place in the pool, its tiles one after the other."""
        return shard(pool_GPD.reshape(-1, pool_GPD.shape[-1])[index_BP], "batch", None, None)

    def _empty(
        self, classes: tuple[tuple[int, int], ...], adapted: bool = False, beside: jax.Array | None = None
    ) -> State:
        """The state of rows that nobody has; `classes` are (rows, slots), `adapted` says whether there are places."""
        cache = SlotCache.empty(*self._keys, classes, self.cache_dtype)
        return self._nobody(cache, sum(rows for rows, _ in classes), adapted)

    def _empty_groups(self, rows: tuple[int, int], slots: tuple[int, int], beside: jax.Array | None = None) -> State:
        """The state of groups of rows that nobody has; see `GroupCache.empty`."""
        return self._nobody(
            GroupCache.empty(*self._keys, rows, slots, self.cache_dtype, self._apart), rows[0] * rows[1]
        )

    @property
    def _keys(self) -> tuple[int, int, int]:
        """Layers, key/value heads and their width."""
        text = self._config.text
        return text.layers, text.kv_heads * copies("act_heads", text.kv_heads), text.head_width

    def _nobody(self, cache: Cache, B: int, adapted: bool = False) -> State:
        zero_B = jnp.zeros(B, jnp.int32)
        float_B = jnp.zeros(B, jnp.float32)
        sampling = Sampling(float_B, zero_B, float_B + 1, float_B, jnp.zeros(B, jnp.uint32))
        wanted = Wanted(zero_B, jnp.zeros((B, STOPS), jnp.int32) - 2, sampling, zero_B + NO_PLACE if adapted else None)
        return laid(State(cache, zero_B, zero_B, zero_B, zero_B == 0, wanted))

    def _unshaped(self, rows: int, beside: jax.Array | None = None) -> Shaping:
        """That of rows which ask for nothing."""
        return laid_shaping(no_shaping(rows, self._config.text.vocab, STOPS))

    def _read(
        self,
        params: Params,
        part: Part,
        cache: SlotCache | PageCache | None,
        collect: tuple[str, ...],
    ) -> tuple[jax.Array, DecoderOut]:
        """Logits after the last of the tokens, which follow those of the cache."""
        model = bind_for_rows(self._graphdef, params, part.adapters_B)
        B, T = part.tokens_BT.shape
        offsets_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        positions_BT = part.starts_B[:, None] + offsets_BT
        real_BT = offsets_BT < part.counts_B[:, None]
        x_BTD = model.embed(part.tokens_BT, part.features_BPD)
        if cache is None:
            out = model.lm(x_BTD, real_BT.astype(jnp.int32), positions_BT, collect=collect)
        else:
            slots_BT = jnp.where(real_BT, positions_BT, _NOWHERE)
            out = model.lm(x_BTD, real_BT.astype(jnp.int32), positions_BT, cache, slots_BT, collect)
        last_B11 = jnp.maximum(part.counts_B - 1, 0)[:, None, None]
        hidden_BD = jnp.take_along_axis(out.hidden_BTD, last_B11, axis=1)[:, 0]
        return model.logits(hidden_BD), out

    def _chunk(
        self,
        params: Params,
        state: State,
        part: Part,
        number: int,
        reach: int,
    ) -> tuple[State, jax.Array, jax.Array | None]:
        """Parts of prompts into some rows of one class.

        Args:
          number: that of the class.
          reach: the last of these tokens is at most so far from the prompt's first; 0: they are the first.

        Returns:
          the state, the logits after the last of the tokens, `[B, V]` float32, and the experts of all of them, int16
          `[L, B, T, K]`, if they are noted.
        """
        rows = cast(SlotCache | GroupCache, state.cache)
        cache = rows.rows(number, part.rows_B, reach) if reach else None
        logits_BV, out = self._read(params, part, cache, ("kv", *self._noted))
        filled = rows.put(number, part.rows_B, part.starts_B, part.counts_B, out.kv_LBMTH)
        return laid(state._replace(cache=filled)), shard(logits_BV, "batch", "act_vocab"), _routes(out)

    def _begin(
        self, state: State, shaping: Shaping | None, logits_BV: jax.Array, start: Begin, best: int
    ) -> tuple[State, Shaping | None, Written]:
        """The first token of rows whose prompts are read."""
        at = lambda old, new: old.at[start.rows_B].set(new, mode="drop")
        uniform_B2 = uniform(start.wanted.sampling.seed_B, start.steps_B)
        chosen = self._choose(logits_BV[start.picks_B], start.steps_B, uniform_B2, start.wanted, start.shaped, best)
        if shaping is not None:
            shaping = laid_shaping(jax.tree.map(at, shaping, wrote(start.shaped, chosen.tokens_B, start.rows_B >= 0)))
        steps_B = start.steps_B + 1
        state = State(
            state.cache,
            at(state.tokens_B, chosen.tokens_B),
            at(state.lengths_B, start.lengths_B),
            at(state.steps_B, steps_B),
            at(state.done_B, start.wanted.ends(chosen.tokens_B, steps_B)),
            jax.tree.map(at, state.wanted, start.wanted),
        )
        return laid(state), shaping, Written(*(whole(x[:, None]) for x in chosen))

    def _decode(
        self,
        params: Params,
        state: State,
        shaping: Shaping | None,
        live_B: jax.Array,
        count: jax.Array,
        few: jax.Array,
        reach: int,
        best: int,
    ) -> tuple[State, Shaping | None, Written]:
        """`count` tokens of every row, or fewer: it ends as soon as at most `few` rows go on.

        Args:
          live_B: bool, False for rows that were taken away from whoever had them.
          reach: no row is longer than this afterwards.
        """
        whole_reach = state.cache.reach
        state = state._replace(cache=state.cache.within(reach), done_B=state.done_B | ~live_B)
        B, W = len(live_B), self.piece
        written = Written(
            jnp.full((B, W), -1, jnp.int32),
            jnp.zeros((B, W), jnp.float32),
            jnp.zeros((B, W, best), jnp.int32),
            jnp.zeros((B, W, best), jnp.float32),
            jnp.zeros((self._config.text.layers, B, W, self._config.text.moe.per_token), jnp.int16)
            if self._noted
            else None,
        )

        uniform_WB2 = whole(uniforms(state.wanted.sampling.seed_B, state.steps_B, count, W))

        def goes_on(carry: tuple) -> jax.Array:
            n, state, *_ = carry
            return (n < count) & (jnp.sum(~state.done_B) > few)

        def step(carry: tuple) -> tuple:
            n, state, shaping, written = carry
            # XLA on CPU would widen all bfloat16 weights before the loop, at every call: 2.4 times the time of a token.
            barrier = lambda *values: lax.optimization_barrier(values)
            here, n = lax.platform_dependent(params, n, cpu=barrier, default=lambda *values: values)
            model = bind_for_rows(self._decode_graphdef, here, state.wanted.adapters_B)
            x_BTD = model.embed(state.tokens_B[:, None], None)
            # A row that is done is padding, and writes nowhere.
            slots_B1 = jnp.where(state.done_B, _NOWHERE, state.lengths_B)[:, None]
            segments_B1, positions_B1 = (~state.done_B[:, None]).astype(jnp.int32), state.lengths_B[:, None]
            out = model.lm(x_BTD, segments_B1, positions_B1, state.cache, slots_B1, self._noted)
            logits_BV = model.logits(out.hidden_BTD[:, 0])
            uniform_B2 = lax.dynamic_index_in_dim(uniform_WB2, n, keepdims=False)
            chosen = self._choose(logits_BV, state.steps_B, uniform_B2, state.wanted, shaping, best)
            goes_B = ~state.done_B
            if shaping is not None:
                shaping = laid_shaping(wrote(shaping, chosen.tokens_B, goes_B))
            steps_B = state.steps_B + goes_B
            new = chosen._replace(tokens_B=jnp.where(goes_B, chosen.tokens_B, -1))
            columns = [values[:, None] for values in new]
            put = lambda old, new, axis=1: lax.dynamic_update_slice_in_dim(old, new, n, axis)
            routes_LBWK = put(written.routes_LBWK, _routes(out), 2) if self._noted else None
            written = Written(*map(put, written[:4], columns))._replace(routes_LBWK=routes_LBWK)
            state = State(
                out.cache,
                chosen.tokens_B,
                state.lengths_B + goes_B,
                steps_B,
                state.done_B | state.wanted.ends(chosen.tokens_B, steps_B),
                state.wanted,
            )
            return n + 1, laid(state), shaping, written

        carry = jnp.int32(0), laid(state), shaping, written
        with jax.named_scope(scopes.turns_scope(W)):
            _, state, shaping, written = lax.while_loop(goes_on, step, carry)
        # What is laid within a loop the compiler may lay otherwise behind it.
        state = laid(state._replace(cache=state.cache.within(whole_reach)))
        return state, shaping and laid_shaping(shaping), jax.tree.map(whole, written)

    def _choose(
        self,
        logits_BV: jax.Array,
        steps_B: jax.Array,
        uniform_B2: jax.Array,
        wanted: Wanted,
        shaping: Shaping | None,
        best: int,
    ) -> Chosen:
        allowed_BV = ban(logits_BV, self._vocab_size, self._banned)
        return choose(logits_BV, allowed_BV, wanted.sampling, steps_B, uniform_B2, shaping, best)

    def _copy(
        self,
        state: State,
        from_B: jax.Array,
        to_B: jax.Array,
        real_B: jax.Array,
        source: int,
        target: int,
        reach: int,
    ) -> State:
        """The first `reach` slots of a row of class `source` into one of class `target`, on the devices that are said;
        rows are numbered as in `_chunk`."""
        cache = cast(SlotCache, state.cache)
        part = cache.rows(source, from_B, reach)
        kv, counts_B = (part.k[0], part.v[0]), jnp.where(real_B, reach, 0)
        return laid(state._replace(cache=cache.put(target, to_B, jnp.zeros_like(to_B), counts_B, kv)))

    def _resize(self, state: State, rows_B: jax.Array, slots: int) -> State:
        """The rows that are named, of the only class, with so many slots; one beyond the last is a row of nobody."""
        fresh = self._empty(((len(rows_B), slots),), state.wanted.adapters_B is not None)
        real_B = rows_B < len(state.done_B)
        here_B = jnp.minimum(rows_B, len(state.done_B) - 1)
        take = lambda old, new: jnp.where(real_B.reshape(-1, *(1,) * (old.ndim - 1)), old[here_B], new)
        moved = jax.tree.map(take, state._replace(cache=None), fresh._replace(cache=None))
        held = cast(SlotCache, state.cache)
        reach = min(slots, held.k[0].shape[3])

        def widened(stack: jax.Array) -> jax.Array:
            kept = stack[:, here_B, :, :reach]
            return jnp.pad(kept, ((0, 0),) * 3 + ((0, slots - reach), (0, 0)))

        cache = SlotCache((widened(held.k[0]),), (widened(held.v[0]),), slots)
        return laid(moved._replace(cache=cache))

    def _join(self, state: State, joining: Joining) -> State:
        """Answers that begin in rows of groups that have their prompt."""
        real_B = joining.real_B
        pick = lambda new, old: jnp.where(real_B.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
        new = State(None, joining.tokens_B, joining.lengths_B, joining.steps_B, ~real_B, joining.wanted)
        return laid(jax.tree.map(pick, new, state._replace(cache=None))._replace(cache=state.cache))

    def _resume(
        self, params: Params, state: State, part: Part, rows_B: jax.Array, reach: int
    ) -> tuple[State, jax.Array | None]:
        """Tokens that follow some prompts into the rows of their answers.

        Args:
          part: `rows_B` are the prompts' places, see `_chunk`.
          rows_B: the answers' rows, see `GroupCache.resume`.
          reach: no prompt is longer.

        Returns:
          the state, and the experts of the tokens, see `_chunk`.
        """
        cache = cast(GroupCache, state.cache)
        prompts = cache.rows(0, part.rows_B, reach).longer(part.tokens_BT.shape[1])
        _, out = self._read(params, part, prompts, ("kv", *self._noted))
        return laid(state._replace(cache=cache.resume(rows_B, part.counts_B, out.kv_LBMTH))), _routes(out)

    def _move(self, state: State, prompts_Q: jax.Array, rows_B: jax.Array, real_B: jax.Array) -> State:
        """The rows and prompts of groups that are named; rows that are not real are nobody's."""
        moved = jax.tree.map(lambda part: part[rows_B], state._replace(cache=None))
        cache = cast(GroupCache, state.cache).moved(prompts_Q, rows_B)
        return laid(moved._replace(cache=cache, done_B=moved.done_B | ~real_B))

    def _grow(self, state: State, slots: int) -> State:
        """Groups whose answers have so many slots each."""
        return laid(state._replace(cache=cast(GroupCache, state.cache).grown(slots)))


def _routes(out: DecoderOut) -> jax.Array | None:
    return None if out.experts_LBTK is None else whole(out.experts_LBTK.astype(jnp.int16))
