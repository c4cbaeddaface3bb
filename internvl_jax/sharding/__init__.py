"""Where parameters and activations live: meshes, logical axes and the rules that join them.

Models name logical axes only; a `Rules` table maps these to the five mesh axes `data, fsdp, expert, context, tensor`.
"""

from internvl_jax.sharding.batches import batch_shardings
from internvl_jax.sharding.flat import ParamSpec, abstract, bind, flatten, init, like_params, shardings
from internvl_jax.sharding.mesh import AXES, make_mesh
from internvl_jax.sharding.owners import Share, by_owner, by_token
from internvl_jax.sharding.params import param
from internvl_jax.sharding.rules import PRESETS, Rules, meshed, per_device, platform, shard, use, whole

__all__ = [
    "AXES",
    "PRESETS",
    "ParamSpec",
    "Rules",
    "Share",
    "abstract",
    "batch_shardings",
    "bind",
    "by_owner",
    "by_token",
    "flatten",
    "init",
    "like_params",
    "make_mesh",
    "meshed",
    "param",
    "per_device",
    "platform",
    "shard",
    "shardings",
    "use",
    "whole",
]
