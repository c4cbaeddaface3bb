"""The engine's programs for a slice, each compiled for what those before it return: serving, and rollouts of GSPO."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.inference import (
    STOPS,
    Begin,
    GroupSeats,
    GroupSlots,
    Ladders,
    Layout,
    PagedPrograms,
    Part,
    SamplingParams,
    State,
    Wanted,
    fit,
    stack_params,
)
from internvl_jax.models import (
    PARTS,
    InternVLConfig,
    PageCache,
    Runtime,
    stored_dtype,
    tile_flops,
    token_flops,
    with_quantised,
)
from internvl_jax.planning.layouts import Serving
from internvl_jax.planning.lowering import Lowered
from internvl_jax.planning.trial import Trial, results
from internvl_jax.sharding import Params, Placement, placed
from internvl_jax.training import (
    GspoConfig,
    TrainConfig,
    build,
    prompts_ahead,
    resharder,
    sampling_ladders,
    sampling_memory,
    sampling_place,
)


class EngineTrial:
    """The engine's programs of a model on a slice.

    Args:
      trial: notes what they need.
      config: the model's.
      place: where it lies.
      runtime: how it runs.
      weights: its parameters, as structs.
      beside: what else lies on the devices, by kind; 'weights' are those that do, where not all of them do.
      routes: whether the experts of every token are noted.

    Attributes:
      programs: they, those of rows that have pages among them.
      weights: see above.
    """

    def __init__(
        self,
        trial: Trial,
        config: InternVLConfig,
        place: Placement,
        runtime: Runtime,
        weights: Params,
        beside: dict[str, Any] | None = None,
        routes: bool = False,
    ):
        self._trial, self._config, self._place, self._dtype = trial, config, place, runtime.dtype
        self.weights = weights
        self._beside: dict[str, Any] = {"weights": weights, **(beside or {})}
        graphdef, _ = sharding.structure(PARTS["all"], config, runtime)
        args = config, graphdef, graphdef, config.text.vocab, (), runtime.cache_dtype
        self.programs = PagedPrograms(*args, piece=1, routes=routes)

    def made(self, program: Any, *args: Any, **static: Any) -> Any:
        """What a program returns, that needs next to nothing itself."""
        with placed(self._place):
            lowered = program.lower(*args, **static)
        return results(lowered)

    def pool(self, tiles: int) -> jax.ShapeDtypeStruct:
        """Room for the features of so many tiles, which stays."""
        config = self._config
        width = config.tokens_per_tile + (0 if config.flash is None else config.tokens_per_compressed_tile)
        nothing_GPD = np.zeros((0, width, config.text.width), self._dtype)
        pool_GPD = self.made(self.programs.widen, nothing_GPD, size=tiles)
        self._beside["features"] = pool_GPD
        return pool_GPD

    def encode(self, name: str, tiles: int) -> None:
        """Tiles through the tower."""
        side = self._config.vision.image_size
        tiles_GHWC = jax.ShapeDtypeStruct((tiles, side, side, 3), jnp.uint8)
        flops = tiles * tile_flops(self._config)
        self._run(name, {}, flops, self.programs.encode, self.weights, tiles_GHWC)

    def gather(self, name: str, pool_GPD: jax.ShapeDtypeStruct, shape: tuple[int, int]) -> jax.ShapeDtypeStruct:
        """Features of the image tokens of prompts, or of parts of them, of `shape` [R, T]."""
        return self._run(name, {}, 0.0, self.programs.gather, pool_GPD, np.zeros(shape, np.int32))

    def chunk(self, name: str, state: State, features_RPD: jax.ShapeDtypeStruct, reach: int) -> Any:
        """Parts of prompts, which begin so far from the prompts' beginnings that they end at `reach`; 0: they are the
        first. Returns the state and the logits behind them.
        """
        R, T, _ = features_RPD.shape
        rows_R = np.zeros(R, np.int32)
        part = Part(rows_R, np.zeros((R, T), np.int32), rows_R, rows_R, features_RPD)
        flops = R * T * token_flops(self._config, T / 2 if reach == 0 else reach - T / 2)
        there = _there(state) | {"batch": (*state[1:], features_RPD)}
        args = self.weights, state, part
        if isinstance(state.cache, PageCache):
            return self._run(name, there, flops, self.programs.chunk_pages, *args, _full(state.cache, R, state))
        state, logits_RV, _ = self._run(name, there, flops, self.programs.chunk, *args, number=0, reach=reach)
        return state, logits_RV

    def begin(self, name: str, state: State, logits_RV: jax.ShapeDtypeStruct, group: int = 1) -> State:
        """The first tokens of rows whose prompts are read, of `group` answers to each."""
        picks_B = np.repeat(np.arange(logits_RV.shape[0], dtype=np.int32), group)
        start = Begin(picks_B, picks_B, picks_B, picks_B, _wanted(len(picks_B)), None)
        state, *_ = self._run(name, _there(state), 0.0, self.programs.begin, state, None, logits_RV, start, best=0)
        return state

    def decode(self, name: str, state: State, context: int) -> State:
        """A token of all rows, the longest of which reach over `context` tokens."""
        rows, one = state.done_B.shape[0], np.int32(1)
        flops = rows * token_flops(self._config, context)
        args, there = (self.weights, state, None, np.ones(rows, bool)), _there(state)
        if isinstance(state.cache, PageCache):
            table = _full(state.cache, rows, state)
            state, *_ = self._run(name, there, flops, self.programs.decode_pages, *args, table, one, one, best=0)
            return state
        reach = state.cache.reach
        state, *_ = self._run(name, there, flops, self.programs.decode, *args, one, one, reach=reach, best=0)
        return state

    def grow(self, name: str, state: State, slots: int) -> State:
        """Groups whose answers have so many slots each."""
        return self._run(name, _there(state), 0.0, self.programs.grow, state, slots=slots)

    def move(self, name: str, state: State, layout: Layout) -> State:
        """Groups in fewer rows."""
        return self._run(name, _there(state), 0.0, self.programs.move, state, *layout.same())

    def _run(self, name: str, there: dict[str, Any], flops: float, program: Any, *args: Any, **static: Any) -> Any:
        with placed(self._place):
            lowered = program.lower(*args, **static)
        return self._trial.run(name, Lowered(self._place.mesh, self._beside | there, lowered, flops))


def serving(trial: Trial, config: InternVLConfig, place: Placement, task: str, size: Serving) -> None:
    """Programs of a server in bfloat16: 'prefill' (prompts read at once), 'decode' (a token of all rows), or all that
    'serve' needs.
    """
    config = with_quantised(config, size.quantise)
    runtime = Runtime(jnp.dtype(jnp.bfloat16), cache=size.cache)
    engine = EngineTrial(trial, config, place, runtime, served_weights(config, place))
    if size.page is None:
        state = engine.made(engine.programs.empty, classes=((size.rows, size.slots),))
    else:
        pages = size.rows * -(-size.slots // size.page), size.page
        state = engine.made(engine.programs.empty_pages, rows=size.rows, pages=pages)
    if task == "decode":
        engine.decode("decode", state, size.slots)
        return
    with placed(place):
        shards, tiles = sharding.spread("batch"), sharding.spread("tiles")
    ladders = Ladders(classes=((size.rows, size.slots),), chunk=size.chunk).spread(shards, tiles)
    pool_GPD = engine.pool(fit("tiles", size.tiles * size.rows, ladders.tiles))
    if task == "prefill":
        features_RPD = engine.made(engine.programs.gather, pool_GPD, np.zeros((size.rows, size.prompt), np.int32))
        engine.chunk("prefill", state, features_RPD, reach=0)
        return
    engine.encode("encode", fit("tiles", size.tiles, ladders.tiles))
    features_RPD = engine.gather("gather", pool_GPD, (ladders.together[0], size.chunk))
    state, logits_RV = engine.chunk("chunk", state, features_RPD, size.slots)
    engine.decode("decode", engine.begin("begin", state, logits_RV), size.slots)


def served_weights(config: InternVLConfig, place: Placement) -> Params:
    """A server's parameters, in bfloat16, as structs."""
    dtype = jnp.dtype(jnp.bfloat16)
    _, specs = sharding.structure(PARTS["all"], config, Runtime(dtype))
    lies = sharding.places(specs, place)
    kinds = {path: stored_dtype(path, dtype) for path in specs}
    return {path: jax.ShapeDtypeStruct(spec.shape, kinds[path], sharding=lies[path]) for path, spec in specs.items()}


