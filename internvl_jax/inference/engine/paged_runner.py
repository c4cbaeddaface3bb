"""A model's programs together with its parameters and the state of its rows, which have pages."""

import itertools
from collections.abc import Sequence
from typing import cast

import jax
import numpy as np

from internvl_jax.inference.engine.drafts import Draft
from internvl_jax.inference.engine.paged_programs import PagedPrograms
from internvl_jax.inference.engine.row_state import Part, Written, committed
from internvl_jax.inference.engine.runner import Runner


class PagedRunner(Runner):
    """Calls the programs; between calls the state is nowhere else. See `Runner`."""

    kind = PagedPrograms

    def resize(self, classes: tuple[tuple[int, int], ...], rows_B: np.ndarray | None) -> None:
        """Rows of nobody, and pages of nobody."""
        self._rows, self._shaping = classes[0][0], None
        self._marked.clear()
        pages = self.pages, self._ladders.page
        self._state = self._paged.empty_pages(
            rows=self._rows, pages=pages, adapted=self.places is not None, beside=committed(self.params)
        )

    def read(self, order: Sequence[Draft | None], T: int) -> jax.Array:
        """See `Runner.read`."""
        return self._chunk_pages(self._part(order, T), self._table(len(order), dict(enumerate(order))))

    def decode(self, drafts: Sequence[Draft], count: int, few: int, reach: int, rich: bool) -> Written:
        """See `Runner.decode`; attention looks for itself how far it reaches."""
        live_B, shaping = self._going(drafts, rich)
        self._state, shaping, written = self._paged.decode_pages(
            self._decode_params,
            self._state,
            shaping,
            live_B,
            self._table(self._rows, {draft.row.index: draft for draft in drafts}),
            np.int32(count),
            np.int32(few),
            best=self._best(rich),
        )
        self._shaping = shaping or self._shaping
        return written

    def warm_up(self, classes: tuple[tuple[int, int], ...], shards: int) -> int:
        """Compiles all that rows of this class need; returns how many programs there are."""
        self.tiles.warm_up(self.params)
        self._warm_up_places()
        for R, T in itertools.product(self._ladders.together, self._ladders.prompts):
            logits_RV = self._chunk_pages(self._nothing(R, T), self._table(R, {}))
            if T == self._ladders.prompts[0]:
                for rich in (False, True):
                    self.begin(logits_RV, [], rich)
        for rich in (False, True):
            self.decode([], 0, 0, 0, rich)
        return self.programs.num_compiled

    @property
    def _paged(self) -> PagedPrograms:
        return cast(PagedPrograms, self.programs)

    def _chunk_pages(self, part: Part, table: np.ndarray) -> jax.Array:
        self._state, logits_RV = self._paged.chunk_pages(self.params, self._state, part, table)
        return logits_RV

    def _table(self, rows: int, drafts: dict[int, Draft | None]) -> np.ndarray:
        """The pages of so many rows, see `PageCache`; those of answers, by the numbers of rows."""
        table = np.zeros((rows, self._ladders.columns), np.int32)
        for number, draft in drafts.items():
            if draft is not None:
                table[number, : len(draft.row.pages)] = draft.row.pages
        return table
