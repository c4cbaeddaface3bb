"""The engine: rows join and leave, prompts arrive in parts, and every answer is what it would be alone.

A step does, in this order,

1. tiles of requests that wait go through the vision tower, few at a time while answers are being written, or requests
   bring their features;
2. requests take free rows (`Scheduler`);
3. a part of the prompts that are not read goes into the cache, `chunk` tokens at most; what a row holds already of a
   prompt's beginning, its own or another one's, is not computed again;
4. rows whose prompts are read get their first token, and all others one more, or several where nobody waits.

The host reads tokens a step later, so that the device never waits for it. All sizes come from ladders: where rows have
classes, nothing compiles after `warm_up`. What happens depends on the calls alone: processes that make the same ones
stay in step.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from internvl_jax import interrupts, sharding
from internvl_jax.errors import InputError
from internvl_jax.inference.engine import requests as asked
from internvl_jax.inference.engine.adapter_table import AdapterTable
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.engine.drafts import Draft, Job
from internvl_jax.inference.engine.memory import memory_free
from internvl_jax.inference.engine.paged_runner import PagedRunner
from internvl_jax.inference.engine.paged_scheduler import PagedScheduler
from internvl_jax.inference.engine.requests import Request, Token, Vocabulary
from internvl_jax.inference.engine.row_state import Written
from internvl_jax.inference.engine.runner import Runner
from internvl_jax.inference.engine.scheduler import EngineLoad, Scheduler
from internvl_jax.inference.engine.tile_intake import TileIntake
from internvl_jax.models import LanguageHalf, LoraConfig, check_kernel
from internvl_jax.sharding import Params, flatten

# More rows at a time are no faster on a CPU; so many begin together, where fewer would take turns (2026-11).
_CPU_ROWS = (1, 4, 16, 32, 64)


class _Call(NamedTuple):
    """What a program was asked to write.

    Attributes:
      written: what it returns.
      drafts: (row of `written`, answer, how many tokens at most).
    """

    written: Written
    drafts: list[tuple[int, Draft, int]]


class Engine:
    """A model that answers many requests at a time.

    Args:
      model: the model, or its language half, which reads tiles by features that requests bring; its parameters lie on
        one device, or on the mesh of its runtime as the rules say.
      vocabulary: see `Vocabulary`.
      ladders: the sizes that programs are compiled for.
      cache_bytes: how much keys and values may take on a device; by default half of what is free there.
      apart: decode with every layer's parameters apart (see `unstack`); by default on a single CPU device.

    Attributes:
      config: the model's config.
      ladders: as the devices of the mesh can share them.
      tiles: the features that are kept.
      adapters: which ones requests may name; `put_adapter` and `drop_adapter` change it.
      prefilled: how many tokens of prompts were computed.
    """

    def __init__(
        self,
        model: LanguageHalf,
        vocabulary: Vocabulary,
        ladders: Ladders | None = None,
        cache_bytes: int | None = None,
        apart: bool | None = None,
    ):
        self.config, self.vocabulary, text = model.config, vocabulary, model.config.text
        if vocabulary.size > text.vocab:
            raise InputError(
                f"the tokenizer has {vocabulary.size} tokens, the model's table only {text.vocab}; "
                "use the tokenizer files of this model"
            )
        devices = flatten(model)["lm.norm.scale"].devices()
        platform = next(iter(devices)).platform
        self._place = model.runtime.placement
        with sharding.placed(self._place):
            shards, spread = sharding.spread("batch"), sharding.spread("batch") * sharding.spread("act_heads")
            heads = text.kv_heads * sharding.copies("act_heads", text.kv_heads)
            ladders = ladders or Ladders(rows=_CPU_ROWS if platform == "cpu" else Ladders.rows)
            self.ladders = ladders.spread(shards, sharding.spread("tiles"))
            compressed = 0 if self.config.flash is None else self.config.tokens_per_compressed_tile
            width = text.width * jnp.dtype(model.runtime.dtype).itemsize
            kept = ladders.kept_bytes // ((self.config.tokens_per_tile + compressed) * width)
            kept = max(ladders.least_tiles, min(kept, ladders.kept_tiles or kept))
            apart = (platform == "cpu" and self._place is None) if apart is None else apart
            paged = self.ladders.page is not None
            if paged and model.runtime.cache is not None:
                raise InputError(f"rows that have pages keep no {model.runtime.cache} keys and values; leave one out")
            if paged and platform == "tpu":
                check_kernel(text.head_width, text.window is None)
            runner, scheduler = (PagedRunner, PagedScheduler) if paged else (Runner, Scheduler)
            self._runner = runner(model, vocabulary, self.ladders, kept, apart)
            slot = 2 * text.layers * heads * text.head_width * self._runner.programs.cache_dtype.itemsize
            there = cache_bytes or memory_free(devices) // 2
            self._scheduler = scheduler(self.ladders, shards, there * spread // slot)
            self._runner.pages = self._scheduler.pages
            if self.ladders.classes is not None:
                needed = slot * sum(rows * slots for rows, slots in self.ladders.classes) // spread
                if cache_bytes is not None and needed > cache_bytes and not paged:
                    raise InputError(
                        f"the classes of rows take {needed:,} bytes on a device, more than {cache_bytes:,}"
                    )
                self._scheduler.make(self.ladders.classes)
                self._runner.resize(self.ladders.classes, None)
        self.tiles, self.chunk = self._runner.tiles, self.ladders.chunk
        self._intake = TileIntake(self.config, self.ladders, self.tiles, self._scheduler)
        self.adapters, self.prefilled, self._next = AdapterTable(self._runner), 0, 0
        self._calls: list[_Call] = []
        self._told: list[Token] = []  # in the step that is going on, or that was broken off

    @property
    def params(self) -> Params:
        """The model's parameters; others of the same shapes (a training's newer ones) may take their place. What was
        kept of pictures and prompts goes with them.
        """
        return self._runner.params

    @params.setter
    def params(self, params: Params) -> None:
        if self._runner.are_others(params):
            self._renew(params)

    def _renew(self, params: Params) -> None:
        self._runner.put_params(params)
        self.tiles.clear()
        self._scheduler.forget()

    @property
    def busy(self) -> bool:
        """Whether anything is left to write or to tell."""
        return bool(self._scheduler.jobs or self._calls or self._told)

    @property
    def load(self) -> EngineLoad:
        """How much there is to do."""
        return self._scheduler.load

    @property
    def longest(self) -> int:
        """Tokens that a prompt and its answer may have together, less the last one."""
        return self._scheduler.longest

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return self._runner.programs.num_compiled

    def add(self, request: Request) -> int:
        """Takes a request; returns the number that its tokens will have.

        Raises:
          InputError: a request that this model can't read, or that no row has room for.
        """
        asked.check(request, self.config, self.vocabulary)
        prompt, answer, longest = len(request.tokens_T), request.sampling.max_new_tokens, self._scheduler.longest
        if prompt + answer - 1 > longest:
            raise InputError(
                f"a prompt of {prompt} tokens and an answer of up to {answer} are more than the {longest} that a row "
                "holds; shorten the prompt or lower max_new_tokens"
            )
        job = Job(self._next, request, self._intake.names(request), self.adapters.find(request.adapter))
        self._next += 1
        stops = frozenset(request.sampling.stop_ids(self.vocabulary.stops))
        job.drafts += [Draft(job, number, sampling, stops) for number, sampling in enumerate(request.samplings)]
        self._scheduler.add(job)
        return job.id

    def put_adapter(self, name: str, lora: LoraConfig, params: Mapping[str, np.ndarray]) -> None:
        """Lets requests name an adapter, see `AdapterTable.put`; answers go on meanwhile, with what they began with."""
        with sharding.placed(self._place):
            self.adapters.put(name, lora, params, [job.adapter for job in self._scheduler.jobs.values()])

    def drop_adapter(self, name: str) -> None:
        """See `AdapterTable.drop`."""
        self.adapters.drop(name)

    def drop(self, id: int, answer: int | None = None) -> None:
        """Ends a request, or one of its answers: nothing more of it is told, and its rows are free. It may have ended
        already.
        """
        self._told = [token for token in self._told if token.id != id or answer not in (None, token.answer)]
        job = self._scheduler.jobs.get(id)
        for draft in job.drafts if job is not None else ():
            if answer in (None, draft.number):
                self._end(draft)

    def step(self, most: int | None = None) -> list[Token]:
        """Goes on with all requests; returns the tokens that became known, each answer's in their order.

        Args:
          most: how many tokens a row may get in this step; by default `Ladders.piece`.
        """
        # A program takes over the state that it is called with: broken off there, nothing would be left of it.
        with interrupts.held():
            whole = False
            try:
                self._step(self.ladders.piece if most is None else most)
                whole = True
            finally:
                if not whole:
                    self._begin_again()
        told, self._told = self._told, []  # after Ctrl-C the next step tells them
        return told

    def _step(self, most: int) -> None:
        if self._held() or self._scheduler.short():
            self._collect()
        with sharding.placed(self._place):
            self._scheduler.put_back()
            self._intake.look(self.params)
            if (size := self._scheduler.size()) is not None:
                self._resize(*size)
            self._scheduler.seat()
            calls = self._read()
            if self._held():  # what may follow depends on first tokens too
                self._calls, calls = [*self._calls, *calls], []
                self._collect()
            calls += self._decode(most)
        self._collect()
        self._calls = calls

    def _begin_again(self) -> None:
        """After a program failed: what it took over is lost, so prompts and what is known of answers are read again."""
        self._calls = []
        self._scheduler.begin_again()
        with sharding.placed(self._place):
            self.tiles.renew()
            if self.ladders.classes is not None:
                self._runner.resize(self.ladders.classes, None)
            else:
                self._scheduler.make(())

    def run(self, requests: Sequence[Request]) -> list[list[list[int]]]:
        """Tokens of all answers to all requests, stop tokens included. Other requests go on beside them, and the next
        step tells their tokens.
        """
        found: dict[int, list[list[int]]] = {}
        others: list[Token] = []
        left = 0  # answers that go on
        try:
            for request in requests:
                answers: list[list[int]] = [[] for _ in request.seeds or (0,)]
                found[self.add(request)] = answers
                left += len(answers)
            while left or (self.busy and not self._scheduler.jobs):
                with interrupts.held():
                    for token in self.step():
                        if token.id in found:
                            found[token.id][token.answer].append(token.token)
                            left -= token.end is not None
                        else:
                            others.append(token)
        finally:
            self._told = [*others, *self._told]
            if left:  # broken off
                for id in found:
                    self.drop(id)
        return list(found.values())

    def route(self, tiles_GHWC: np.ndarray) -> np.ndarray:
        """float32 `[G]`: what a Flash model's router makes of tiles. May they be compressed?"""
        with sharding.placed(self._place):
            return self._intake.route(self.params, self._next, tiles_GHWC)

    def warm_up(self) -> int:
        """Compiles all that rows of classes need; returns how many programs there are.

        Raises:
          InputError: the rows have no classes.
        """
        if self.ladders.classes is None:
            raise InputError("an engine whose rows come and go can't be warmed up; give its ladders classes")
        self._intake.pixels_alone = True
        with sharding.placed(self._place):
            return self._runner.warm_up(self.ladders.classes, self._scheduler.shards)

    def _resize(self, rows: int, slots: int) -> None:
        if any(_rich(draft) for draft in self._scheduler.writing):
            return  # what was counted of their tokens stays where it is
        rows_B = self._scheduler.resize(rows, slots) if self._scheduler.rows else None
        if rows_B is None:
            self._scheduler.make(((rows, slots),))
        self._runner.resize(((rows, slots),), rows_B)

    def _read(self) -> list[_Call]:
        """Prompts into the cache, and the first tokens of those that are complete with it: a part of them, or all where
        nobody waits for each token."""
        calls: list[_Call] = []
        while True:
            for draft, source in self._scheduler.starts():
                draft.cached = draft.filled
                if source is not None:
                    self._runner.copy(source, draft.row, draft.filled, self._scheduler.shards)
            order = self._scheduler.parts(self.chunk)
            if not order:
                return calls
            calls += self._read_part(order)
            if self.ladders.classes is not None:
                return calls

    def _read_part(self, order: list[Draft | None]) -> list[_Call]:
        drafts = [draft for draft in order if draft is not None]
        self.prefilled -= sum(draft.filled for draft in drafts)
        logits_RV = self._runner.read(order, self._scheduler.width(drafts[0], self.chunk))
        self.prefilled += sum(draft.filled for draft in drafts)
        complete = [(r, draft) for r, draft in enumerate(order) if draft and draft.filled == draft.length]
        if not complete:
            return []
        written = self._runner.begin(logits_RV, complete, any(_rich(draft) for _, draft in complete))
        for _, draft in complete:
            draft.reading, draft.flying = False, 1
            if not any(other.reading for other in draft.job.drafts):
                self.tiles.unpin(draft.job.id)
        return [_Call(written, [(b, draft, 1) for b, (_, draft) in enumerate(complete)])]

    def _decode(self, most: int) -> list[_Call]:
        """Tokens of all rows that are answering."""
        scheduler, rooms = self._scheduler, {}
        for draft in scheduler.writing:
            room = scheduler.room(draft)
            if room <= 0 and draft.left > 0:
                draft.leaving = True
            if not draft.leaving:
                rooms[draft] = room
        going = [draft for draft in rooms if draft.left > 0]
        if not going:
            return []
        # Back as soon as a row is free that somebody waits for, or as fewer rows would do.
        count = min(most, max(draft.left for draft in going), *(rooms[draft] for draft in going))
        count = 1 if scheduler.reading or self._held() else count
        few = len(going) - self._enough if scheduler.waiting else scheduler.fewer(len(going))
        reach = scheduler.reach(max(draft.length + draft.flying for draft in rooms) + count)
        written = self._runner.decode(list(rooms), count, few, reach, any(map(_rich, rooms)))
        for draft in rooms:
            draft.flying += count
        return [_Call(written, [(draft.row.index, draft, count) for draft in rooms])]

    @property
    def _enough(self) -> int:
        """How many rows must be free until waiting requests take them: some at a time, where nobody waits for each."""
        return 1 if self.ladders.classes is not None else max(1, len(self._scheduler.rows) // 8)

    def _held(self) -> bool:
        """Whether an answer must be read before more of it is written."""
        return any(draft.job.request.allow is not None for draft in self._scheduler.writing)

    def _collect(self) -> None:
        """Reads what the programs of the last step wrote."""
        calls, self._calls = self._calls, []
        for call in calls:
            self._tell(call)

    def _tell(self, call: _Call) -> None:
        tokens_BW, logprobs_BW, best_ids, best_logprobs = map(np.asarray, call.written[:4])
        for b, draft, count in call.drafts:
            draft.flying -= count
            if draft.ended:
                continue
            for w, (token, logprob) in enumerate(zip(tokens_BW[b].tolist(), logprobs_BW[b].tolist(), strict=True)):
                if token < 0:
                    break
                draft.tokens.append(token)
                number, n, end = len(draft.tokens), draft.sampling.logprobs, None
                if token in draft.stops:
                    end = "stop"
                elif number >= draft.limit:
                    end = "length"
                best = tuple(zip(best_ids[b, w, :n].tolist(), best_logprobs[b, w, :n].tolist(), strict=True))
                self._told.append(
                    Token(
                        *(draft.job.id, draft.number, token, logprob, number, end, draft.job.seen, best, draft.cached)
                    )
                )
                if end is not None:
                    self._end(draft)

    def _end(self, draft: Draft) -> None:
        if not draft.ended and self._scheduler.end(draft):
            self.tiles.unpin(draft.job.id)


def _rich(draft: Draft) -> bool:
    """Whether an answer needs the larger one of the two programs that there are for everything."""
    return draft.job.request.shaped or draft.sampling.logprobs > 0
