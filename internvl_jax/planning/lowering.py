"""The real programs of training and serving, with shapes in place of arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from internvl_jax import sharding
from internvl_jax.data import Batch
from internvl_jax.errors import InputError
from internvl_jax.inference import STOPS, Part, Programs, Sampling, SamplingParams, State, Wanted, stack_params
from internvl_jax.models import InternVL, InternVLConfig, Runtime, SlotCache
from internvl_jax.sharding import PRESETS
from internvl_jax.training import TrainConfig, build


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program before its compilation.

    Attributes:
      mesh: the devices that it is for.
      arguments: its arguments by kind ('parameters', 'optimizer', 'cache', 'batch'), as trees of shape structs with
        shardings.
      lowered: jax's lowered function, to be compiled.
    """

    mesh: Mesh
    arguments: dict[str, Any]
    lowered: Any


def training(config: TrainConfig, devices: list[jax.Device]) -> Lowered:
    """The training step of a config: packed rows, tiles, AdamW and all."""
    program = build(config, devices)
    rows, data, side = config.run.rows, config.data, config.model.vision.image_size
    struct = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    ints, tiles = struct(jnp.int32, rows, data.token_budget), rows * data.tile_budget
    batch = Batch(
        tokens_BT=ints,
        targets_BT=ints,
        weights_BT=struct(jnp.float32, rows, data.token_budget),
        segments_BT=ints,
        positions_BT=ints,
        tiles_GHWC=struct(jnp.uint8, tiles, side, side, 3),
        tile_mask_G=struct(jnp.bool_, tiles),
    )
    where = sharding.batch_shardings(batch, program.mesh, program.rules)
    batch = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), batch, where)
    state = program.abstract
    arguments = {"parameters": state.params, "optimizer": state.opt_state, "batch": batch}
    return Lowered(program.mesh, arguments, program.step.lower(state, batch))


@dataclasses.dataclass(frozen=True)
class Serving:
    """What a server holds at a time.

    Attributes:
      rows: how many conversations.
      prompt: tokens of a prompt, as prefill takes it.
      slots: tokens that a row's cache has room for, of prompt and answer together.
    """

    rows: int
    prompt: int
    slots: int

    def __post_init__(self) -> None:
        if min(self.rows, self.prompt) < 1 or self.slots < self.prompt:
            raise InputError(f"serving {self.rows} rows of {self.prompt} tokens in {self.slots} slots makes no sense")


def serving(
    model: InternVLConfig, task: str, size: Serving, axes: dict[str, int], rules: str, devices: list[jax.Device]
) -> Lowered:
    """A program of generation in bfloat16: 'prefill' or 'decode'."""
    mesh, table = sharding.make_mesh(axes, devices), PRESETS[rules]
    graphdef, specs = sharding.structure(InternVL, model, Runtime(jnp.dtype(jnp.bfloat16)))
    where = sharding.shardings(specs, mesh, table)
    params = {path: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16, sharding=where[path]) for path, s in specs.items()}
    dtype, vocab = jnp.dtype(jnp.bfloat16), model.text.vocab
    programs = Programs(model, graphdef, graphdef, vocab, (), dtype, piece=1)

    def struct(dtype: jnp.dtype, shape: tuple[int, ...], *logical: str | None) -> jax.ShapeDtypeStruct:
        axes = (*logical, *(None,) * (len(shape) - len(logical)))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=table.sharding(mesh, shape, axes))

    text, B = model.text, size.rows
    with sharding.use(mesh, table):
        heads = text.kv_heads * sharding.copies("act_heads", text.kv_heads)
        shape = text.layers, B, heads, size.slots, text.head_width
        half = struct(dtype, shape, None, "batch", "act_heads")
        per_row, sampling = struct(jnp.int32, (B,)), stack_params([SamplingParams()])
        state = State(
            cache=SlotCache((half,), (half,), size.slots),
            tokens_B=per_row,
            lengths_B=per_row,
            steps_B=per_row,
            done_B=struct(jnp.bool_, (B,)),
            wanted=Wanted(
                per_row,
                struct(jnp.int32, (B, STOPS)),
                Sampling(*(struct(each.dtype, (B,)) for each in sampling)),
            ),
        )
        arguments = {"parameters": params, "cache": state.cache, "batch": state._replace(cache=None)}
        if task == "decode":
            live_B, one = struct(jnp.bool_, (B,)), struct(jnp.int32, ())
            lowered = programs.decode.lower(params, state, None, live_B, one, one, reach=size.slots, best=0)
            return Lowered(mesh, arguments, lowered)
        rows = struct(jnp.int32, (B,), "batch")
        tokens_BT = struct(jnp.int32, (B, size.prompt), "batch")
        features_BPD = struct(dtype, (B, size.prompt, text.width), "batch")
        part = Part(rows, tokens_BT, rows, rows, features_BPD)
        lowered = programs.chunk.lower(params, state, part, number=0, reach=0)
        return Lowered(mesh, arguments | {"batch": (tokens_BT, features_BPD)}, lowered)
