"""The engine: rows join and leave, prompts arrive in parts, and every answer is what it would be alone.

A step does, in this order,

1. tiles of requests that wait go through the vision tower, few at a time while answers are being written;
2. requests take free rows, in the order of priority and arrival, as long as a row has the slots that they may need;
3. a part of the prompts that are not read goes into the cache, `chunk` tokens at most; what a row holds already of a
   prompt's beginning, its own or another one's, is not computed again;
4. rows whose prompts are read get their first token, and all others one more, or several where nobody waits.

The host reads tokens a step later, so that the device never waits for it. All sizes come from ladders: after `warm_up`
nothing compiles. What happens depends on the calls alone: processes that make the same ones stay in step.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.inference.engine import requests as asked
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.programs import Programs, State, Written
from internvl_jax.inference.engine.requests import Prompt, Request, Vocabulary
from internvl_jax.inference.engine.rows import Answer, Group, Row, best_source, make_rows
from internvl_jax.inference.engine.sampling import SamplingParams, Shaping
from internvl_jax.inference.engine.vision import VisionCache, digest
from internvl_jax.models import InternVL, unstack, unstack_params
from internvl_jax.sharding import Params, flatten

_CHUNK, _PIECE = 512, 16
_TOGETHER = 2048  # tokens of prompts that a step reads while no row is answering
_LONG = 64  # tokens that an answer must still get, or no program is made for fewer rows
_BEST = 20  # the most best tokens that are noted
_NEAR = 512  # slots that are read in any case


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
      id: the request.
      answer: which of its answers.
      token: the token's id; stop tokens are told too.
      logprob: its log-probability at temperature 1, over the whole table.
      number: how many tokens the answer has with it.
      end: why the answer ends with it: 'stop' or 'length'; None if it goes on.
      prompt: what the model read before.
      best: (id, log-probability) of the best tokens in its place, as many as the request asks for.
    """

    id: int
    answer: int
    token: int
    logprob: float
    number: int
    end: str | None
    prompt: Prompt
    best: tuple[tuple[int, float], ...] = ()


class _Call(NamedTuple):
    """What a program was asked to write.

    Attributes:
      written: what it returns.
      answers: (row of `written`, answer, how many tokens at most).
    """

    written: Written
    answers: list[tuple[int, Answer, int]]


