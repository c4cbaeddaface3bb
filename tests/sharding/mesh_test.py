"""Five named axes over eight devices, or one clear sentence."""

import jax
import pytest
from jax.sharding import AxisType

from internvl_jax.errors import InputError
from internvl_jax.sharding import AXES, make_mesh


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
