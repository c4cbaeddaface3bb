"""The engine's programs on rows that are kept in groups: the state of one rollout, and what is known of its answers."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.group_seats import GroupSeats
from internvl_jax.inference.engine.memory import FIRST_SLOTS, TOGETHER
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.requests import Request, Vocabulary, shown, stop_ids
from internvl_jax.inference.engine.row_state import Begin, Joining, Part, State, Wanted, Written, committed
from internvl_jax.inference.engine.sampling import stack_params
from internvl_jax.inference.engine.tile_features import TileFeatures, digest
from internvl_jax.models import InternVLConfig
from internvl_jax.sharding import Params

_SHORTEST = 32  # the least tokens of an answer that are read again at a time; then powers of two


class GroupSlots(NamedTuple):
    """The sizes that programs of a rollout are compiled for.

    Attributes:
      prompt: slots of a prompt, all of which are read at once.
      first: those of an answer at first; twice as many when they are full.
      longest: the most that an answer gets.
      together: how many prompts are read at a time, at most.
    """

    prompt: int
    first: int
    longest: int
    together: int

    @classmethod
    def of(cls, prompt: int, answer: int, ladders: Ladders) -> "GroupSlots":
        """Those for prompts and answers of at most so many tokens.

        Raises:
          InputError: more than the ladders have.
        """
        slots = fit("prompt tokens", prompt, ladders.prompts)
        longest = fit("tokens of an answer", answer, ladders.slots)
        return cls(slots, min(longest, FIRST_SLOTS), longest, TOGETHER // slots)


@dataclasses.dataclass(eq=False)
class Text:
    """An answer as far as it is known: what each call wrote of it.

    Attributes:
      prompt: how many tokens its prompt has.
      count: how many tokens it has itself.
      finished: whether it has come to a stop.
      kept: how many tokens it had from the start.
      routes: the experts of its prompt, then of what was written, each int16 `[L, n, K]`.
    """

    prompt: int = 0
    count: int = 0
    finished: bool = False
    kept: int = 0
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    routes: list[np.ndarray] = dataclasses.field(default_factory=list)


class _Asked(NamedTuple):
    """What a program was asked to write, and the answer of each row of it; -1 where there is none."""

    written: Written
    answers: np.ndarray


class GroupRunner:
    """Answers requests, each with a group of answers.

    Args:
      programs, vision: the model's, without a picture of other parameters.
      params: the parameters as prompts take them, and what makes of them those that answers take; None: the same.
      model: its config and vocabulary.
      ladders: as the devices of a mesh can share them.
      requests: see `Sampler.sample`; they were checked.
      seeds_QA: of every answer.
      room: for how many prompts with all their answers there is memory, and how many devices share it.

    Attributes:
      groups: who has which row.
      texts: of every answer.
      left: how many answers to each prompt have not ended.
    """

    def __init__(
        self,
        programs: Programs,
        vision: TileFeatures,
        params: tuple[Params, Callable[[Params], Params] | None],
        model: tuple[InternVLConfig, Vocabulary],
        ladders: Ladders,
        requests: Sequence[Request],
        seeds_QA: np.ndarray,
        room: tuple[int, int],
    ):
        self._programs, self._vision, self._ladders, self._requests = programs, vision, ladders, requests
        (self._params, self._apart), (self._config, vocabulary) = params, model
        sampling, group, (together, shards) = [request.sampling for request in requests], seeds_QA.shape[1], room
        prompt, answer = (len(each.tokens_T) for each in requests), (row.max_new_tokens for row in sampling)
        self._slots = GroupSlots.of(max(prompt), max(answer), ladders)
        slots = self._slots.prompt, self._slots.first
        self.groups = GroupSeats(len(requests), group, together, slots, ladders.rows, shards)
        self._names = [[digest(tile_HWC) for tile_HWC in request.tiles_GHWC] for request in requests]
        self._stops = [sorted(row.stop_ids(vocabulary.stops)) for row in sampling]
        of_all = lambda rows: np.repeat(np.array(rows), group, axis=0)
        drawn = jax.tree.map(of_all, stack_params(sampling))._replace(seed_B=seeds_QA.reshape(-1))
        limits = of_all([row.max_new_tokens for row in sampling]).astype(np.int32)
        self._wanted = Wanted(limits, of_all([stop_ids(vocabulary, row) for row in sampling]), drawn)
        self.texts = [Text() for _ in range(seeds_QA.size)]
        self.left = [group] * len(requests)
        rows = tuple(self.groups.layout)
        self._state: State = programs.empty_groups(rows=rows, slots=slots, beside=committed(self._params))
        self._calls: list[_Asked] = []

    @functools.cached_property
    def _decode_params(self) -> Params:
        """Made when it is first asked for, while the device reads prompts."""
        return self._params if self._apart is None else self._apart(self._params)

    def keep(self, prompt: int, answers: Sequence[tuple[np.ndarray, np.ndarray, bool]]) -> None:
        """Before anything is arranged: tokens, log-probabilities and whether it has come to a stop, of every answer to
        a prompt. They may be of other parameters; answers that have not ended go on."""
        numbers = range(prompt * self.groups.group, (prompt + 1) * self.groups.group)
        for answer, (tokens, logprobs, finished) in zip(numbers, answers, strict=True):
            count = len(tokens)
            self.texts[answer] = Text(0, count, finished, count, [tokens], [logprobs])
        self.groups.begun[prompt] = [answer for answer in numbers if not self.complete(answer)]
        self.left[prompt] = len(self.groups.begun[prompt])

    def complete(self, answer: int) -> bool:
        """Whether an answer has come to its stop or its limit."""
        text = self.texts[answer]
        return text.finished or text.count >= self._wanted.limits_B[answer]

    def arrange(self) -> bool:
        """Gives rows to answers: those that wait beside their prompt, those of prompts that are read now, and all that
        are left into fewer rows. Says whether any are left."""
        groups = self.groups
        self._join(groups.seat())
        while order := self.take():
            self.read(order)
            if groups.turns:
                self.tell()  # the others of each prompt wait with their first token
            if any(self._begun(int(groups.prompt_Q[q])) for q in order if q is not None):
                self._join(groups.seat())
        while (move := groups.move()) is not None:
            self._state = self._programs.move(self._state, *move)
            self._join(groups.seat())
        return groups.waits or len(groups.writing) > 0

    def take(self) -> list[int | None]:
        """Places with prompts that are to be read together, see `GroupSeats.take`."""
        return self.groups.take(self._ladders.together, self._slots.together)

    def read(self, order: Sequence[int | None]) -> None:
        """Reads the prompts of these places, and draws the first tokens of all answers to them."""
        groups, group = self.groups, self.groups.group
        R, T, width = len(order), self._slots.prompt, groups.layout.width
        tokens_RT, index_RT = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
        places_R, counts_R = np.zeros(R, np.int32), np.zeros(R, np.int32)
        answers, rows_B = np.full((R, group), -1, np.int32), np.full((R, group), groups.layout.rows, np.int32)
        real = [(r, q, int(groups.prompt_Q[q])) for r, q in enumerate(order) if q is not None]
        self._look([prompt for _, _, prompt in real])
        for r, q, prompt in real:
            tokens_T, index_P = self._shown(prompt)
            tokens_RT[r, : len(tokens_T)], index_RT[r, : len(index_P)] = tokens_T, index_P
            places_R[r], counts_R[r] = groups.place(q), len(tokens_T)
            if not self._begun(prompt):
                answers[r] = prompt * group + np.arange(group)
                rows_B[r, :width] = groups.rows(q)
        features_RPD = self._programs.gather(self._vision.pool_GPD, index_RT)
        part = Part(places_R, tokens_RT, np.zeros(R, np.int32), counts_R, features_RPD)
        self._state, logits_RV, routes_LRTK = self._programs.chunk(self._params, self._state, part, number=0, reach=0)
        routes_LRTK = None if routes_LRTK is None else np.asarray(routes_LRTK)
        for r, _, prompt in real:
            for text in self.texts[prompt * group :][:group]:
                text.prompt = int(counts_R[r])
                text.routes = [] if routes_LRTK is None else [routes_LRTK[:, r, : counts_R[r]]]
        picks_B, answers_B = np.repeat(np.arange(R, dtype=np.int32), group), answers.reshape(-1)
        begin = Begin(
            picks_B, rows_B.reshape(-1), counts_R[picks_B], np.zeros(R * group, np.int32), self._asked(answers_B), None
        )
        self._state, _, written = self._programs.begin(self._state, None, logits_RV, begin, best=0)
        self._calls.append(_Asked(written, answers_B))

    def write(self, piece: int) -> None:
        """Goes on with all rows: `piece` tokens at most, or until there is something to arrange."""
        groups = self.groups
        answers = groups.answer_B[groups.writing]
        # Prompts that were just read have their first tokens, though nobody has seen them yet.
        counts = np.array([max(1, self.texts[answer].count) for answer in answers], np.int32)
        left = int(np.max(self._wanted.limits_B[answers] - counts, initial=0))
        if left <= 0:
            return
        longest = int(np.max(counts))
        self._widen(longest)
        count = min(piece, left, self._state.cache.reach - longest + 1)
        self._state, written = self.decode(self._state, groups.answer_B >= 0, count, groups.few())
        self._calls.append(_Asked(written, groups.answer_B.copy()))

    def decode(self, state: State, live_B: np.ndarray, count: int, few: int) -> tuple[State, Written]:
        """See `Programs.decode`."""
        counts = np.int32(count), np.int32(few)
        slots = state.cache.reach
        state, _, written = self._programs.decode(
            self._decode_params, state, None, live_B, *counts, reach=slots, best=0
        )
        return state, written

    def tell(self) -> None:
        """Takes notes of what the programs wrote: rows whose answers have ended are free."""
        groups, calls, self._calls = self.groups, self._calls, []
        for (tokens_BW, logprobs_BW, *_, routes_LBWK), answers_B in jax.device_get([tuple(call) for call in calls]):
            counts_B = (tokens_BW >= 0).sum(axis=1)
            for b in np.flatnonzero((answers_B >= 0) & (counts_B > 0)).tolist():
                answer, n = int(answers_B[b]), int(counts_B[b])
                text = self.texts[answer]
                text.tokens.append(tokens_BW[b, :n].copy())
                text.logprobs.append(logprobs_BW[b, :n].copy())
                if routes_LBWK is not None:
                    text.routes.append(routes_LBWK[:, b, :n].copy())
                text.count += n
                text.finished = int(tokens_BW[b, n - 1]) in self._stops[answer // groups.group]
                if self.complete(answer):
                    groups.end(answer)
                    self.left[answer // groups.group] -= 1
                elif text.count == 1:
                    groups.queue(answer)

    def warm_up(self) -> None:
        """Compiles all that these requests need, however their answers end, but for what `keep` takes."""
        groups, first, most = self.groups, None, 0
        while order := self.take():
            first, most = first or order, max(most, len(order))
            self.read(order)
        for size in self._ladders.together:
            if size < most:
                self.read([first[0], *[None] * (size - 1)])
        layout, every = groups.layout, [self._state]
        while (slots := every[-1].cache.reach) < self._slots.longest:
            every.append(self._programs.grow(every[-1], slots=min(2 * slots, self._slots.longest)))
        while True:
            nobody_B = np.zeros(layout.rows, np.int32)
            every = [self.decode(state, nobody_B > 0, 0, 0)[0] for state in every]
            for state in every[:-1]:
                self._programs.grow(state, slots=min(2 * state.cache.reach, self._slots.longest))
            if groups.turns:
                every = [self._programs.join(state, self._joining(nobody_B - 1)) for state in every]
            if (layout := layout.smaller(self._ladders.rows)) is None:
                return
            every = [self._programs.move(state, *layout.same()) for state in every]

    def _begun(self, prompt: int) -> bool:
        return self.texts[prompt * self.groups.group].kept > 0

    def _widen(self, count: int) -> None:
        """Gives answers slots for so many tokens."""
        while count > (slots := self._state.cache.reach):
            self._state = self._programs.grow(self._state, slots=min(2 * slots, self._slots.longest))

    def _join(self, rows: list[int]) -> None:
        if rows:
            self._resume([row for row in rows if self.texts[self.groups.answer_B[row]].count > 1])
            answers_B = np.full(self.groups.layout.rows, -1, np.int32)
            answers_B[rows] = self.groups.answer_B[rows]
            self._state = self._programs.join(self._state, self._joining(answers_B))

    def _joining(self, answers_B: np.ndarray) -> Joining:
        """Answers that have their first tokens, each in its row; -1 where none is."""
        tokens_B, lengths_B, steps_B = (np.zeros_like(answers_B) for _ in range(3))
        for row in np.flatnonzero(answers_B >= 0):
            text = self.texts[answers_B[row]]
            tokens_B[row], steps_B[row] = text.tokens[-1][-1], text.count
            lengths_B[row] = text.prompt + text.count - 1
        return Joining(answers_B >= 0, tokens_B, lengths_B, steps_B, self._asked(answers_B))

    def _resume(self, rows: list[int]) -> None:
        """Reads again what answers have written, into these rows: one of every device at a time."""
        if not rows:
            return
        groups, texts = self.groups, {row: self.texts[self.groups.answer_B[row]] for row in rows}
        self._widen(max(text.count for text in texts.values()))
        each = groups.layout.rows // groups.shards
        own = [[row for row in rows if row // each == shard] for shard in range(groups.shards)]
        for together in itertools.zip_longest(*own):
            real = [(d, row) for d, row in enumerate(together) if row is not None]
            longest = max(texts[row].count - 1 for _, row in real)
            tokens_BT = np.zeros((len(together), max(_SHORTEST, 1 << (longest - 1).bit_length())), np.int32)
            places_B, starts_B, counts_B, rows_B = np.zeros((4, len(together)), np.int32)
            for d, row in real:
                text = texts[row]
                counts_B[d], starts_B[d], rows_B[d] = text.count - 1, text.prompt, row % each
                tokens_BT[d, : counts_B[d]] = np.concatenate(text.tokens)[:-1]
                places_B[d] = groups.place(row // groups.layout.width)
            part = Part(places_B, tokens_BT, starts_B, counts_B, None)
            self._state, routes_LBTK = self._programs.resume(
                self._params, self._state, part, rows_B, reach=self._slots.prompt
            )
            if routes_LBTK is not None:
                routes_LBTK = np.asarray(routes_LBTK)
                for d, row in real:
                    texts[row].routes.append(routes_LBTK[:, d, : counts_B[d]])

    def _asked(self, answers_B: np.ndarray) -> Wanted:
        return jax.tree.map(lambda each: each[np.maximum(answers_B, 0)], self._wanted)

    def _look(self, prompts: Sequence[int]) -> None:
        """Encodes the tiles of prompts that are to be read."""
        tiles = {
            name: tile_HWC
            for prompt in prompts
            for name, tile_HWC in zip(self._names[prompt], self._requests[prompt].tiles_GHWC, strict=True)
        }
        self._vision.pin(0, list(tiles))
        if missing := self._vision.missing(list(tiles)):
            self._vision.encode(self._params, {name: tiles[name] for name in missing})

    def _shown(self, prompt: int) -> tuple[np.ndarray, np.ndarray]:
        """A prompt's tokens, and where the features of its image tokens lie in the pool."""
        names = self._names[prompt]
        probability_G = None if self._config.flash is None else self._vision.probabilities(names)
        seen = shown(self._requests[prompt], names, probability_G, self._config)
        return seen.tokens_T, self._vision.index(names, seen.sources_T)
