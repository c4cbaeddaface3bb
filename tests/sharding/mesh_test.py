"""Five named axes over eight devices, or one clear sentence."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from internvl_jax.errors import InputError
from internvl_jax.sharding import AXES, make_mesh, mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"fsdp": 8}, (1, 8, 1, 1, 1)),
        ({"tensor": 4, "data": 2}, (2, 1, 1, 1, 4)),
        ({"fsdp": -1}, (1, 8, 1, 1, 1)),
        ({"context": -1, "tensor": 2}, (1, 1, 1, 4, 2)),
        ({"expert": 8, "data": -1}, (1, 1, 8, 1, 1)),
    ],
)
def test_every_axis_is_there(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_some_of_the_devices():
    assert make_mesh({"tensor": -1}, jax.devices()[:3]).shape["tensor"] == 3
    assert make_mesh({}, jax.devices()[5:6]).size == 1


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"model": 8}, r"unknown axes \['model'\]; the axes are data, fsdp"),
        ({"fsdp": 3}, "does not use the 8 devices"),
        ({}, "does not use the 8 devices"),
        ({"fsdp": 3, "tensor": -1}, "does not use the 8 devices"),
        ({"fsdp": 16, "tensor": -1}, "does not use the 8 devices"),
        ({"fsdp": -1, "tensor": -1}, "does not use the 8 devices"),
        ({"fsdp": -2, "tensor": -4}, "does not use the 8 devices"),
        ({"fsdp": 0, "tensor": 8}, "does not use the 8 devices"),
        ({"fsdp": 0, "tensor": -1}, "does not use the 8 devices"),
    ],
)
def test_what_can_not_be_is_refused(sizes, sentence):
    with pytest.raises(InputError, match=sentence):
        make_mesh(sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh is made by."""

    id: int
    slice_index: int
    coords: tuple[int, ...] = ()
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    process_index: int = 0
    core_on_chip: int = 0


def test_only_the_data_axis_crosses_slices():
    places = [(x, y, z) for x in range(2) for y in range(2) for z in range(2)]
    chips = [Chip(number, number % 2, places[number // 2]) for number in range(16)]  # not in the order of their slices
    grid = mesh._grid([4, 2, 1, 1, 2], chips)
    assert grid.shape == (4, 2, 1, 1, 2) and {chip.id for chip in grid.flat} == set(range(16))
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert [set(part.flat) for part in slices] == [{0}, {0}, {1}, {1}]


def test_another_axis_across_slices_is_refused():
    chips = [Chip(number, number // 4) for number in range(12)]
    with pytest.raises(InputError, match="the devices lie in 3 slices, but the mesh has data=2; make data a multiple"):
        mesh._grid([2, 6, 1, 1, 1], chips)
    # Hosts of GPUs count as slices too, and fsdp may cross them.
    gpus = [dataclasses.replace(chip, platform="gpu", device_kind="NVIDIA H100") for chip in chips]
    assert mesh._grid([1, 12, 1, 1, 1], gpus).shape == (1, 12, 1, 1, 1)
