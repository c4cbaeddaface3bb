"""Who has which row: what the host knows of rows, requests and answers. Nothing here touches a device.

A request waits until its tiles are encoded. Then its answers take free rows, in the order of priority and arrival, of
the shortest class that holds what they may need. Where rows have classes, those that come later and are ready don't
wait for it: once it is ready too, it takes the next row that is free. An answer that outgrows its row, or has the
youngest of the rows that an older one needs, is put back: it waits again, with the tokens that it has, and goes on as
if nothing had happened.
"""

import collections
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.drafts import Draft, Job, Seat

_NEAR = 512  # slots that are read in any case
_RESERVE = 4096  # tokens of an answer that a row has room for at first, where rows come and go
_TOGETHER = 8192  # tokens of several prompts that are read at a time while nobody waits for a token


class EngineLoad(NamedTuple):
    """How much an engine has to do.

    Attributes:
      running: answers that have rows.
      waiting: requests that have none.
      used: tokens that lie in rows.
      slots: tokens that all rows can hold.
      preempted: how many answers were put back so far.
      unseated: the requests none of whose answers has a row.
    """

    running: int
    waiting: int
    used: int
    slots: int
    preempted: int
    unseated: frozenset[int]

    @property
    def share(self) -> float:
        """Of the slots that are used."""
        return self.used / self.slots if self.slots else 0.0


