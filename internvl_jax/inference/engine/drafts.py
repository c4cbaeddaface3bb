"""Requests on their way, the answers to them as far as they are written, and the rows that these have. Nothing here
touches a device.
"""

import dataclasses

import numpy as np

from internvl_jax.inference.engine.placed import BASE, Placed
from internvl_jax.inference.engine.requests import Request, Seen
from internvl_jax.inference.engine.sampling_params import SamplingParams

# What another row holds is taken over if it is at least so many tokens and half of the prompt: below, reading a prompt
# together with others costs less.
_WORTH = 16


@dataclasses.dataclass(eq=False)
class Draft:
    """One answer to a request, as far as it is written.

    Attributes:
      job: the request and all answers to it.
      number: which of them.
      sampling: how it is written, with its own seed.
      stops: ids that end it.
      tokens: what the host has read of it.
      row: the row that it has; None while it waits.
      reading: whether its prompt is not in the row yet.
      filled: how much of it is; None before anything was looked for in other rows.
      cached: how much of it was there when reading began.
      flying: tokens that programs write, and that the host has not read.
      leaving: whether it is put back as soon as none are.
      ended: nothing more is written.
    """

    job: "Job"
    number: int
    sampling: SamplingParams
    stops: frozenset[int]
    tokens: list[int] = dataclasses.field(default_factory=list)
    row: "Seat | None" = None
    reading: bool = True
    filled: int | None = None
    cached: int = 0
    flying: int = 0
    leaving: bool = False
    ended: bool = False

    @property
    def limit(self) -> int:
        """How many tokens it has at most."""
        return self.sampling.max_new_tokens

    @property
    def left(self) -> int:
        """How many more of them programs may write."""
        return self.limit - len(self.tokens) - self.flying

    @property
    def length(self) -> int:
        """How many tokens prompt and answer have."""
        return len(self.job.seen.tokens_T) + len(self.tokens)

    @property
    def tokens_T(self) -> np.ndarray:
        """int32, prompt and answer."""
        return np.concatenate([self.job.seen.tokens_T, np.array(self.tokens, np.int32)])

    @property
    def keys_T(self) -> np.ndarray:
        """int64, the same as keys, see `Seen`."""
        return np.concatenate([self.job.seen.keys_T, np.array(self.tokens, np.int64)])

    @property
    def waits(self) -> bool:
        return self.row is None and not self.ended


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
      id: its number.
      request: what is asked.
      names: digests of its tiles.
      adapter: writes the answers.
      seen: what the model reads; None until the router of a Flash model has spoken.
      ready: whether the features of its tiles are there.
      drafts: the answers to it.
    """

    id: int
    request: Request
    names: list[bytes]
    adapter: Placed = BASE
    seen: Seen | None = None
    ready: bool = False
    drafts: list[Draft] = dataclasses.field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        return self.request.priority, self.id


@dataclasses.dataclass(eq=False)
class Seat:
    """A row of the cache.

    Attributes:
      index: its number among all rows.
      number: that of its class.
      shard: that of its device, along the axes that rows are spread over.
      place: its number in its class and device.
      slots: how many it has.
      draft: who has it.
      held_T: int64, the keys of what lies in its slots.
      stale: whether some of it was computed with earlier parameters: then nobody takes it over from who has the row.
      pages: where they lie in pages, the numbers of those that it has, in their order; its slots are then those of all
        pages that it may have.
      named: how many of these others may find, see `PagePool`.
    """

    index: int
    number: int
    shard: int
    place: int
    slots: int
    draft: Draft | None = None
    held_T: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    stale: bool = False
    pages: list[int] = dataclasses.field(default_factory=list)
    named: int = 0

    def shared(self, keys_T: np.ndarray) -> int:
        """How many of the first tokens it holds already, if that is worth it; never all of them."""
        least, size = max(_WORTH, len(keys_T) // 2), min(len(self.held_T), len(keys_T) - 1)
        # Every prompt is compared with every row, and most differ here: one number says so.
        if size < least or self.held_T[least - 1] != keys_T[least - 1]:
            return 0
        equal = self.held_T[:size] == keys_T[:size]
        count = size if equal.all() else int(np.argmin(equal))
        return count if count >= least else 0
