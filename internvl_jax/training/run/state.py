"""What a run carries from step to step, and where it lies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.sharding import Params, ParamSpec, like_params
from internvl_jax.training.config import Group
from internvl_jax.training.run.optim import AdamW


class TrainState(NamedTuple):
    """Attributes:
    step: int32 scalar, the optimizer steps taken.
    params: all parameters, float32 but for those of a frozen base.
    opt_state: the optimizer's state of the trainable parameters.
    nonfinite: int32 scalar, how many steps in a row were not applied.
    carry: what the objective carries from step to step; small, and the same on every device.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    nonfinite: jax.Array
    carry: dict[str, jax.Array]


def split_trainable(params: Params, assigned: dict[str, Group]) -> tuple[Params, Params]:
    """(trainable, frozen)."""
    trainable = {path: value for path, value in params.items() if not assigned[path].frozen}
    return trainable, {path: value for path, value in params.items() if path not in trainable}


def new_state(params: Params, tx: AdamW, assigned: dict[str, Group], carry: dict[str, jax.Array]) -> TrainState:
    return TrainState(jnp.int32(0), params, tx.init(split_trainable(params, assigned)[0]), jnp.int32(0), carry)


def state_shardings(
    abstract: TrainState, specs: dict[str, ParamSpec], where: dict[str, NamedSharding], mesh: Mesh
) -> TrainState:
    """Shardings of a state, leaf by leaf."""
    replicated = NamedSharding(mesh, P())
    opt_state = like_params(abstract.opt_state, specs, where, mesh)
    return TrainState(replicated, where, opt_state, replicated, dict.fromkeys(abstract.carry, replicated))
