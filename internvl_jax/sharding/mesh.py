"""The device mesh: five named axes, always all present, most of size 1."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from internvl_jax.errors import InputError

AXES = ("data", "fsdp", "expert", "context", "tensor")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes of `AXES`; `sizes` gives those that are not 1, and one of them may be -1 (what is left).

    Axis types are Auto: the compiler propagates shardings from the constraints that the model states. (jax.make_mesh
    makes Explicit axes by default since JAX 0.7, under which every sharded contraction must be annotated.)

    Raises:
      InputError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if unknown := sorted(set(sizes) - set(AXES)):
        raise InputError(f"mesh: unknown axes {unknown}; the axes are {', '.join(AXES)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(1, len(devices) // math.prod(size for size in shape if size > 0))
    if math.prod(shape) != len(devices) or min(shape) < 1:
        raise InputError(
            f"mesh {dict(sizes)} does not use the {len(devices)} devices; make the product of its sizes so"
        )
    if devices[0].platform == "cpu":
        grid = np.array(devices).reshape(shape)
    else:
        # An axis need not be a whole dimension of a TPU's torus.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
