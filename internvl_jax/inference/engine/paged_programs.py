"""The programs of rows that have pages. The host says at each call which ones, so nothing is copied or resized."""

from typing import Any, cast

import jax

from internvl_jax.inference.engine.device_program import DeviceProgram
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.row_state import Part, State, Written, laid
from internvl_jax.inference.engine.sampling import Shaping
from internvl_jax.models import PageCache
from internvl_jax.sharding import Params, shard


class PagedPrograms(Programs):
    """The functions for one model structure; see `Programs`.

    Args:
      given, options: those of `Programs`.
    """

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self.empty_pages = DeviceProgram(
            self._empty_pages, static_argnames=("rows", "pages", "adapted"), keep_unused=True
        )
        self.chunk_pages = DeviceProgram(self._chunk_pages, donate_argnames="state")
        self.decode_pages = DeviceProgram(
            self._decode_pages, donate_argnames=("state", "shaping"), static_argnames="best"
        )

    def _empty_pages(
        self, rows: int, pages: tuple[int, int], adapted: bool = False, beside: jax.Array | None = None
    ) -> State:
        """The state of rows that nobody has; see `PageCache.empty` and `Programs.empty`."""
        return self._nobody(PageCache.empty(*self._keys, pages, self.cache_dtype), rows, adapted)

    def _chunk_pages(self, params: Params, state: State, part: Part, table: jax.Array) -> tuple[State, jax.Array]:
        """Parts of prompts into the pages of some rows, `part.rows_B` is nothing to it.

        Args:
          table: the pages of these rows, see `PageCache`.

        Returns:
          the state, and the logits after the last of the tokens, `[B, V]` float32.
        """
        logits_BV, out = self._read(params, part, _cache(state).of(table), ())
        return _between(state._replace(cache=out.cache)), shard(logits_BV, "batch", "act_vocab")

    def _decode_pages(
        self,
        params: Params,
        state: State,
        shaping: Shaping | None,
        live_B: jax.Array,
        table: jax.Array,
        count: jax.Array,
        few: jax.Array,
        best: int,
    ) -> tuple[State, Shaping | None, Written]:
        """`Programs.decode` of rows that have the pages of this table."""
        state = state._replace(cache=_cache(state).of(table))
        reach = state.cache.reach
        state, shaping, written = self._decode(params, state, shaping, live_B, count, few, reach, best)
        return _between(state), shaping, written


def _cache(state: State) -> PageCache:
    return cast(PageCache, state.cache)


def _between(state: State) -> State:
    """As it stays between calls."""
    return laid(state._replace(cache=_cache(state).of(None)))