class Engine:
    """A model that answers many requests at a time.

    Args:
      model: the model; its parameters lie on one device, or on the mesh of its runtime as the rules say.
      vocabulary: see `Vocabulary`.
      ladders: the sizes that programs are compiled for.
      classes: (rows, slots) of every class of rows, for a server: all memory is taken at once, and nothing is compiled
        later. Without them the engine grows and shrinks with what is asked.
      cache_bytes: how much keys and values may take on a device; by default half of what is free there.
      vision_bytes: how much the features of pictures may take that are kept.
      chunk: tokens of prompts that a step reads, at most.
      piece: tokens that a step writes for a row, at most.
      apart: decode with every layer's parameters apart (see `unstack`); by default on a single CPU device.
    """

    def __init__(
        self,
        model: InternVL,
        vocabulary: Vocabulary,
        ladders: Ladders | None = None,
        classes: Sequence[tuple[int, int]] | None = None,
        cache_bytes: int | None = None,
        vision_bytes: int = 1 << 30,
        chunk: int = _CHUNK,
        piece: int = _PIECE,
        apart: bool | None = None,
    ):
        self.config, self.vocabulary, self.chunk, self.piece = model.config, vocabulary, chunk, piece
        if vocabulary.size > self.config.text.vocab:
            raise InputError(
                f"the tokenizer has {vocabulary.size} tokens, the model's table only {self.config.text.vocab}; "
                "use the tokenizer files of this model"
            )
        params = flatten(model)
        device = next(iter(next(iter(params.values())).devices()))
        mesh, rules = model.runtime.mesh, model.runtime.rules
        single = mesh is None or mesh.size == 1
        self._apart = (device.platform == "cpu" and single) if apart is None else apart
        self._mesh, self._rules = (None, None) if single else (mesh, rules)
        graphdef, dtype = nnx.split(model, nnx.Param)[0], model.runtime.dtype
        self.programs = Programs(
            self.config,
            graphdef,
            unstack(model) if self._apart else graphdef,
            vocabulary.size,
            vocabulary.banned,
            # XLA on CPU converts a whole bfloat16 cache at every write (2026-11, jax 0.10.2).
            jnp.float32 if device.platform == "cpu" else dtype,
            piece,
        )
        ladders = ladders or Ladders()
        self._shards = self._spread("batch")
        tiles = self._spread("tiles")
        self.ladders = dataclasses.replace(
            ladders,
            rows=_divisible(ladders.rows, self._shards),
            prompts=(*(size for size in ladders.prompts if size < chunk), chunk),
            together=_divisible(ladders.together, self._shards),
            tiles=_divisible(ladders.tiles, tiles),
        )
        text = self.config.text
        tile_bytes = self.config.tokens_per_tile * text.width * jnp.dtype(dtype).itemsize
        capacity = max(1, vision_bytes // tile_bytes)
        self.vision = VisionCache(self.config, dtype, self.programs, self.ladders.tiles, capacity)
        self._params = self._decode_params = params
        self.params = params
        self._groups: dict[int, Group] = {}
        self._waiting: list[Group] = []
        self._next = 0
        self._calls: list[_Call] = []
        self._state: State | None = None
        self._shaping: Shaping | None = None
        self._rows: list[Row] = []
        self._reading: list[Answer] = []
        self._fixed = classes is not None
        self._sizes: set[tuple[int, int]] = set()  # (rows, slots) that there are programs for
        token_bytes = 2 * text.layers * text.kv_heads * text.head_width * self.programs.cache_dtype.itemsize
        spread = self._spread("batch") * self._spread("kv_heads")
        self._tokens = (cache_bytes or _free_bytes(device) // 2) * spread // token_bytes
        self.prefilled = 0  # tokens of prompts that were computed
        if classes is not None:
            self._make(tuple(classes))

    @property
    def params(self) -> Params:
        """The model's parameters; others of the same shapes (a training's newer ones) may take their place. What was
        kept of pictures and prompts goes with them.
        """
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        if params.keys() == self._params.keys() and all(params[path] is self._params[path] for path in params):
            if self._decode_params is not self._params or not self._apart:
                return
        else:
            self.vision.clear()
            for row in self._rows:
                row.held_T = row.held_T[:0]
        self._params = params
        self._decode_params = unstack_params(params) if self._apart else params

    @property
    def busy(self) -> bool:
        """Whether anything is left to write or to tell."""
        return bool(self._groups or self._calls)

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return self.programs.num_compiled

    def add(self, request: Request) -> int:
        """Takes a request; returns the number that its tokens will have.

        Raises:
          InputError: a request that this model can't read, or that no row has room for.
        """
        asked.check(request, self.config, self.vocabulary)
        needed = len(request.tokens_T) + request.sampling.max_new_tokens - 1
        longest = max(row.slots for row in self._rows) if self._fixed else self.ladders.slots[-1]
        if needed > longest:
            raise InputError(
                f"a prompt of {len(request.tokens_T)} tokens and an answer of up to {request.sampling.max_new_tokens} "
                f"are more than the {longest} that a row holds; shorten the prompt or lower max_new_tokens"
            )
        names = [digest(tile_HWC) for tile_HWC in request.tiles_GHWC]
        if len(set(names)) > self.vision.capacity:
            raise InputError(
                f"the request has {len(set(names))} tiles, more than the {self.vision.capacity} that are kept at a "
                "time; show fewer pictures or smaller ones"
            )
        group = Group(self._next, request, names)
        self._next += 1
        seeds = request.seeds or (request.sampling.seed,)
        for number, seed in enumerate(seeds):
            own = dataclasses.replace(request.sampling, seed=seed)
            group.answers.append(Answer(group, number, own, frozenset(asked.stop_ids(self.vocabulary, own).tolist())))
        self._groups[group.id] = group
        self._waiting.append(group)
        self._waiting.sort(key=lambda group: group.order)
        return group.id

    def drop(self, id: int, answer: int | None = None) -> None:
        """Ends a request, or one of its answers: nothing more of it is told, and its rows are free. It may have ended
        already.
        """
        for each in self._groups[id].answers if id in self._groups else ():
            if answer in (None, each.number):
                self._end(each)

    def step(self, most: int | None = None) -> list[Token]:
        """Goes on with all requests; returns the tokens that became known, each answer's in their order.

        Args:
          most: how many tokens a row may get in this step; by default `piece`.
        """
        told = self._collect() if self._held() else []
        with sharding.use(self._mesh, self._rules):
            self._look()
            self._fit()
            self._seat()
            calls = [*self._read(), *self._decode(self.piece if most is None else most)]
        told += self._collect()
        self._calls = calls
        return told

    def warm_up(self) -> int:
        """Compiles all that an engine of fixed classes needs; returns how many programs there are."""
        with sharding.use(self._mesh, self._rules):
            self.vision.warm_up(self.params)
            for number, slots in enumerate({row.number: row.slots for row in self._rows}.values()):
                for R, T in itertools.product(self.ladders.together, self.ladders.prompts):
                    if T > slots:
                        continue
                    none_R = np.zeros(R, np.int32)
                    features_RPD = self.programs.gather(self.vision.pool_GPD, np.zeros((R, T), np.int32))
                    for reach in (0, *_reaches(slots)):
                        self._state, logits_RV = self.programs.chunk(
                            self.params,
                            self._state,
                            none_R,
                            np.zeros((R, T), np.int32),
                            none_R,
                            none_R,
                            features_RPD,
                            number=number,
                            reach=reach,
                        )
                        if (number, T, reach) == (0, self.ladders.prompts[0], 0):
                            self._warm_begin(logits_RV, R)
            self._warm_copies()
            nobody_B = np.zeros(len(self._rows), bool)
            best = min(_BEST, self.config.text.vocab)
            for reach in _reaches(max(row.slots for row in self._rows)):
                for shaping, count in ((None, 0), (self._shaping, best)):
                    if shaping is not None:
                        shaping = shaping._replace(allowed_bits=self._allowed([], [], len(self._rows)))
                    self._state, shaping, _ = self.programs.decode(
                        self._decode_params,
                        self._state,
                        shaping,
                        nobody_B,
                        np.int32(0),
                        np.int32(0),
                        reach=reach,
                        best=count,
                    )
                    self._shaping = self._shaping if shaping is None else shaping
        return self.num_compiled

    def _warm_begin(self, logits_RV: jax.Array, size: int) -> None:
        self._begin(logits_RV, [], size)
        self._shaping = self.programs.unshaped(rows=len(self._rows)) if self._shaping is None else self._shaping
        nobody_B, sampling = np.zeros(size, np.int32), [SamplingParams()] * size
        wanted = asked.stack_wanted(self.vocabulary, nobody_B, sampling)
        allowed, vocab = self._allowed([], [], size), self.config.text.vocab
        shaped = asked.shape_rows([[]] * size, [[]] * size, sampling, wanted.stops_BZ, allowed, vocab)
        self._state, self._shaping, _ = self.programs.begin(
            self._state,
            self._shaping,
            logits_RV,
            nobody_B,
            nobody_B + len(self._rows),
            nobody_B,
            nobody_B,
            wanted,
            shaped,
            best=min(_BEST, vocab),
        )

    def _warm_copies(self) -> None:
        nobody = np.zeros(self._shards, np.int32)
        classes = {row.number: row.slots for row in self._rows}
        for (source, has), (target, room) in itertools.product(classes.items(), repeat=2):
            for reach in {min(reach, room) for reach in _reaches(has)}:
                self._state = self.programs.copy(
                    self._state, nobody, nobody, nobody > 0, source=source, target=target, reach=reach
                )

    def run(self, requests: Sequence[Request]) -> list[list[list[int]]]:
        """Tokens of all answers to all requests, stop tokens included."""
        ids = [self.add(request) for request in requests]
        found = {id: [[] for _ in self._groups[id].answers] for id in ids}
        while self.busy:
            for token in self.step():
                found[token.id][token.answer].append(token.token)
        return [found[id] for id in ids]

    def route(self, tiles_GHWC: np.ndarray) -> np.ndarray:
        """float32 `[G]`: what a Flash model's router makes of tiles. May they be compressed?"""
        names = [digest(tile_HWC) for tile_HWC in tiles_GHWC]
        missing = set(self.vision.missing(names))
        tiles = {name: tile for name, tile in zip(names, tiles_GHWC, strict=True) if name in missing}
        with sharding.use(self._mesh, self._rules):
            self.vision.encode(self.params, tiles)
        return self.vision.probabilities(names)

    def _spread(self, axis: str) -> int:
        """Over how many devices a logical axis is spread."""
        if self._mesh is None:
            return 1
        return math.prod(self._mesh.shape[name] for name in self._rules.parts((axis,))[0])

    def _make(self, classes: tuple[tuple[int, int], ...]) -> None:
        with sharding.use(self._mesh, self._rules):
            self._state = self.programs.empty(classes=classes)
        self._rows = make_rows(classes, self._shards)

    def _look(self) -> None:
        """Encodes tiles of requests that wait, in their order; a few only while answers are being written."""
        writing = any(row.answer is not None and not row.answer.reading for row in self._rows)
        budget = self.ladders.tiles[0 if writing else -1]
        looked, tiles = [], {}
        for group in self._waiting[: len(self._rows) or self.ladders.rows[-1]]:
            if group.prompt is not None:
                continue
            missing = [name for name in self.vision.missing(group.names) if name not in tiles]
            if missing and self.vision.pinned and self.vision.pinned + len(missing) > self.vision.capacity:
                break
            images = dict(zip(group.names, group.request.tiles_GHWC, strict=True))
            tiles |= {name: images[name] for name in missing[: budget - len(tiles)]}
            self.vision.pin(group.id, group.names)
            looked.append(group)
            if len(tiles) >= budget:
                break
        if tiles:
            self.vision.encode(self.params, tiles)
        for group in looked:
            if not self.vision.missing(group.names):
                probability_G = None if self.config.flash is None else self.vision.probabilities(group.names)
                group.prompt = asked.shown(group.request, group.names, probability_G, self.config)

    def _fit(self) -> None:
        """Where rows are not fixed: as many, and as long ones, as what is asked needs."""
        if self._fixed:
            return
        ready = [group for group in self._waiting if group.prompt is not None]
        waiting = [answer for group in ready for answer in group.answers if answer.row is None and not answer.ended]
        busy = [row for row in self._rows if row.answer is not None]
        if not waiting and (self._waiting or not busy):
            return
        here = (len(self._rows), self._rows[0].slots) if self._rows else (0, 0)
        needed = [_needed(answer) for answer in waiting] + [_needed(row.answer) for row in busy]
        slots = fit("tokens of prompt and answer", max(needed), self.ladders.slots)
        most = [rows for rows in self.ladders.rows if rows == self.ladders.rows[0] or rows * slots <= self._tokens]
        rows = min(fit("rows", min(len(needed), most[-1]), self.ladders.rows), most[-1])
        if waiting:
            # Nothing is taken from the rows that are there, unless memory is short.
            slots = max(slots, here[1])
            rows = max(rows, here[0]) if max(rows, here[0]) * slots <= self._tokens else rows
            if (rows, slots) == here or len(busy) > rows:
                return
        elif rows >= here[0] or not self._worth(rows, here, busy):
            return
        else:
            slots = here[1]
        self._resize(rows, slots)

    def _worth(self, rows: int, here: tuple[int, int], busy: list[Row]) -> bool:
        """Whether going on with fewer rows is worth a program for them."""
        left = max(row.answer.limit - len(row.answer.tokens) for row in busy)
        return (rows, here[1]) in self._sizes or left >= _LONG

    def _resize(self, rows: int, slots: int) -> None:
        self._sizes.add((rows, slots))
        if self._state is None:
            self._make(((rows, slots),))
            return
        if self._shaping is not None and any(row.answer is not None and self._rich(row.answer) for row in self._rows):
            return  # counts of tokens stay where they are
        self._shaping = None
        kept = sorted(self._rows, key=lambda row: (row.answer is None, -len(row.held_T)))[:rows]
        index_B = np.array([row.index for row in kept] + [len(self._rows)] * (rows - len(kept)), np.int32)
        self._state = self.programs.resize(self._state, index_B, slots=slots)
        self._rows = make_rows(((rows, slots),), self._shards)
        for row, old in zip(self._rows, kept, strict=False):
            row.answer, row.held_T = old.answer, old.held_T[:slots]
            if row.answer is not None:
                row.answer.row = row

    def _seat(self) -> None:
        """Gives rows to answers that wait."""
        free = [row for row in self._rows if row.answer is None]
        blocked = math.inf  # a request that finds no row keeps those that it could take from all that come after it
        for group in self._waiting:
            if not free or group.prompt is None:
                break
            for answer in group.answers:
                if answer.row is not None or answer.ended:
                    continue
                fitting = [row for row in free if _needed(answer) <= row.slots < blocked]
                if not fitting:
                    blocked = min(blocked, _needed(answer))
                    break
                least = min(row.slots for row in fitting)
                keys_T = answer.text_T
                fitting = [row for row in fitting if row.slots == least]
                row = max(fitting, key=lambda row: (row.shared(keys_T), -len(row.held_T)))
                free.remove(row)
                row.answer, answer.row, answer.reading, answer.filled = answer, row, True, None
                self._reading.append(answer)
        self._waiting = [group for group in self._waiting if any(_waits(answer) for answer in group.answers)]

    def _read(self) -> list[_Call]:
        """A part of the prompts into the cache, and the first tokens of those that are complete with it."""
        self._reading = [answer for answer in self._reading if not answer.ended]
        parts = self._parts()
        if not parts:
            return []
        first = parts[0]
        number, fresh = first.row.number, first.filled == 0
        T = self._width(first)
        R = fit("rows of a chunk", self._each(parts), self.ladders.together)
        order: list[Answer | None] = []
        for shard in range(self._shards):
            own = [answer for answer in parts if answer.row.shard == shard]
            order += own + [None] * (R // self._shards - len(own))
        tokens_RT, sources = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
        starts_R, counts_R, rows_R = (np.zeros(R, np.int32) for _ in range(3))
        for r, answer in enumerate(order):
            if answer is None:
                continue
            start = min(answer.filled, answer.row.slots - T)
            text_T = answer.written_T[start : start + T]
            starts_R[r], counts_R[r], rows_R[r] = start, len(text_T), answer.row.place
            tokens_RT[r, : len(text_T)] = text_T
            group = answer.group
            index_P = self.vision.index(group.names, group.prompt.sources_T[start : start + len(text_T)])
            sources[r, : len(index_P)] = index_P
            answer.filled = start + len(text_T)
            answer.row.held_T = answer.text_T[: answer.filled]
        self.prefilled += int(counts_R.sum())
        reach = 0 if fresh else _reach(int((starts_R + T).max()), first.row.slots)
        features_RPD = self.programs.gather(self.vision.pool_GPD, sources)
        self._state, logits_RV = self.programs.chunk(
            self.params, self._state, rows_R, tokens_RT, starts_R, counts_R, features_RPD, number=number, reach=reach
        )
        complete = [(r, answer) for r, answer in enumerate(order) if answer and answer.filled == answer.length]
        return [self._begin(logits_RV, complete, R)] if complete else []

    def _parts(self) -> list[Answer]:
        """Answers whose prompts are read on in this step: of one class, all from the start or none."""
        parts: list[Answer] = []
        writing = any(row.answer is not None and not row.answer.reading for row in self._rows)
        for answer in self._reading:
            if answer.filled is None and not self._start(answer):
                continue
            if parts and (
                answer.row.number != parts[0].row.number
                or (answer.filled == 0) != (parts[0].filled == 0)
                or self._width(answer) > self._width(parts[0])
            ):
                continue
            parts.append(answer)
            size = self._width(parts[0])
            room = self.chunk if writing else max(self.chunk, _TOGETHER)
            if (self._each(parts) + self._shards) * size > room or self._each(parts) >= self.ladders.together[-1]:
                break
        return parts

    def _each(self, parts: Sequence[Answer]) -> int:
        """How many rows a chunk needs, of every device equally many."""
        return self._shards * max(sum(answer.row.shard == shard for answer in parts) for shard in range(self._shards))

    def _width(self, answer: Answer) -> int:
        """How many tokens of a prompt are read at once, padding included."""
        T = fit("prompt tokens", min(self.chunk, answer.length - answer.filled), self.ladders.prompts)
        room = answer.row.slots - answer.filled
        return max([size for size in self.ladders.prompts if size <= min(T, room)], default=self.ladders.prompts[0])

    def _start(self, answer: Answer) -> bool:
        """Takes over what a row holds of the prompt already; False while another answer to it is being read."""
        if any(
            other.reading and other.row is not None and other.number < answer.number for other in answer.group.answers
        ):
            return False
        keys_T, row = answer.text_T, answer.row
        answer.filled = row.shared(keys_T)
        count, source = next(best_source([other for other in self._rows if other.shard == row.shard], keys_T), (0, row))
        if count > answer.filled:
            answer.filled = count
            reach = min(_reach(count, source.slots), row.slots)
            self._state = self.programs.copy(
                self._state,
                *self._places(source, row),
                source=source.number,
                target=row.number,
                reach=reach,
            )
        row.held_T = keys_T[: answer.filled]
        return True

    def _begin(self, logits_RV: jax.Array, complete: list[tuple[int, Answer]], size: int) -> _Call:
        """The first tokens of answers, each with the row of the logits that follow its prompt."""
        answers = [answer for _, answer in complete]
        padding = size - len(answers)
        picks_B = np.array([r for r, _ in complete] + [0] * padding, np.int32)
        rows_B = np.array([answer.row.index for answer in answers] + [len(self._rows)] * padding, np.int32)
        lengths_B = np.array([answer.length for answer in answers] + [0] * padding, np.int32)
        steps_B = np.array([len(answer.tokens) for answer in answers] + [0] * padding, np.int32)
        sampling = [answer.sampling for answer in answers] + [SamplingParams()] * padding
        limits = [answer.limit for answer in answers] + [1] * padding
        wanted = asked.stack_wanted(self.vocabulary, limits, sampling)
        shaping, shaped, best = self._shape(answers), None, self._best(answers)
        if shaping is not None:
            prompts = [answer.group.prompt.tokens_T for answer in answers] + [[]] * padding
            tokens = [answer.tokens for answer in answers] + [[]] * padding
            allowed = self._allowed(answers, range(len(answers)), size)
            shaped = asked.shape_rows(prompts, tokens, sampling, wanted.stops_BZ, allowed, self.config.text.vocab)
        self._state, shaping, written = self.programs.begin(
            self._state, shaping, logits_RV, picks_B, rows_B, lengths_B, steps_B, wanted, shaped, best=best
        )
        self._shaping = self._shaping if shaping is None else shaping
        for answer in answers:
            answer.reading, answer.flying = False, 1
            self._reading.remove(answer)
            if not any(other.reading for other in answer.group.answers):
                self.vision.unpin(answer.group.id)
        return _Call(written, [(b, answer, 1) for b, answer in enumerate(answers)])

    def _decode(self, most: int) -> list[_Call]:
        """Tokens of all rows that are answering."""
        writing = [row.answer for row in self._rows if row.answer is not None and not row.answer.reading]
        left = [answer.limit - len(answer.tokens) - answer.flying for answer in writing]
        if not any(each > 0 for each in left):
            return []
        live_B = np.zeros(len(self._rows), bool)
        live_B[[answer.row.index for answer in writing]] = True
        going = sum(each > 0 for each in left)
        # Back as soon as a row is free that somebody waits for, or as fewer rows would do.
        count = 1 if self._reading or self._held() else min(most, max(left))
        few = going - 1 if self._waiting else self._fewer(going)
        longest = max(answer.length + answer.flying for answer in writing) + count
        reach = _reach(longest, max(row.slots for row in self._rows))
        shaping = self._shape(writing)
        if shaping is not None:
            allowed = self._allowed(writing, [answer.row.index for answer in writing], len(self._rows))
            shaping = shaping._replace(allowed_bits=allowed)
        self._state, shaping, written = self.programs.decode(
            self._decode_params,
            self._state,
            shaping,
            live_B,
            np.int32(count),
            np.int32(few),
            reach=reach,
            best=self._best(writing),
        )
        self._shaping = self._shaping if shaping is None else shaping
        for answer in writing:
            answer.flying += count
        return [_Call(written, [(answer.row.index, answer, count) for answer in writing])]

    def _shape(self, answers: Sequence[Answer]) -> Shaping | None:
        """What rows ask for, if any of these answers does, or for tokens beside its own."""
        if not any(self._rich(answer) for answer in answers):
            return None
        if self._shaping is None:
            self._shaping = self.programs.unshaped(rows=len(self._rows))
        return self._shaping

    def _best(self, answers: Sequence[Answer]) -> int:
        """How many best tokens a program notes."""
        return min(_BEST, self.config.text.vocab) if any(map(self._rich, answers)) else 0

    def _rich(self, answer: Answer) -> bool:
        """Whether an answer needs the larger one of the two programs that there are for everything."""
        return answer.group.request.shaped or answer.sampling.logprobs > 0

    def _allowed(self, answers: Sequence[Answer], rows: Iterable[int], size: int) -> np.ndarray:
        """Which tokens may follow in every row, see `Request.allow`."""
        bits = np.full((size, -(-self.config.text.vocab // 32)), -1, np.int32)
        for row, answer in zip(rows, answers, strict=True):
            if answer.group.request.allow is not None:
                allowed = answer.group.request.allow(answer.tokens)
                bits[row, : len(allowed)], bits[row, len(allowed) :] = allowed, 0
        return bits

    def _fewer(self, going: int) -> int:
        """How many rows are left when a smaller number of rows holds them."""
        smaller = [rows for rows in self.ladders.rows if rows < len(self._rows)]
        return 0 if self._fixed or not smaller else min(smaller[-1], going - 1)

    def _held(self) -> bool:
        """Whether an answer must be read before more of it is written."""
        return any(row.answer is not None and row.answer.group.request.allow is not None for row in self._rows)

    def _collect(self) -> list[Token]:
        """Tells what the programs of the last step wrote."""
        calls, self._calls = self._calls, []
        return [token for call in calls for token in self._tell(call)]

    def _tell(self, call: _Call) -> list[Token]:
        tokens_BW, logprobs_BW, best_ids, best_logprobs = map(np.asarray, call.written)
        told = []
        for b, answer, count in call.answers:
            answer.flying -= count
            if answer.ended:
                continue
            for w, (token, logprob) in enumerate(zip(tokens_BW[b].tolist(), logprobs_BW[b].tolist(), strict=True)):
                if token < 0:
                    break
                answer.tokens.append(token)
                end = None
                if token in answer.stops and len(answer.tokens) > answer.sampling.min_tokens:
                    end = "stop"
                elif len(answer.tokens) >= answer.limit:
                    end = "length"
                n = answer.sampling.logprobs
                best = tuple(zip(best_ids[b, w, :n].tolist(), best_logprobs[b, w, :n].tolist(), strict=True))
                group, number = answer.group, len(answer.tokens)
                told.append(Token(group.id, answer.number, token, logprob, number, end, group.prompt, best))
                if end is not None:
                    self._end(answer)
        return told

    def _end(self, answer: Answer) -> None:
        """Frees the row of an answer; what the row holds stays until it is taken."""
        if answer.ended:
            return
        group, row, answer.ended = answer.group, answer.row, True
        if row is not None:
            if not answer.reading:
                row.held_T = answer.text_T[:-1]  # the last token is not in the cache
            row.answer = answer.row = None
        if all(other.ended for other in group.answers):
            self.vision.unpin(group.id)
            del self._groups[group.id]
            self._waiting = [other for other in self._waiting if other is not group]

    def _places(self, source: Row, target: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places of two rows on their device, for every device, and whether it is theirs."""
        here = np.arange(self._shards) == source.shard
        return np.where(here, source.place, 0).astype(np.int32), np.where(here, target.place, 0).astype(np.int32), here


def _free_bytes(device: jax.Device) -> int:
    """Memory of a device that nobody has, of a CPU's half of what there is."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return stats["bytes_limit"] - stats["bytes_in_use"]


def _needed(answer: Answer) -> int:
    """Slots that an answer may need."""
    return len(answer.group.prompt.tokens_T) + answer.sampling.max_new_tokens - 1


def _waits(answer: Answer) -> bool:
    return answer.row is None and not answer.ended


def _reach(length: int, slots: int) -> int:
    """How many slots attention reads: all of them, or the least half of halves that holds so many tokens."""
    while slots >= 2 * _NEAR and slots // 2 >= length:
        slots //= 2
    return slots


def _reaches(slots: int) -> list[int]:
    """All that `_reach` may say of a row."""
    return sorted({_reach(length, slots) for length in [slots >> halves for halves in range(slots.bit_length())]})


def _divisible(sizes: tuple[int, ...], unit: int) -> tuple[int, ...]:
    """A ladder's sizes, each as much larger as `unit` devices need to share it."""
    return tuple(sorted({-(-size // unit) * unit for size in sizes}))
