"""Where a model answers: meshes of any kind, rules by name, and what does not divide."""

import jax
import pytest
from jax.sharding import AxisType

from internvl_jax.errors import InputError
from internvl_jax.sharding import AXES, PRESETS, Placement, parse_mesh, serving_axes

SIZES = {"vocab": 320, "kv_heads": 2, "expert": 6}


def mesh(**axes):
    count = 1
    for size in axes.values():
        count *= size
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[:count])


def test_a_mesh_of_other_axes_and_types_gets_ours():
    given = mesh(tensor=2, data=2)
    assert given.axis_types[0] == AxisType.Explicit
    placement = Placement.of(given, None, 4, SIZES)
    assert placement.rules == PRESETS["serve_tp"].fitted(placement.mesh, SIZES)
    assert placement.mesh.axis_names == AXES and placement.mesh.shape["data"] == placement.mesh.shape["tensor"] == 2
    assert set(placement.mesh.axis_types) == {AxisType.Auto}
    # A device has the same neighbours as before.
    assert placement.mesh.devices.reshape(2, 2)[1, 0] == given.devices[0, 1]
    assert Placement.of(None, "serve_tp", 4, SIZES) is None


def test_what_does_not_divide_lies_whole_on_more_devices():
    rules = Placement.of(mesh(expert=2, tensor=2), "serve_tp", 4, SIZES | {"vocab": 311}).rules
    assert rules.expert == ("expert",) and rules.vocab == () and rules.kv_heads == ("tensor",)
    alone = Placement.of(mesh(tensor=4), "serve_tp", 4, SIZES).rules
    assert alone.kv_heads == alone.batch == ()  # an axis of one device spreads nothing


@pytest.mark.parametrize(
    ("axes", "rules", "message"),
    [
        ({"tensor": 3}, "serve_tp", "the model's 4 heads can't be shared by tensor=3 devices; choose a divisor"),
        ({"tensor": 2}, "serve", "there are no rules 'serve'; the presets are fsdp"),
        ({"model": 2}, "serve_tp", r"mesh: unknown axes \['model'\]; the axes are data"),
        ({"context": 2}, "serve_tp", "mesh context=2: .* spread nothing"),
    ],
)
def test_what_can_not_be(axes, rules, message):
    with pytest.raises(InputError, match=message):
        Placement.of(mesh(**axes), rules, 4, SIZES)


@pytest.mark.parametrize(
    ("devices", "kv_heads", "experts", "wanted"),
    [
        (4, 8, None, {"data": 1, "tensor": 4}),
        (16, 8, None, {"data": 2, "tensor": 8}),
        (16, 4, 128, {"data": 1, "tensor": 4, "expert": 4}),
        (6, 4, None, {"data": 3, "tensor": 2}),
    ],
)
def test_axes_that_suit_a_model(devices, kv_heads, experts, wanted):
    assert serving_axes(devices, kv_heads, experts) == wanted


def test_a_mesh_by_a_flag():
    assert parse_mesh("data=2, tensor=4", "--mesh") == {"data": 2, "tensor": 4}
    with pytest.raises(InputError, match="--mesh is 'tensor'; write it as"):
        parse_mesh("tensor", "--mesh")
    with pytest.raises(InputError, match="--mesh is 'data=2,data=2', which has an axis twice"):
        parse_mesh("data=2,data=2", "--mesh")
