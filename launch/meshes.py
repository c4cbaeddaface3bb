"""--mesh and --rules of the launchers whose models answer."""

import math

import jax
from absl import flags
from jax.sharding import Mesh

from internvl_jax.errors import InputError
from internvl_jax.models import TextConfig
from internvl_jax.sharding import PRESETS, make_mesh, parse_mesh, serving_axes

_MESH = flags.DEFINE_string(
    "mesh",
    None,
    "how devices share the model, as tensor=4 or data=2,tensor=4; default: all accelerators",
)
RULES = flags.DEFINE_enum("rules", "serve_tp", sorted(PRESETS), "what lies where on the mesh")


def mesh(text: TextConfig | None) -> Mesh | None:
    """The mesh that --mesh names; without it one of all accelerators that suits the language model, if one is given.

    Raises:
      InputError: devices that are not there, or a flag that can't be read.
    """
    devices = jax.devices()
    if _MESH.value is None:
        together = jax.process_count() > 1
        if text is None and together:
            raise InputError("several processes need a mesh that all of them are in; give --mesh")
        if text is None or len(devices) == 1 or (devices[0].platform == "cpu" and not together):
            return None
        experts = None if text.moe is None else text.moe.experts
        return make_mesh(serving_axes(len(devices), text.kv_heads, experts))
    sizes = parse_mesh(_MESH.value, "--mesh")
    wanted = math.prod(sizes.values())
    if wanted > len(devices):
        advice = f"; XLA_FLAGS=--xla_force_host_platform_device_count={wanted} makes so many of a CPU"
        raise InputError(
            f"--mesh={_MESH.value} needs {wanted} devices, there are {len(devices)}"
            f"{advice if devices[0].platform == 'cpu' else ''}"
        )
    return make_mesh(sizes, devices[:wanted] if wanted > 0 else devices)
