"""The training step, with shapes in place of arrays; and a program before it is compiled."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from internvl_jax import sharding
from internvl_jax.data import RowConfig
from internvl_jax.models import PARTS, Runtime, train_flops
from internvl_jax.planning.assumed import Assumed
from internvl_jax.training import STAGES, TrainConfig, build, trained_params, with_adapter


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
    """The training step of a config, of any stage: packed rows, tiles, AdamW and all. Its operations are those of a
    forward pass over full rows of samples with the lengths that are assumed, and of tiles that are all real, and what
    the parameters that are trained need backward; what a stage computes besides (a frozen reference, a pass that only
    measures) is not the model's.
    """
    program, stage, model, data = build(config, devices), STAGES[config.objective], config.model, config.data
    # The id of image tokens is the tokenizer's to say, and there are none.
    image = model.vision.image_size, model.tokens_per_tile, -1
    row = stage.empty_row(config.stage, model, RowConfig(data.token_budget, data.tile_budget, *image, data.weighting))
    where = sharding.batch_shardings(row, program.mesh, program.rules)

    def struct(leaf: np.ndarray, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.run.rows * len(leaf), *leaf.shape[1:]), leaf.dtype, sharding=place)

    batch, state = jax.tree.map(struct, row, where), program.abstract
    there = {"parameters": state.params, "optimizer": state.opt_state, "batch": batch}
    given: tuple[Any, ...] = (state, batch)
    if stage.refers:
        there["reference"] = program.own_reference
        given = (*given, program.own_reference)
    return Lowered(program.mesh, there, program.step.lower(*given), model_flops(config, assumed))


def model_flops(config: TrainConfig, assumed: Assumed) -> float:
    """Operations of a training step that the model itself needs, on all devices together: what a run counts, of rows
    that are full of the texts that the trained model reads.
    """
    model, rows, data = with_adapter(config.model, config.lora), config.run.rows, config.data
    trained = trained_params(sharding.structure(PARTS["all"], model, Runtime())[1], model, config.optim)
    tokens, seen = rows * data.token_budget, assumed.seen(model.text, data.token_budget)
    return train_flops(model, rows * data.tile_budget, tokens, tokens * seen, trained)
