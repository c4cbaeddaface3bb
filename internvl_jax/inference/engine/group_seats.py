"""Who has which row where prompts are answered in groups: what the host knows. Nothing here touches a device.

Rows stand in equal numbers beside a prompt. While prompts wait, there are fewer rows to a prompt than answers: a row
that is free takes the next answer, and prompts whose answers have ended make room for others, so that few rows stand
idle however long answers are. Once no prompt waits, answers go on as a smaller batch as soon as half the rows hold all
that are left, down to the smallest that the ladder has.
"""

import collections
import itertools
from typing import NamedTuple

import numpy as np

from internvl_jax.inference.engine.buckets import fit

_TURNS = 4  # answers to a prompt that a row writes one after the other, while prompts wait


class Layout(NamedTuple):
    """Rows beside prompts: `prompts` of them with `width` rows each."""

    prompts: int
    width: int

    @property
    def rows(self) -> int:
        return self.prompts * self.width

    def smaller(self, sizes: tuple[int, ...]) -> "Layout | None":
        """About half as many rows."""
        if self.width > 1:
            return Layout(self.prompts, -(-self.width // 2))
        fewer = [size for size in sizes if size <= (self.prompts + 1) // 2 and size < self.prompts]
        return Layout(fewer[-1], 1) if fewer else None

    def same(self) -> "Move":
        """All stay where they are."""
        prompts_Q, rows_B = (np.arange(count, dtype=np.int32) for count in (self.prompts, self.rows))
        return Move(prompts_Q, rows_B, rows_B >= 0)


class Move(NamedTuple):
    """Other places for prompts and answers.

    Attributes:
      prompts_Q: where the prompt of each place lies now.
      rows_B: where each row's answer is written now.
      real_B: bool, whether an answer goes on in the row.
    """

    prompts_Q: np.ndarray
    rows_B: np.ndarray
    real_B: np.ndarray


class GroupSeats:
    """Prompts, rows, and who waits for them.

    Args:
      count: how many prompts there are.
      group: how many answers to each of them; those of prompt p have the numbers p x group and following.
      together: how many prompts there is room for with all their answers.
      slots: of a prompt, and at first of an answer; for memory alone.
      sizes: the numbers of prompts that programs are compiled for.
      shards: over how many devices rows are spread.

    Attributes:
      shards: over how many devices rows are spread.
      layout: what rows there are.
      prompt_Q: the prompt of each place, -1 where there is none.
      answer_B: the answer of each row, -1 where there is none.
      queued: by prompt, answers that have their first tokens and no row.
      begun: by prompt that has not been read, the answers that go on, where all of them have their first tokens.
    """

    def __init__(
        self, count: int, group: int, together: int, slots: tuple[int, int], sizes: tuple[int, ...], shards: int
    ):
        self.group, self._sizes, self.shards = group, sizes, shards
        if count <= together:
            self.layout = Layout(fit("prompts", together, sizes), group)
        else:
            width = -(-group // _TURNS)
            prompt, answer = slots
            # More prompts at a time, in the memory of `together` whole groups and of the half that stands beside these
            # while they move.
            most = together * (4 * prompt + 3 * group * answer) // (4 * prompt + 3 * width * answer)
            self.layout = Layout(max(1, most // shards) * shards, width)
        self.unread = collections.deque(range(count))
        self.queued: dict[int, list[int]] = {}
        self.begun: dict[int, list[int]] = {}
        self.prompt_Q = np.full(self.layout.prompts, -1, np.int32)
        self.answer_B = np.full(self.layout.rows, -1, np.int32)

    @property
    def writing(self) -> np.ndarray:
        """The rows that have an answer."""
        return np.flatnonzero(self.answer_B >= 0)

    @property
    def waits(self) -> bool:
        """Whether an answer has no row."""
        return bool(self.unread or self.queued)

    @property
    def turns(self) -> bool:
        """Whether a prompt has more answers than rows."""
        return self.layout.width < self.group

    def place(self, q: int) -> int:
        """The number of a place on its device."""
        return q % (self.layout.prompts // self.shards)

    def rows(self, q: int) -> range:
        """The rows beside the prompt of a place."""
        return range(q * self.layout.width, (q + 1) * self.layout.width)

    def take(self, sizes: tuple[int, ...], most: int) -> list[int | None]:
        """Gives free places to prompts, and their rows to the first of their answers; those that were begun queue.

        Args:
          sizes: how many prompts may be read together.
          most: no more than so many, if the sizes allow.

        Returns:
          the places, of every device equally many; None is padding. Nothing if there is no place, or no prompt.
        """
        each, free = self.layout.prompts // self.shards, np.flatnonzero(self.prompt_Q < 0).tolist()
        shards = [[q for q in free if q // each == shard] for shard in range(self.shards)]
        # One of every device, then another one of each.
        turns = itertools.chain(*itertools.zip_longest(*shards))
        wanted = set(itertools.islice((q for q in turns if q is not None), len(self.unread)))
        shards = [[q for q in own if q in wanted] for own in shards]
        if not wanted:
            return []
        fitting = [size for size in sizes if size <= min(self.shards * max(map(len, shards)), most)]
        each = max(fitting, default=sizes[0]) // self.shards
        order = [q for own in shards for q in [*own[:each], *[None] * (each - len(own))]]
        for q in order:
            if q is not None:
                prompt = self.unread.popleft()
                self.prompt_Q[q] = prompt
                if prompt in self.begun:
                    self.queued[prompt] = self.begun.pop(prompt)
                else:
                    self.answer_B[self.rows(q)] = prompt * self.group + np.arange(self.layout.width)
        return order

    def queue(self, answer: int) -> None:
        """An answer waits for a row beside its prompt, if it has none."""
        if not (self.answer_B == answer).any():
            self.queued.setdefault(answer // self.group, []).append(answer)

    def end(self, answer: int) -> None:
        """Frees the row of an answer, if it has one."""
        self.answer_B[self.answer_B == answer] = -1

    def seat(self) -> list[int]:
        """Gives free rows to answers that wait beside their prompt, and lets go of prompts that have no answer left;
        returns these rows."""
        joining = []
        for q in np.flatnonzero(self.prompt_Q >= 0).tolist():
            waiting = self.queued.get(int(self.prompt_Q[q]), [])
            for row in self.rows(q):
                if waiting and self.answer_B[row] < 0:
                    self.answer_B[row] = waiting.pop(0)
                    joining.append(row)
            if not waiting:
                self.queued.pop(int(self.prompt_Q[q]), None)
            if (self.answer_B[self.rows(q)] < 0).all():
                self.prompt_Q[q] = -1
        return joining

    def move(self) -> Move | None:
        """Once all prompts are read: fewer rows that hold all answers, those that wait too. None: all stay where they
        are."""
        here, waiting = self.writing, list(itertools.chain(*self.queued.values()))
        answers = [*self.answer_B[here].tolist(), *waiting]
        if self.unread or not answers:
            return None
        smaller = self.layout.smaller(self._sizes)
        packed = None if smaller is None else self._pack(answers, smaller)
        if packed is None:
            return None
        was = dict(zip(self.answer_B[here].tolist(), here.tolist(), strict=True))
        has = {int(prompt): q for q, prompt in enumerate(self.prompt_Q) if prompt >= 0}
        rows_B = np.array([was.get(answer, 0) for answer in packed.tolist()], np.int32)
        real_B = np.array([answer in was for answer in packed.tolist()])
        prompt_Q = np.where(packed < 0, -1, packed // self.group).reshape(smaller).max(axis=1)
        prompts_Q = np.array([has.get(prompt, 0) for prompt in prompt_Q.tolist()], np.int32)
        self.layout, self.prompt_Q = smaller, prompt_Q.astype(np.int32)
        self.answer_B = np.where(real_B, packed, -1)
        return Move(prompts_Q, rows_B, real_B)

    def few(self) -> int:
        """How many rows go on when there is something to do: some are free that others wait for, or those that are left
        may fit into fewer; if their prompts were too many, once half are complete."""
        going = len(self.writing)
        if self.waits:
            return max(0, going - max(1, going // 8))
        smaller = self.layout.smaller(self._sizes)
        return 0 if smaller is None else min(smaller.rows, going // 2)

    def _pack(self, answers: list[int], layout: Layout) -> np.ndarray | None:
        """The answers side by side, each beside its prompt, int32 [B], -1 where there is none; None where they don't
        fit."""
        by_prompt: dict[int, list[int]] = {}
        for answer in answers:
            by_prompt.setdefault(answer // self.group, []).append(answer)
        width, filled = layout.width, []
        for own in by_prompt.values():
            filled += [*own, *[-1] * (-len(own) % width)]
        if len(filled) > layout.rows:
            return None
        return np.array([*filled, *[-1] * (layout.rows - len(filled))], np.int32)
