"""Who has which row and which pages: rows take pages as they grow. Nothing here touches a device.

An answer takes a row when there are pages for its prompt and one more, and one for every row that may need its next one
soon. What an earlier prompt or answer left of its beginning is shared, whole pages of it. When pages are short the
youngest answers are put back: they wait again, and go on as if nothing had happened.
"""

from collections.abc import Iterator, Sequence

from internvl_jax.errors import InputError
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.engine.drafts import Draft, Seat
from internvl_jax.inference.engine.page_pool import PagePool, page_names
from internvl_jax.inference.engine.scheduler import Scheduler


class PagedScheduler(Scheduler):
    """Rows and pages, and who has or waits for them.

    Args:
      ladders: sizes; its one class says how many rows there are, and how many tokens one may have.
      shards: over how many devices rows are spread.
      tokens: how many of them all pages together may hold.

    Attributes:
      pools: the pages of every device.

    Raises:
      InputError: there is no room for a page.
    """

    def __init__(self, ladders: Ladders, shards: int, tokens: int):
        super().__init__(ladders, shards, tokens)
        ((rows, slots),), self._size = ladders.classes, ladders.page
        pages = min(tokens // shards // self._size, rows // shards * -(-slots // self._size))
        if pages < 1:
            raise InputError(
                f"there is memory for {tokens // shards} tokens on a device, less than a page of {self._size}; give "
                "smaller pages, or more memory"
            )
        self.pools = [PagePool(pages) for _ in range(shards)]
        self.pages = shards * pages

    @property
    def longest(self) -> int:
        """The most tokens that a row may have."""
        return min(super().longest, self.pools[0].number * self._size)

    def make(self, classes: Sequence[tuple[int, int]]) -> None:
        """See `Scheduler.make`. A row's slots are those of all pages that it may have."""
        ((rows, _),) = classes
        super().make(((rows, self.ladders.columns * self._size),))

    def short(self) -> bool:
        """Whether rows need more pages than there are before they get another token."""
        return any(
            sum(self._missing(draft, 1) for draft in self._growing(shard)) > pool.available
            for shard, pool in enumerate(self.pools)
        )

    def put_back(self) -> None:
        """Lets the answers wait again that are to leave their rows; all others get pages for what they write next.

        Where pages are short, all tokens must be known.
        """
        super().put_back()
        for shard, pool in enumerate(self.pools):
            for draft in self._growing(shard):
                while draft.row is not None and self._missing(draft, 1) > pool.available:
                    there = [row.draft for row in self.rows if row.shard == shard and row.draft is not None]
                    self._preempt(max(there, key=_age))
                if draft.row is not None:
                    draft.row.pages += pool.take(self._missing(draft, 1))
            for draft in self._growing(shard):
                draft.row.pages += pool.take(min(self._missing(draft, self.ladders.piece), pool.available))

    def seat(self) -> None:
        """Gives rows and pages to answers that wait."""
        for row in self.rows:
            if row.draft is not None and not row.draft.reading:
                self._name(row, len(row.draft.job.seen.tokens_T))
        for job in self.waiting:
            if job.ready and not all(self._seated(draft) for draft in job.drafts if draft.waits):
                break
        self.waiting = [job for job in self.waiting if any(draft.waits for draft in job.drafts)]

    def starts(self) -> Iterator[tuple[Draft, Seat | None]]:
        """Nothing is taken over from other rows: what they have in common lies in the same pages."""
        return iter(())

    def forget(self) -> None:
        """See `Scheduler.forget`. Rows go on, and nobody finds what they hold."""
        super().forget()
        for pool in self.pools:
            pool.forget()

    def room(self, draft: Draft) -> int:
        """How many more tokens an answer's row holds."""
        return len(draft.row.pages) * self._size - draft.length - draft.flying + 1

    def reach(self, length: int) -> int:
        """Attention looks for itself."""
        return 0

    def _taken(self) -> tuple[int, int]:
        """The same of pages, each once, whoever shares it."""
        free = sum(pool.available for pool in self.pools)
        return (self.pages - free) * self._size, self.pages * self._size

    def _seated(self, draft: Draft) -> bool:
        """Gives a row to an answer; says whether those that come after it may take theirs."""
        if draft.length > self._size and any(other.reading and other.row is not None for other in draft.job.drafts):
            return True  # what they have in common is not there yet
        names = page_names(draft.keys_T[:-1], self._size)
        free = {row.shard: row for row in reversed(self.rows) if row.draft is None}
        tokens = min(self._size, draft.limit - len(draft.tokens) - 1) + draft.length
        best: tuple[int, int, Seat, list[int]] | None = None
        for shard, row in free.items():
            pool, others = self.pools[shard], sum(row.draft is not None for row in self.rows if row.shard == shard)
            shared = pool.find(names)
            left = pool.room(shared) - (-(-tokens // self._size) - len(shared)) - others
            if left >= 0 or (others == 0 and left + others >= 0):
                found = len(shared), left, row, shared
                best = found if best is None else max(best, found, key=lambda each: each[:2])
        if best is None:
            self._make_room(draft)
            return False
        _, _, row, shared = best
        pool = self.pools[row.shard]
        pool.share(shared)
        row.pages = shared + pool.take(-(-tokens // self._size) - len(shared))
        row.draft, draft.row, row.named = draft, row, len(shared)
        draft.filled = len(shared) * self._size
        self.reading.append(draft)
        return True

    def _make_room(self, draft: Draft) -> None:
        """Has the youngest answer leave its row, if it is younger."""
        others = [row.draft for row in self.rows if row.draft is not None]
        youngest = max(others, key=_age, default=draft)
        if youngest.job.order > draft.job.order and not any(other.leaving for other in others):
            youngest.leaving = True

    def _leave(self, draft: Draft) -> None:
        row = draft.row
        if row is None:
            return
        self._name(row, draft.filled if draft.reading else draft.length - 1)  # the last token is not in the cache
        self.pools[row.shard].give_back(row.pages)
        row.pages, row.named, row.stale = [], 0, False
        row.draft = draft.row = None

    def _name(self, row: Seat, length: int) -> None:
        """Lets others find the full pages of the first tokens of a row."""
        if length // self._size > row.named and not row.stale:
            names = page_names(row.draft.keys_T[:length], self._size)
            named = slice(row.named, len(names))
            for page, name in zip(row.pages[named], names[named], strict=True):
                self.pools[row.shard].name(page, name)
            row.named = len(names)

    def _growing(self, shard: int) -> list[Draft]:
        """Answers of a device that get tokens, the oldest first."""
        return sorted((d for d in self.writing if d.row.shard == shard and d.left > 0 and not d.leaving), key=_age)

    def _missing(self, draft: Draft, tokens: int) -> int:
        """How many pages a row lacks for so many tokens, or for all that it may have."""
        lacking = min(tokens, draft.left) - self.room(draft)
        return max(0, -(-lacking // self._size))


def _age(draft: Draft) -> tuple[tuple[int, int], int]:
    """The older, the less."""
    return draft.job.order, draft.number
