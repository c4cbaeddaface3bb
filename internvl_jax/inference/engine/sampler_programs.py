"""The device programs of rollouts, pure functions that `Sampler` compiles.

    prefill(tokens, features) -> logits, keys and values of whole prompts
    start(logits, keys and values) -> rows    every answer's first token
    write(rows) -> rows                       tokens until most answers are complete
    grow(rows) -> rows                        more slots
    compact(rows) -> rows                     fewer rows, those that are not complete

Complete answers are written on until the batch shrinks; nobody reads what is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.inference.engine.device_program import DeviceProgram
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.sampling import Sampling, ban, choose
from internvl_jax.models import Branches
from internvl_jax.sharding import Params, bind, shard, whole


class Given(NamedTuple):
    """What an answer is asked for.

    Attributes:
      limit_B: how many tokens may be written; 0 for padding.
      stops_BZ: the ids that end the answer; negative ids fill up.
      sampling: how each row's tokens are drawn.
    """

    limit_B: jax.Array
    stops_BZ: jax.Array
    sampling: Sampling


class Rows(NamedTuple):
    """Answers in the middle of being written, all of the same length.

    Attributes:
      cache: the keys and values of all tokens but the last.
      given: see `Given`.
      tokens_BS, logprobs_BS: what is written; behind a complete answer's tokens stands anything.
      counts_B: how many tokens every answer has.
      count: how many tokens an answer has that is not complete.
      done_B: whether the answer is complete.
      routes_LBSK: int16, the experts of every answer's tokens but its last; None if not asked for.
    """

    cache: Branches
    given: Given
    tokens_BS: jax.Array
    logprobs_BS: jax.Array
    counts_B: jax.Array
    count: jax.Array
    done_B: jax.Array
    routes_LBSK: jax.Array | None


class RolloutPrograms:
    """The functions for one model structure.

    Args:
      prompts: the programs of generation of the same model.
      graphdef: the structure of an InternVL as `write` takes its parameters.
      apart: whether its layers are apart, and with them those of the cache.
      vocab_size, banned: see `Vocabulary`.
      cache_dtype: the dtype of keys and values.
      routes: whether to note every token's experts.
    """

    def __init__(
        self,
        prompts: Programs,
        graphdef: nnx.GraphDef,
        apart: bool,
        vocab_size: int,
        banned: tuple[int, ...],
        cache_dtype: jnp.dtype,
        routes: bool,
    ):
        self._run, self._collect = prompts.run, ("experts",) if routes else ()
        self._graphdef, self._apart = graphdef, apart
        self._vocab_size, self._banned, self._cache_dtype = vocab_size, banned, cache_dtype
        self.prefill = DeviceProgram(self._prefill)
        self.start = DeviceProgram(self._start, static_argnames="slots")
        self.write = DeviceProgram(self._write, donate_argnames="rows")
        self.grow = DeviceProgram(self._grow, static_argnames="slots")
        self.compact = DeviceProgram(self._compact)

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return sum(program.num_compiled for program in (self.prefill, self.start, self.write, self.grow, self.compact))

    def _prefill(
        self, params: Params, tokens_QT: jax.Array, lengths_Q: jax.Array, features_QPD: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array | None]:
        """What `Programs.prefill` gives, and the experts of the prompts' tokens if noted, int16 [L, Q, T, K]."""
        logits_QV, out = self._run(params, tokens_QT, lengths_Q, features_QPD, ("kv", *self._collect))
        return logits_QV, out.kv_LBMTH, _noted(out.experts_LBTK)

    def _start(
        self,
        logits_QV: jax.Array,
        kv_LQMTH: tuple[jax.Array, jax.Array],
        routes_LQTK: jax.Array | None,
        lengths_Q: jax.Array,
        prompt_numbers: jax.Array,
        given: Given,
        slots: int,
    ) -> Rows:
        """Rows with their first tokens.

        Args:
          prompt_numbers: the prompt of every branch of the cache; B / (their number) answers belong to each.
        """
        B, branches = len(given.limit_B), len(prompt_numbers)
        L, _, M, _, H = kv_LQMTH[0].shape
        prompt_k, prompt_v = (part[:, prompt_numbers].astype(self._cache_dtype) for part in kv_LQMTH)
        layered = lambda part: tuple(part) if self._apart else part
        shapes = (L, B, M, H, slots), (L, B, M, slots, H)
        k, v = (layered(jnp.zeros(shape, self._cache_dtype)) for shape in shapes)
        cache = Branches(layered(prompt_k), layered(prompt_v), k, v, lengths_Q[prompt_numbers], jnp.int32(0))
        zero_B = jnp.zeros(B, jnp.int32)
        written_BS = jnp.zeros((B, slots), jnp.int32)
        routes_LBSK = None if routes_LQTK is None else jnp.zeros((L, B, slots, routes_LQTK.shape[3]), jnp.int16)
        rows = Rows(
            cache,
            given,
            tokens_BS=written_BS,
            logprobs_BS=written_BS.astype(jnp.float32),
            counts_B=zero_B,
            count=jnp.int32(0),
            done_B=given.limit_B == zero_B,
            routes_LBSK=routes_LBSK,
        )
        return _laid(self._choose(rows, logits_QV[jnp.repeat(prompt_numbers, B // branches)]))

    def _write(self, params: Params, rows: Rows, stop: jax.Array, few: jax.Array) -> Rows:
        """Tokens until answers have `stop` of them, or at most `few` answers are not complete."""

        def goes_on(rows: Rows) -> jax.Array:
            return (rows.count < stop) & (jnp.sum(~rows.done_B) > few)

        def step(rows: Rows) -> Rows:
            model = bind(self._graphdef, params)
            last_B1 = jax.lax.dynamic_slice_in_dim(rows.tokens_BS, rows.count - 1, 1, axis=1)
            B, Q = len(last_B1), len(rows.cache.lengths_Q)
            positions_B1 = (jnp.repeat(rows.cache.lengths_Q, B // Q) + rows.cache.step)[:, None]
            x_B1D = model.embed(last_B1, None)
            ones_B1 = jnp.ones_like(positions_B1)
            out = model.lm(x_B1D, ones_B1, positions_B1, rows.cache, positions_B1, collect=self._collect)
            routes_LBSK = rows.routes_LBSK
            if routes_LBSK is not None:
                place = (0, 0, rows.cache.step, 0)
                routes_LBSK = jax.lax.dynamic_update_slice(routes_LBSK, _noted(out.experts_LBTK), place)
            rows = rows._replace(cache=out.cache, routes_LBSK=routes_LBSK)
            return self._choose(rows, model.logits(out.hidden_BTD[:, 0]))

        return _laid(jax.lax.while_loop(goes_on, step, rows))

    def _choose(self, rows: Rows, logits_BV: jax.Array) -> Rows:
        """Adds a token to every row that isn't done."""
        given = rows.given
        allowed_BV = ban(logits_BV, self._vocab_size, self._banned)
        steps_B = jnp.full_like(rows.counts_B, rows.count)
        chosen = choose(logits_BV, allowed_BV, given.sampling, steps_B)
        tokens_B = chosen.tokens_B
        count = rows.count + 1
        put = lambda old_BS, new_B: jax.lax.dynamic_update_slice(old_BS, new_B[:, None], (0, rows.count))
        ends_B = jnp.any(tokens_B[:, None] == given.stops_BZ, axis=1) | (count >= given.limit_B)
        return rows._replace(
            tokens_BS=put(rows.tokens_BS, tokens_B),
            logprobs_BS=put(rows.logprobs_BS, chosen.logprobs_B),
            counts_B=jnp.where(rows.done_B, rows.counts_B, count),
            count=count,
            done_B=rows.done_B | ends_B,
        )

    def _grow(self, rows: Rows, slots: int) -> Rows:
        """The same rows, whose answers have room for `slots` tokens."""

        def widened(x: jax.Array, axis: int) -> jax.Array:
            """`axis` counts from the end."""
            widths = [(0, 0)] * x.ndim
            widths[x.ndim - axis] = (0, slots - x.shape[-axis])
            return jnp.pad(x, widths)

        cache = rows.cache
        keys = jax.tree.map(lambda x: widened(x, 1), cache.k)
        values = jax.tree.map(lambda x: widened(x, 2), cache.v)
        return _laid(
            rows._replace(
                cache=cache._replace(k=keys, v=values),
                tokens_BS=widened(rows.tokens_BS, 1),
                logprobs_BS=widened(rows.logprobs_BS, 1),
                routes_LBSK=None if rows.routes_LBSK is None else widened(rows.routes_LBSK, 2),
            )
        )

    def _compact(self, rows: Rows, branch_numbers: jax.Array, row_B: jax.Array, real_B: jax.Array) -> Rows:
        """The rows that are named, under branches that are named; not real ones are padding."""
        cache, axis = rows.cache, 0 if self._apart else 1
        take = lambda tree, index: jax.tree.map(lambda part: jnp.take(part, index, axis=axis), tree)
        cache = cache._replace(
            prompt_k=take(cache.prompt_k, branch_numbers),
            prompt_v=take(cache.prompt_v, branch_numbers),
            k=take(cache.k, row_B),
            v=take(cache.v, row_B),
            lengths_Q=cache.lengths_Q[branch_numbers],
        )
        return _laid(
            Rows(
                cache,
                jax.tree.map(lambda part: part[row_B], rows.given),
                rows.tokens_BS[row_B],
                rows.logprobs_BS[row_B],
                rows.counts_B[row_B],
                rows.count,
                rows.done_B[row_B] | ~real_B,
                None if rows.routes_LBSK is None else rows.routes_LBSK[:, row_B],
            )
        )


def _noted(experts_LBTK: jax.Array | None) -> jax.Array | None:
    return None if experts_LBTK is None else whole(experts_LBTK.astype(jnp.int16))


def _laid(rows: Rows) -> Rows:
    """Keys and values spread as the rows are, the rest the same everywhere: the host reads it."""
    cache = rows.cache

    def spread(layered: Any) -> Any:
        names = ("batch", "act_heads", None, None)
        return jax.tree.map(lambda part: shard(part, *(None,) * (part.ndim - 4), *names), layered)

    laid = jax.tree.map(whole, rows._replace(cache=None))
    return laid._replace(
        cache=cache._replace(
            prompt_k=spread(cache.prompt_k), prompt_v=spread(cache.prompt_v), k=spread(cache.k), v=spread(cache.v)
        )
    )
