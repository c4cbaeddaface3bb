"""Where parameters and activations live: meshes, logical axes and the rules that join them.

Models name logical axes only; a `Rules` table maps these to the five mesh axes `data, fsdp, expert, context, tensor`.
"""

from internvl_jax.sharding import params_io
from internvl_jax.sharding.batches import batch_shardings
from internvl_jax.sharding.checked import checksum
from internvl_jax.sharding.flat import (
    Params,
    ParamSpec,
    abstract,
    bind,
    flatten,
    init,
    like_params,
    logical_axes,
    shardings,
    structure,
)
from internvl_jax.sharding.mesh import AXES, make_mesh
from internvl_jax.sharding.owners import Share, by_owner, by_token
from internvl_jax.sharding.params import param
from internvl_jax.sharding.params_io import (
    DAMAGE,
    ITEM,
    damaged,
    locate,
    read_params,
    saving_options,
    step_names,
    write_params,
)
from internvl_jax.sharding.rules import PRESETS, Rules, meshed, per_device, platform, shard, use, whole

__all__ = [
    "AXES",
    "DAMAGE",
    "ITEM",
    "PRESETS",
    "ParamSpec",
    "Params",
    "Rules",
    "Share",
    "abstract",
    "batch_shardings",
    "bind",
    "by_owner",
    "by_token",
    "checksum",
    "damaged",
    "flatten",
    "init",
    "like_params",
    "locate",
    "logical_axes",
    "make_mesh",
    "meshed",
    "param",
    "params_io",
    "per_device",
    "platform",
    "read_params",
    "saving_options",
    "shard",
    "shardings",
    "step_names",
    "structure",
    "use",
    "whole",
    "write_params",
]
