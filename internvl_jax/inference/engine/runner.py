"""A model's programs together with its parameters and the state of its rows."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvl_jax.inference.engine import requests as asked
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.engine.device_program import ProgramCall, compile_together
from internvl_jax.inference.engine.drafts import Draft, Seat
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.requests import Vocabulary
from internvl_jax.inference.engine.row_state import Begin, Part, State, Written, committed
from internvl_jax.inference.engine.sampling import Shaping
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.engine.scheduler import reach_of, reaches
from internvl_jax.inference.engine.tile_features import TileFeatures
from internvl_jax.models import (
    NO_PLACE,
    LanguageHalf,
    LoraConfig,
    VisionHalf,
    for_one_place,
    rank_axis,
    stacks_of,
    unstack,
    unstack_params,
)
from internvl_jax.sharding import Params, flatten

_BEST = 20  # the most best tokens that are noted


class Runner:
    """Calls the programs; between calls the state is nowhere else.

    Args:
      model: see `Engine`.
      vocabulary: see `Vocabulary`.
      ladders: the sizes that programs are compiled for, as the mesh's devices can share them.
      tiles: how many tiles' features are kept.
      apart: decode with every layer's parameters apart.

    Attributes:
      places: for adapters; None: the model has none.
      pages: how many there are, where rows have pages.
    """

    kind: type[Programs] = Programs
    pages = 0

    def __init__(self, model: LanguageHalf, vocabulary: Vocabulary, ladders: Ladders, tiles: int, apart: bool):
        self._vocabulary, self._ladders, self._apart = vocabulary, ladders, apart
        self._vocab, self.places = model.config.text.vocab, model.runtime.adapters
        graphdef, runtime = nnx.split(model, nnx.Param)[0], model.runtime
        self.params: Params = {}
        self.put_params(flatten(model))
        on_cpu = all(device.platform == "cpu" for device in self.params["lm.norm.scale"].devices())
        self.programs = self.kind(
            model.config,
            graphdef,
            unstack(model) if apart else graphdef,
            vocabulary.size,
            vocabulary.banned,
            # XLA on CPU converts a whole bfloat16 cache at every write (2026-11, jax 0.10.2).
            jnp.float32 if on_cpu and runtime.cache is None else runtime.cache_dtype,
            ladders.piece,
        )
        tower = isinstance(model, VisionHalf)
        self.tiles = TileFeatures(model.config, runtime.dtype, self.programs, ladders.tiles, tiles, tower)
        self._state: State | None = None
        self._shaping: Shaping | None = None
        self._rows = 0
        self._marked: set[int] = set()  # rows whose last answer asked for what is in `Shaping`

    def are_others(self, params: Params) -> bool:
        """Whether these are not the parameters that there are, adapters in places aside."""
        params = self._with_places(params)
        return params.keys() != self.params.keys() or any(params[path] is not self.params[path] for path in params)

    def put_params(self, params: Params) -> None:
        """Takes other parameters of the same shapes, but for adapters in places."""
        self.params = self._with_places(params)
        self._decode_params = unstack_params(self.params) if self._apart else self.params

    def _with_places(self, params: Params) -> Params:
        return params | stacks_of(self.params) if self.places is not None else params

    def adapt(self, place: int, own: Mapping[str, np.ndarray]) -> None:
        """Puts an adapter into a place, as `models.for_one_place` gives it."""
        for path, value in own.items():
            stack = self.params[path]
            new = self.programs.adapt(stack, value, np.int32(place), axis=rank_axis(path))
            changed = {path: new if new.sharding == stack.sharding else jax.device_put(new, stack.sharding)}
            self.params = self.params | changed
            self._decode_params = self._decode_params | (unstack_params(changed) if self._apart else changed)

    def _warm_up_places(self) -> None:
        """Compiles what `adapt` needs, and leaves adapters as they are."""
        if self.places is not None:
            nothing = LoraConfig(())
            self.adapt(self.places.count, for_one_place(self.places, stacks_of(self.params), nothing, {}))

    def resize(self, classes: tuple[tuple[int, int], ...], rows_B: np.ndarray | None) -> None:
        """Other numbers of rows and slots; `rows_B` says which rows they were, None: rows of nobody."""
        self._rows, self._shaping = sum(rows for rows, _ in classes), None
        self._marked.clear()
        if rows_B is None or self._state is None:
            self._state = self.programs.empty(
                classes=classes, adapted=self.places is not None, beside=committed(self.params)
            )
        else:
            self._state = self.programs.resize(self._state, rows_B, slots=classes[0][1])

    def copy(self, source: Seat, target: Seat, count: int, shards: int) -> None:
        """The first `count` slots, or more, of a row into another one of the same device."""
        here = np.arange(shards) == source.shard
        places = [np.where(here, row.place, 0).astype(np.int32) for row in (source, target)]
        reach = min(reach_of(count, source.slots), target.slots)
        self._copy((places[0], places[1], here), source.number, target.number, reach)

    def _copy(self, places: tuple[np.ndarray, np.ndarray, np.ndarray], source: int, target: int, reach: int) -> None:
        self._state = self.programs.copy(self._state, *places, source=source, target=target, reach=reach)

    def read(self, order: Sequence[Draft | None], T: int) -> jax.Array:
        """T tokens, or what is left, of the prompts of these answers, which advance by them.

        Args:
          order: of one class, of every device equally many; None is padding.

        Returns:
          the logits after the last of them, [R, V].
        """
        first = next(draft for draft in order if draft is not None)
        reach = 0 if first.filled == 0 else T
        part = self._part(order, T)
        reach = reach and reach_of(int(part.starts_B.max()) + T, first.row.slots)
        return self._chunk(part, first.row.number, reach)

    def _part(self, order: Sequence[Draft | None], T: int) -> Part:
        R = len(order)
        tokens_RT, index_RT = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
        starts_R, counts_R, rows_R = (np.zeros(R, np.int32) for _ in range(3))
        for r, draft in enumerate(order):
            if draft is None:
                continue
            # Near a row's end tokens that are there already are read once more.
            start = min(draft.filled, draft.row.slots - T)
            part_T = draft.tokens_T[start : start + T]
            starts_R[r], counts_R[r], rows_R[r] = start, len(part_T), draft.row.place
            tokens_RT[r, : len(part_T)] = part_T
            index_P = self.tiles.index(draft.job.names, draft.job.seen.sources_T[start : start + T])
            index_RT[r, : len(index_P)] = index_P
            draft.filled = start + len(part_T)
            draft.row.held_T = draft.keys_T[: draft.filled]
        features_RPD = self.programs.gather(self.tiles.pool_GPD, index_RT)
        return Part(rows_R, tokens_RT, starts_R, counts_R, features_RPD, self._adapters(order))

    def _adapters(self, drafts: Sequence[Draft | None]) -> np.ndarray | None:
        """The places of the adapters of answers, see `Wanted`."""
        if self.places is None:
            return None
        return np.array([NO_PLACE if draft is None else draft.job.adapter.place for draft in drafts], np.int32)

    def _nothing(self, R: int, T: int) -> Part:
        """R parts that are padding."""
        zeros_RT, zeros_R = np.zeros((R, T), np.int32), np.zeros(R, np.int32)
        features_RPD = self.programs.gather(self.tiles.pool_GPD, zeros_RT)
        return Part(zeros_R, zeros_RT, zeros_R, zeros_R, features_RPD, self._adapters([None] * R))

    def _chunk(self, part: Part, number: int, reach: int) -> jax.Array:
        program, given, named = self._chunk_call(part, number, reach)
        self._state, logits_RV, _ = program(*given, **named)
        return logits_RV

    def _chunk_call(self, part: Part, number: int, reach: int) -> ProgramCall:
        return ProgramCall(self.programs.chunk, (self.params, self._state, part), {"number": number, "reach": reach})

    def begin(self, logits_RV: jax.Array, complete: Sequence[tuple[int, Draft]], rich: bool) -> Written:
        """The first tokens of answers, each with the row of the logits that follow its prompt.

        Args:
          rich: with all that answers can ask for.
        """
        size, drafts = len(logits_RV), [draft for _, draft in complete]
        # What an earlier answer in a row asked for must not stay for this one.
        rich = rich or any(draft.row.index in self._marked for draft in drafts)
        self._marked -= {draft.row.index for draft in drafts}
        self._marked |= {draft.row.index for draft in drafts if draft.job.request.shaped}
        padding = size - len(drafts)
        fill = lambda values, other: np.array([*values, *[other] * padding], np.int32)
        sampling = [draft.sampling for draft in drafts] + [SamplingParams()] * padding
        limits = fill([draft.limit for draft in drafts], 1)
        start = Begin(
            fill([r for r, _ in complete], 0),
            fill([draft.row.index for draft in drafts], self._rows),
            fill([draft.length for draft in drafts], 0),
            fill([len(draft.tokens) for draft in drafts], 0),
            asked.stack_wanted(self._vocabulary, limits, sampling, self._adapters([*drafts, *[None] * padding])),
            None,
        )
        if rich:
            nothing = np.zeros(0, np.int32)
            prompts = [draft.job.seen.tokens_T for draft in drafts] + [nothing] * padding
            tokens = [draft.tokens for draft in drafts] + [[]] * padding
            allowed = self._allowed(dict(enumerate(drafts)), size)
            shaped = asked.shape_rows(prompts, tokens, sampling, start.wanted.stops_BZ, allowed, self._vocab)
            start = start._replace(shaped=shaped)
        shaping = self._shape() if rich else None
        self._state, shaping, written = self.programs.begin(
            self._state, shaping, logits_RV, start, best=self._best(rich)
        )
        self._shaping = shaping or self._shaping
        return written

    def decode(self, drafts: Sequence[Draft], count: int, few: int, reach: int, rich: bool) -> Written:
        """`count` tokens of answers, or fewer: until at most `few` of them go on."""
        program, given, named = self._decode_call(drafts, count, few, reach, rich)
        self._state, shaping, written = program(*given, **named)
        self._shaping = shaping or self._shaping
        return written

    def _decode_call(self, drafts: Sequence[Draft], count: int, few: int, reach: int, rich: bool) -> ProgramCall:
        live_B, shaping = self._going(drafts, rich)
        given = (self._decode_params, self._state, shaping, live_B, np.int32(count), np.int32(few))
        return ProgramCall(self.programs.decode, given, {"reach": reach, "best": self._best(rich)})

    def _going(self, drafts: Sequence[Draft], rich: bool) -> tuple[np.ndarray, Shaping | None]:
        """Which rows are those of the answers, and what all rows ask for."""
        live_B = np.zeros(self._rows, bool)
        live_B[[draft.row.index for draft in drafts]] = True
        if not rich:
            return live_B, None
        allowed = self._allowed({draft.row.index: draft for draft in drafts}, self._rows)
        return live_B, self._shape()._replace(allowed_bits=allowed)

    def warm_up(self, classes: tuple[tuple[int, int], ...], shards: int) -> int:
        """Compiles all that rows of these classes need; returns how many programs there are."""
        self.tiles.warm_up(self.params)
        self._warm_up_places()
        chunks = [
            (part, number, reach)
            for R, T in itertools.product(self._ladders.together, self._ladders.prompts)
            for part in [self._nothing(R, T)]
            for number, (_, slots) in enumerate(classes)
            for reach in (0, *reaches(slots))
            if T <= slots
        ]
        tokens = list(itertools.product(reaches(max(slots for _, slots in classes)), (False, True)))
        for R in self._ladders.together:  # what they leave is what all others are compiled for
            logits_RV = self._chunk(self._nothing(R, self._ladders.prompts[0]), 0, 0)
            for rich in (False, True):
                self.begin(logits_RV, [], rich)
        compile_together(
            [
                *(self._chunk_call(*chunk) for chunk in chunks),
                *(self._decode_call([], 0, 0, reach, rich) for reach, rich in tokens),
            ]
        )
        for chunk in chunks:
            self._chunk(*chunk)
        nobody = np.zeros(shards, np.int32)
        for (source, (_, has)), (target, (_, room)) in itertools.product(enumerate(classes), repeat=2):
            for reach in {min(reach, room) for reach in reaches(has)}:
                self._copy((nobody, nobody, nobody > 0), source, target, reach)
        for reach, rich in tokens:
            self.decode([], 0, 0, reach, rich)
        return self.programs.num_compiled

    def _shape(self) -> Shaping:
        if self._shaping is None:
            self._shaping = self.programs.unshaped(rows=self._rows, beside=committed(self.params))
        return self._shaping

    def _best(self, rich: bool) -> int:
        return min(_BEST, self._vocab) if rich else 0

    def _allowed(self, drafts: dict[int, Draft], size: int) -> np.ndarray:
        """Which tokens may follow in every row, see `Request.allow`."""
        bits = np.full((size, -(-self._vocab // 32)), -1, np.int32)
        for row, draft in drafts.items():
            if draft.job.request.allow is not None:
                allowed = draft.job.request.allow(draft.tokens)
                bits[row, : len(allowed)], bits[row, len(allowed) :] = allowed, 0
        return bits
