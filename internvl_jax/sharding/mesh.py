"""The device mesh: five named axes, always all present, most of size 1."""

import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from internvl_jax.errors import InputError
from internvl_jax.validation import nearest

AXES = ("data", "fsdp", "expert", "context", "tensor")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes of `AXES`; `sizes` gives those that are not 1, and one of them may be -1 (what is left).

    Axis types are Auto: the compiler propagates shardings from the constraints that the model states. (jax.make_mesh
    makes Explicit axes by default since JAX 0.7, under which every sharded contraction must be annotated.)

    Raises:
      InputError: an unknown axis, sizes whose product is not the number of devices, or slices that another axis than
        `data` would have to cross.
    """
    devices = list(jax.devices() if devices is None else devices)
    _check_axes(sizes, "mesh")
    shape = [sizes.get(axis, 1) for axis in AXES]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(1, len(devices) // math.prod(size for size in shape if size > 0))
    if math.prod(shape) != len(devices) or min(shape) < 1:
        named = ",".join(f"{axis}={size}" for axis, size in sizes.items()) or "of one device"
        there = "one device" if len(devices) == 1 else f"{len(devices)} devices"
        raise InputError(f"the mesh {named} does not use the {there}; its sizes must make that number")
    return Mesh(_grid(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parse_mesh(text: str, name: str = "run.mesh") -> dict[str, int]:
    """'fsdp=16,tensor=4' -> {'fsdp': 16, 'tensor': 4}; `name` is what the value is called where it was given."""
    try:
        pairs = [(axis.strip(), int(size)) for axis, size in (part.split("=") for part in text.split(",") if part)]
    except ValueError:
        raise InputError(f"{name} is {text!r}; write it as 'fsdp=16,tensor=4'") from None
    _check_axes(dict(pairs), name)
    if min((size for _, size in pairs), default=1) < -1 or any(size == 0 for _, size in pairs):
        raise InputError(f"{name} is {text!r}; sizes count devices from 1, and one may be -1 for what is left")
    if len(dict(pairs)) < len(pairs):
        raise InputError(f"{name} is {text!r}, which has an axis twice; give every axis once")
    return dict(pairs)


def _check_axes(names: Iterable[str], where: str) -> None:
    if unknown := sorted(set(names) - set(AXES)):
        raise InputError(f"{where}: unknown axes {unknown}{nearest(unknown[0], AXES)}; the axes are {', '.join(AXES)}")


def serving_axes(devices: int, kv_heads: int, experts: int | None) -> dict[str, int]:
    """Sizes of mesh axes for a model that answers by the rules `serve_tp`: as many devices share a row as its key/value
    heads allow, the others take rows of their own, and experts of theirs.
    """
    tensor = math.gcd(devices, kv_heads)
    groups = devices // tensor
    expert = 1 if experts is None else math.gcd(groups, experts // tensor)
    return {"data": groups // expert, "tensor": tensor} | ({"expert": expert} if expert > 1 else {})


def with_all_axes(mesh: Mesh) -> Mesh:
    """The same devices in a mesh as `make_mesh` makes, whichever axes it names and of whichever types they are.

    Raises:
      InputError: an axis that has another name.
    """
    _check_axes(mesh.axis_names, "mesh")
    order = [mesh.axis_names.index(axis) for axis in AXES if axis in mesh.axis_names]
    devices = mesh.devices.transpose(order).reshape([mesh.shape.get(axis, 1) for axis in AXES])
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: list[int], devices: list[jax.Device]) -> np.ndarray:
    """The devices in the shape of the mesh, so that much used axes have the short ways."""
    if devices[0].platform == "cpu":
        return np.array(devices).reshape(shape)
    slices = _num_slices(devices)
    data, *others = shape
    if data % slices:
        raise InputError(
            f"the devices lie in {slices} slices, but the mesh has data={data}; make data a multiple of {slices}: only "
            "the sum of gradients may cross the network between slices"
        )
    # An axis need not be a whole dimension of a TPU's torus.
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    between = [slices] + [1] * len(others)
    return mesh_utils.create_hybrid_device_mesh(
        [data // slices, *others], between, devices, allow_split_physical_axes=True
    )


def _num_slices(devices: list[jax.Device]) -> int:
    """How many slices of TPUs, which have a slower network between them. (Of GPUs every host counts as a slice; their
    network between hosts is made for fsdp.)
    """
    if devices[0].platform != "tpu":
        return 1
    try:
        return len({device.slice_index for device in devices})
    except AttributeError:  # not every version of libtpu says
        return 1
