"""The training step, with shapes in place of arrays; and a program before it is compiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from internvl_jax import sharding
from internvl_jax.data import Batch
from internvl_jax.models import train_flops
from internvl_jax.planning.assumed import Assumed
from internvl_jax.training import TrainConfig, build, with_adapter


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program before its compilation.

    Attributes:
      mesh: the devices that it is for.
      there: what lies on the devices when it is called, by kind ('parameters', 'optimizer', 'cache', 'batch'), as trees
        of shape structs with shardings: its arguments and what it leaves alone.
      lowered: jax's lowered function, to be compiled.
      flops: how many operations the model itself needs, on all devices together.
    """

    mesh: Mesh
    there: dict[str, Any]
    lowered: Any
    flops: float


def training(config: TrainConfig, devices: list[jax.Device], assumed: Assumed) -> Lowered:
    """The training step of a config: packed rows, tiles, AdamW and all. Its operations are those of full rows of
    samples with the lengths that are assumed, and of tiles that are all real.
    """
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
    there = {"parameters": state.params, "optimizer": state.opt_state, "batch": batch}
    return Lowered(program.mesh, there, program.step.lower(state, batch), model_flops(config, assumed))


def model_flops(config: TrainConfig, assumed: Assumed) -> float:
    """Operations of a training step that the model itself needs, on all devices together."""
    data, tokens = config.data, config.run.rows * config.data.token_budget
    seen = assumed.seen(config.model.text, data.token_budget)
    return train_flops(
        with_adapter(config.model, config.lora), config.run.rows * data.tile_budget, tokens, tokens * seen
    )