def rollout(trial: Trial, config: TrainConfig, settings: GspoConfig) -> None:
    """What a rollout batch of GSPO needs beside the state of training: the weights to sample from, reading prompts, and
    a token of all answers, at first and when they have all their slots. Notes the sizes of the programs, and what the
    run itself reckons with before anything is compiled.

    Raises:
      InputError: one device, or sizes beyond the ladders.
    """
    program, dtype = build(config, trial.where.devices()), config.run.dtype
    place = sampling_place(program)
    if place is None:
        raise InputError("a rollout is planned for two devices or more; give a larger topology")
    with placed(place):
        shards, spread = sharding.spread("batch"), sharding.spread("tiles")
    ladders = sampling_ladders(settings).divisible(shards, spread)
    slots = GroupSlots.of(settings.max_prompt_tokens, settings.max_new_tokens, ladders)
    count, together = prompts_ahead(settings) + settings.ahead, min(settings.sample_prompts, ladders.rows[-1])
    seats = GroupSeats(count, settings.group, together, (slots.prompt, slots.first), ladders.rows, shards)
    layout, prompts = seats.layout, len(seats.take(ladders.together, slots.together))
    tiles = prompts * min(config.data.tile_budget, settings.max_prompt_tokens // config.model.tokens_per_tile)
    memory = sampling_memory(settings, program, place, dtype)
    axes = ",".join(f"{axis}={size}" for axis, size in place.mesh.shape.items() if size > 1)
    sizes = {"mesh": axes, **layout._asdict(), "read_together": prompts, "slots": slots._asdict()}
    trial.notes = {"sampling": sizes, "by_arithmetic": dataclasses.asdict(memory) | {"total": memory.total}}

    kept = {"parameters": program.abstract.params, "optimizer": program.abstract.opt_state}
    if settings.kl:
        kept["reference"] = program.own_reference
    reshard = cast(Any, resharder(program, place, dtype))  # jitted, as there is a place
    weights = trial.run("reshard", Lowered(program.mesh, kept, reshard.lower(program.abstract.params), 0.0))
    routes = settings.routes != "ignore"
    engine = EngineTrial(trial, config.model, place, Runtime(jnp.dtype(dtype)), weights, kept, routes)
    pool_GPD = engine.pool(-(-tiles // spread) * spread)
    engine.encode("encode", fit("tiles", min(tiles, ladders.tiles[-1]), ladders.tiles))

    def empty(own: int) -> State:
        return engine.made(engine.programs.empty_groups, rows=tuple(layout), slots=(slots.prompt, own))

    state = engine.decode("decode", empty(slots.first), slots.prompt + slots.first)
    if grows := slots.first < slots.longest:
        before = slots.first
        while 2 * before < slots.longest:
            before *= 2
        state = engine.grow("grow", empty(before), slots.longest)
    features_RPD = engine.gather("gather", pool_GPD, (prompts, slots.prompt))
    state, logits_RV = engine.chunk("prompts", state, features_RPD, reach=0)
    state = engine.begin("begin", state, logits_RV, settings.group)
    if grows:
        state = engine.decode("decode, longest", state, slots.prompt + slots.longest)
    if (fewer := layout.smaller(ladders.rows)) is not None:
        engine.move("fewer", state, fewer)


def _full(cache: PageCache, rows: int, state: State) -> np.ndarray:
    """The pages of so many rows that are full, where all rows of the state can be."""
    pages = cache.pool.shape[0] // cache.layers
    return np.zeros((rows, pages // state.done_B.shape[0]), np.int32)


def _there(state: State) -> dict[str, Any]:
    return {"cache": state.cache, "batch": state[1:]}


def _wanted(rows: int) -> Wanted:
    stops = np.zeros((rows, STOPS), np.int32)
    return Wanted(np.zeros(rows, np.int32), stops, stack_params([SamplingParams()] * rows))
