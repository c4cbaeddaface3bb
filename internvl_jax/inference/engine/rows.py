"""Who has which row: what the host knows of rows, requests and answers."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from internvl_jax.inference.engine.requests import Prompt, Request
from internvl_jax.inference.engine.sampling import SamplingParams

# What another row holds is taken over if it is at least so many tokens and half of the prompt: below, reading a prompt
# together with others costs less.
_WORTH = 16


@dataclasses.dataclass(eq=False)
class Answer:
    """One answer to a request.

    Attributes:
      group: the request and all answers to it.
      number: which of them.
      sampling: how it is written, with its own seed.
      tokens: what the host has read of it.
      row: the row that it has; None while it waits.
      stops: ids that end it.
      reading: whether its prompt is not in the row yet.
      filled: how much of it is; None before anything was looked for in other rows.
      flying: tokens that programs write, and that the host has not read.
      ended: nothing more is written.
    """

    group: "Group"
    number: int
    sampling: SamplingParams
    stops: frozenset[int]
    tokens: list[int] = dataclasses.field(default_factory=list)
    row: "Row | None" = None
    reading: bool = True
    filled: int | None = None
    flying: int = 0
    ended: bool = False

    @property
    def limit(self) -> int:
        """How many tokens it has at most."""
        return self.sampling.max_new_tokens

    @property
    def length(self) -> int:
        """How many tokens prompt and answer have."""
        return len(self.group.prompt.tokens_T) + len(self.tokens)

    @property
    def written_T(self) -> np.ndarray:
        """int32, prompt and answer."""
        return np.concatenate([self.group.prompt.tokens_T, np.array(self.tokens, np.int32)])

    @property
    def text_T(self) -> np.ndarray:
        """int64, the keys of all that the row is to hold before it is drawn from: prompt, and answer if put back."""
        return np.concatenate([self.group.prompt.keys_T, np.array(self.tokens, np.int64)])


@dataclasses.dataclass(eq=False)
class Group:
    """A request on its way.

    Attributes:
      id: its number.
      request: what is asked.
      names: digests of its tiles.
      prompt: None until the router of a Flash model has spoken.
      answers: the answers to it.
    """

    id: int
    request: Request
    names: list[bytes]
    prompt: Prompt | None = None
    answers: list[Answer] = dataclasses.field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        return self.request.priority, self.id


@dataclasses.dataclass(eq=False)
class Row:
    """A row of the cache.

    Attributes:
      index: its number among all rows.
      number: that of its class.
      shard: that of the device, along the axes that rows are spread over.
      place: its number in its class and device.
      slots: how many it has.
      answer: who has it.
      held_T: int64, the keys of what lies in its slots.
    """

    index: int
    number: int
    shard: int
    place: int
    slots: int
    answer: Answer | None = None
    held_T: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def shared(self, keys_T: np.ndarray) -> int:
        """How many of the first tokens it holds already, if that is worth it; never all of them."""
        size = min(len(self.held_T), len(keys_T) - 1)
        equal = self.held_T[:size] == keys_T[:size]
        count = size if equal.all() else int(np.argmin(equal))
        return count if count >= max(_WORTH, len(keys_T) // 2) else 0


def make_rows(classes: Sequence[tuple[int, int]], shards: int) -> list[Row]:
    """Rows in the order of their numbers: those of the first device class by class, then those of the next one."""
    index = itertools.count()
    return [
        Row(next(index), number, shard, place, slots)
        for shard in range(shards)
        for number, (rows, slots) in enumerate(classes)
        for place in range(rows // shards)
    ]


def best_source(rows: Sequence[Row], keys_T: np.ndarray) -> Iterator[tuple[int, Row]]:
    """(tokens, row) of the rows that hold the most of a prompt's first tokens, those that hold any, best first."""
    found = [(row.shared(keys_T), row) for row in rows]
    yield from sorted(((count, row) for count, row in found if count), key=lambda pair: -pair[0])
