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
    shard_bytes,
    shardings,
    structure,
)
from internvl_jax.sharding.mesh import AXES, make_mesh, parse_mesh, serving_axes, with_all_axes
from internvl_jax.sharding.owners import Share, by_owner, by_token
from internvl_jax.sharding.params import param
from internvl_jax.sharding.params_io import (
    DAMAGE,
    ITEM,
    checkpoint_path,
    damaged,
    locate,
    read_params,
    read_specs,
    saving_options,
    step_names,
    write_params,
)
from internvl_jax.sharding.placement import Placement, everywhere, placed, places
from internvl_jax.sharding.referred import follow, refer
from internvl_jax.sharding.row_share import RowShare, row_share
from internvl_jax.sharding.rules import (
    PRESETS,
    Rules,
    check_mesh,
    copies,
    gather,
    meshed,
    per_device,
    platform,
    shard,
    spread,
    use,
    whole,
)
from internvl_jax.sharding.time_shards import gather_time, heads_for_time, own_share, time_for_heads, time_part

__all__ = [
    "AXES",
    "DAMAGE",
    "ITEM",
    "PRESETS",
    "ParamSpec",
    "Placement",
    "Params",
    "RowShare",
    "Rules",
    "Share",
    "abstract",
    "batch_shardings",
    "bind",
    "by_owner",
    "by_token",
    "check_mesh",
    "checkpoint_path",
    "checksum",
    "copies",
    "damaged",
    "everywhere",
    "flatten",
    "gather",
    "gather_time",
    "heads_for_time",
    "follow",
    "init",
    "like_params",
    "locate",
    "logical_axes",
    "make_mesh",
    "meshed",
    "own_share",
    "param",
    "params_io",
    "parse_mesh",
    "per_device",
    "placed",
    "places",
    "platform",
    "read_params",
    "read_specs",
    "refer",
    "row_share",
    "saving_options",
    "serving_axes",
    "shard",
    "shard_bytes",
    "shardings",
    "spread",
    "step_names",
    "structure",
    "time_for_heads",
    "time_part",
    "use",
    "whole",
    "with_all_axes",
    "write_params",
]