class Scheduler:
    """Rows and who has or waits for them.

    Args:
      ladders: sizes; their classes, if any, are the rows.
      shards: over how many devices rows are spread.
      tokens: how many slots all rows together may have, where they have no classes.

    Attributes:
      pages: how many there are, where rows have pages.
      preempted: how many answers were put back so far.
    """

    pages = 0

    def __init__(self, ladders: Ladders, shards: int, tokens: int):
        self.ladders, self.shards, self.tokens = ladders, shards, tokens
        self.jobs: dict[int, Job] = {}
        self.waiting: list[Job] = []
        self.reading: list[Draft] = []
        self.rows: list[Seat] = []
        self.preempted = 0
        self._sizes: set[tuple[int, int]] = set()  # (rows, slots) that there were
        # Tokens of the longest answers that fewer rows would have written, by (rows, slots).
        self._missed: collections.Counter[tuple[int, int]] = collections.Counter()

    @property
    def longest(self) -> int:
        """The most slots that a row may have."""
        if self.ladders.classes is not None:
            return max(slots for _, slots in self.ladders.classes)
        fitting = (slots for slots in self.ladders.slots if slots * self.ladders.rows[0] <= self.tokens)
        return max(fitting, default=self.ladders.slots[0])

    @property
    def most_rows(self) -> int:
        """The most answers that are written at a time."""
        return self.ladders.rows[-1] if self.ladders.classes is None else len(self.rows)

    @property
    def load(self) -> EngineLoad:
        """How much there is to do."""
        running = sum(row.draft is not None for row in self.rows)
        unseated = frozenset(job.id for job in self.waiting if all(draft.row is None for draft in job.drafts))
        return EngineLoad(running, len(self.waiting), *self._taken(), self.preempted, unseated)

    def _taken(self) -> tuple[int, int]:
        """Tokens that lie in rows, and that all can hold."""
        drafts = [row.draft for row in self.rows if row.draft is not None]
        return sum(draft.length for draft in drafts), sum(row.slots for row in self.rows)

    @property
    def writing(self) -> list[Draft]:
        """Answers that get tokens."""
        return [draft for row in self.rows if (draft := row.draft) is not None and not draft.reading]

    def make(self, classes: Sequence[tuple[int, int]]) -> None:
        """Rows of (rows, slots), in the order of their numbers: those of the first device class by class, then those of
        the next one."""
        index = itertools.count()
        self.rows = [
            Seat(next(index), number, shard, place, slots)
            for shard in range(self.shards)
            for number, (rows, slots) in enumerate(classes)
            for place in range(rows // self.shards)
        ]

    def add(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.waiting.append(job)
        self.waiting.sort(key=lambda job: job.order)

    def room(self, draft: Draft) -> int:
        """How many more tokens programs may write into an answer's row."""
        return draft.row.slots - draft.length - draft.flying + 1

    def reach(self, length: int) -> int:
        """How many slots attention reads where no row has more tokens."""
        return reach_of(length, max(row.slots for row in self.rows))

    def short(self) -> bool:
        """Whether answers must be read before rows can get another token."""
        return False

    def end(self, draft: Draft) -> bool:
        """Frees the row of an answer; says whether it was the last one to its request."""
        draft.ended = True
        self._leave(draft)
        self.reading = [other for other in self.reading if other is not draft]
        if not all(other.ended for other in draft.job.drafts):
            return False
        del self.jobs[draft.job.id]
        self.waiting = [job for job in self.waiting if job is not draft.job]
        return True

    def put_back(self) -> None:
        """Lets the answers wait again that are to leave their rows, and whose tokens are all known."""
        for draft in [row.draft for row in self.rows if row.draft is not None and row.draft.leaving]:
            if draft.flying == 0:
                self._preempt(draft)

    def _preempt(self, draft: Draft) -> None:
        self.preempted += 1
        self._wait(draft)

    def forget(self) -> None:
        """What rows hold was computed with other parameters: prompts that are being read are read again."""
        for draft in list(self.reading):
            if draft.reading and draft.row is not None:
                self._wait(draft)
        for job in self.waiting:
            job.ready = False
        for row in self.rows:
            row.held_T, row.stale = row.held_T[:0], row.draft is not None

    def begin_again(self) -> None:
        """Nothing is left of what rows held: all answers wait, with what is known of them."""
        for row in self.rows:
            if row.draft is not None:
                row.draft.flying = 0
                self._wait(row.draft)
        self.forget()

    def size(self) -> tuple[int, int] | None:
        """(rows, slots) that suit what is asked better than those that there are; None: nothing is to be changed, or
        rows have classes."""
        ready = [draft for job in self.waiting if job.ready for draft in job.drafts if draft.waits]
        busy = [row for row in self.rows if row.draft is not None]
        if self.ladders.classes is not None or (not ready and (self.waiting or not busy)):
            return None
        has = (len(self.rows), self.rows[0].slots) if self.rows else (0, 0)
        needed = [self._needed(draft) for draft in ready] + [self._needed(row.draft) for row in busy]
        slots = fit("tokens of prompt and answer", max(needed), self.ladders.slots)
        if ready:
            wanted = fit("rows", min(len(needed), self.ladders.rows[-1]), self.ladders.rows)
            # What rows hold is kept, unless memory is short.
            longer = max(slots, has[1])
            slots = longer if wanted <= self._most(longer) else slots
            rows = min(max(wanted, has[0]), self._most(slots))
            return None if (rows, slots) == has or rows < len(busy) else (rows, slots)
        enough, slots = fit("rows", len(needed), self.ladders.rows), has[1]
        if enough >= has[0]:
            return None
        rows = next((rows for rows in self._smaller if rows >= enough), None)
        if rows != enough:
            left = max(row.draft.limit - len(row.draft.tokens) for row in busy)
            self._missed[enough, slots] += min(left, self.ladders.piece)
        return None if rows is None else (rows, slots)

    def fewer(self, going: int) -> int:
        """How many of the answers that go on are left when a smaller number of rows is made for them."""
        smaller = [] if self.ladders.classes is not None else self._smaller
        return min(smaller[-1], going - 1) if smaller else 0

    @property
    def _smaller(self) -> list[int]:
        """The numbers of rows that may be made of those that there are. A program is compiled for another number where
        an answer goes on for long, or where it would have written as much by and by.
        """
        slots, drafts = self.rows[0].slots, [row.draft for row in self.rows if row.draft is not None]
        left = max((draft.limit - len(draft.tokens) for draft in drafts), default=0)
        there = lambda rows: (rows, slots) in self._sizes or self._missed[rows, slots] >= self.ladders.long
        return [
            rows for rows in self.ladders.rows if rows < len(self.rows) and (left >= self.ladders.long or there(rows))
        ]

    def resize(self, rows: int, slots: int) -> np.ndarray:
        """Rows of another size; returns for each of them the number of the row that it was, or one too large."""
        self._sizes.add((rows, slots))
        before = self.rows
        kept = sorted(before, key=lambda row: (row.draft is None, -len(row.held_T)))[:rows]
        self.make(((rows, slots),))
        for row, old in zip(self.rows[: len(kept)], kept, strict=True):
            row.draft, row.held_T, row.stale = old.draft, old.held_T[:slots], old.stale
            if row.draft is not None:
                row.draft.row = row
        return np.array([row.index for row in kept] + [len(before)] * (rows - len(kept)), np.int32)

    def seat(self) -> None:
        """Gives rows to answers that wait."""
        free = [row for row in self.rows if row.draft is None]
        blocked = math.inf  # a request that finds no row keeps those that it could take from all that come after it
        for job in self.waiting:
            if not job.ready:
                if self.ladders.classes is None:
                    break
                continue
            for draft in job.drafts:
                if not draft.waits:
                    continue
                needed = self._needed(draft)
                fitting = [row for row in free if needed <= row.slots < blocked]
                if not fitting:
                    self._make_room(draft)
                    blocked = min(blocked, needed)
                    break
                keys_T, least = draft.keys_T, min(row.slots for row in fitting)
                fitting = [row for row in fitting if row.slots == least]
                row = max(fitting, key=lambda row: (row.shared(keys_T), -len(row.held_T)))
                free.remove(row)
                row.draft, draft.row = draft, row
                self.reading.append(draft)
        self.waiting = [job for job in self.waiting if any(draft.waits for draft in job.drafts)]

    def parts(self, chunk: int) -> list[Draft | None]:
        """Answers whose prompts are read on, as rows of a chunk: of one class, all from their start or none of them,
        `chunk` tokens while rows are answering. Of every device equally many; None is padding.
        """
        self.reading = [draft for draft in self.reading if draft.row is not None and draft.reading]
        ready = [draft for draft in self.reading if draft.filled is not None]
        if not ready:
            return []
        first, width = ready[0], self.width(ready[0], chunk)
        alike = [
            draft
            for draft in ready
            if draft.row.number == first.row.number
            and (draft.filled == 0) == (first.filled == 0)
            and self.width(draft, chunk) <= width
        ]
        room = chunk if self.writing and self.ladders.classes is not None else _TOGETHER
        shards = [[draft for draft in alike if draft.row.shard == shard] for shard in range(self.shards)]
        most = min(self.shards * max(map(len, shards)), room // width)
        # No more rows than there are prompts, as far as sizes allow: a row of padding costs as much as a real one.
        size = max([size for size in self.ladders.together if size <= most], default=self.ladders.together[0])
        each = size // self.shards
        return [draft for own in shards for draft in [*own[:each], *[None] * (each - len(own))]]

    def width(self, draft: Draft, chunk: int) -> int:
        """How many tokens of a prompt are read at once, padding included."""
        T = fit("prompt tokens", min(chunk, draft.length - draft.filled), self.ladders.prompts)
        room = draft.row.slots - draft.filled
        return max([size for size in self.ladders.prompts if size <= min(T, room)], default=self.ladders.prompts[0])

    def starts(self) -> Iterator[tuple[Draft, Seat | None]]:
        """Answers whose prompts may be begun, and the row that what it holds already of the prompt is taken from; None
        where that is its own, or nothing."""
        for draft in self.reading:
            earlier = draft.job.drafts[: draft.number]
            if draft.filled is not None or any(other.reading and other.row is not None for other in earlier):
                continue
            keys_T, row = draft.keys_T, draft.row
            near = [other for other in self.rows if other.shard == row.shard]
            source = max(near, key=lambda other: (other.shared(keys_T), other is row))
            draft.filled = source.shared(keys_T)
            row.held_T = keys_T[: draft.filled]
            yield draft, None if source is row or not draft.filled else source

    def _most(self, slots: int) -> int:
        """The most rows of so many slots."""
        fitting = [rows for rows in self.ladders.rows if rows * slots <= self.tokens]
        return fitting[-1] if fitting else self.ladders.rows[0]

    def _needed(self, draft: Draft) -> int:
        """Slots that an answer must find."""
        ahead, reserve = draft.limit - len(draft.tokens), self.ladders.reserve
        if self.ladders.classes is None:
            # Room is doubled when it is full: few sizes are compiled, and short answers don't pay for long ones.
            reserve = max(reserve or _RESERVE, len(draft.tokens))
        return draft.length + (ahead if reserve is None else min(ahead, reserve)) - 1

    def _make_room(self, draft: Draft) -> None:
        """Has the youngest answer leave that has a row which this one needs, if it is younger."""
        others = [row.draft for row in self.rows if row.draft is not None and row.slots >= self._needed(draft)]
        if self.ladders.reserve is None or any(other.leaving for other in others):
            return
        youngest = max(others, key=lambda other: (other.job.order, other.number), default=draft)
        if youngest.job.order > draft.job.order:
            youngest.leaving = True

    def _wait(self, draft: Draft) -> None:
        self._leave(draft)
        self.reading = [other for other in self.reading if other is not draft]
        draft.reading, draft.filled, draft.leaving, draft.job.ready = True, None, False, False
        if draft.job not in self.waiting:
            self.waiting.append(draft.job)
            self.waiting.sort(key=lambda job: job.order)

    def _leave(self, draft: Draft) -> None:
        row = draft.row
        if row is None:
            return
        if not draft.reading and not row.stale:
            row.held_T = draft.keys_T[:-1]  # the last token is not in the cache
        row.stale, row.draft, draft.row = False, None, None


def reach_of(length: int, slots: int) -> int:
    """How many slots attention reads: all of them, or the least half of halves that holds so many tokens."""
    while slots >= 2 * _NEAR and slots // 2 >= length:
        slots //= 2
    return slots


def reaches(slots: int) -> list[int]:
    """All that `reach_of` may say of a row."""
    return sorted({reach_of(slots >> halves, slots) for halves in range(slots.bit_length())})
