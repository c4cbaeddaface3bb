"""Parameters on disk: back in any dtype on any mesh, or a sentence that names what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.errors import InputError
from internvl_jax.sharding import make_mesh
from internvl_jax.sharding.params_io import locate, read_params, write_params

SHAPES = {"lm.embed.weight": (16, 8), "lm.layers.mlp.up.weight": (3, 8, 24), "lm.norm.scale": (7,)}
VALUES = {
    path: np.random.default_rng(index).normal(size=shape).astype(np.float32)
    for index, (path, shape) in enumerate(SHAPES.items())
}


def structs(spec_of, mesh, dtype=jnp.float32):
    return {
        path: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec_of.get(path, P())))
        for path, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Written from eight devices."""
    mesh = make_mesh({"fsdp": 8})
    where = {"lm.embed.weight": P("fsdp"), "lm.layers.mlp.up.weight": P(None, "fsdp")}
    params = {path: jax.device_put(VALUES[path], leaf.sharding) for path, leaf in structs(where, mesh).items()}
    path = tmp_path_factory.mktemp("model") / "params"
    write_params(path, params)
    return path


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_back_in_another_dtype_on_another_mesh(checkpoint, dtype):
    where = {"lm.embed.weight": P(None, "tensor"), "lm.layers.mlp.up.weight": P(None, "tensor", "data")}
    wanted = structs(where, make_mesh({"data": 2, "tensor": 4}), dtype)
    params = read_params(checkpoint, wanted)
    assert params.keys() == VALUES.keys()
    for path, value in params.items():
        assert value.dtype == dtype and value.sharding == wanted[path].sharding, path
        np.testing.assert_array_equal(value, VALUES[path].astype(dtype))
    assert params["lm.layers.mlp.up.weight"].addressable_shards[0].data.shape == (3, 2, 12)


def test_on_one_device(checkpoint):
    params = read_params(checkpoint, structs({}, make_mesh({}, jax.devices()[3:4])))
    np.testing.assert_array_equal(params["lm.norm.scale"], VALUES["lm.norm.scale"])
    assert params["lm.norm.scale"].devices() == {jax.devices()[3]}


@pytest.mark.parametrize(
    ("drop", "add", "sentence"),
    [
        (["lm.norm.scale"], {}, "does not fit the model: lm.norm.scale is not of this model;"),
        ([], {"lm.head.weight": (16, 8)}, "does not fit the model: lm.head.weight is missing;"),
        ([], {"lm.norm.scale": (5,)}, r"does not fit the model: lm.norm.scale is \(7,\), not \(5,\);"),
    ],
)
def test_other_parameters_are_refused_by_name(checkpoint, drop, add, sentence):
    mesh = make_mesh({"fsdp": 8})
    wanted = {path: leaf for path, leaf in structs({}, mesh).items() if path not in drop}
    wanted |= {path: jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, P())) for path, s in add.items()}
    with pytest.raises(InputError, match=sentence):
        read_params(checkpoint, wanted)


def test_a_long_list_is_cut(checkpoint):
    mesh = make_mesh({"fsdp": 8})
    extra = jax.ShapeDtypeStruct((1,), jnp.float32, sharding=NamedSharding(mesh, P()))
    wanted = structs({}, mesh) | {f"more.{index}": extra for index in range(10)}
    with pytest.raises(InputError, match=r"more.7 is missing and 2 more;"):
        read_params(checkpoint, wanted)


def test_what_is_no_checkpoint(tmp_path):
    wanted = structs({}, make_mesh({"fsdp": 8}))
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        with pytest.raises(InputError, match=f"{name} is no checkpoint with parameters") as caught:
            read_params(tmp_path / name, wanted)
        assert "\n" not in str(caught.value)


def test_an_existing_checkpoint_is_not_written_over(checkpoint):
    with pytest.raises(InputError, match="params already exists"):
        write_params(checkpoint, {"lm.norm.scale": jnp.zeros(7)})
    mesh = make_mesh({"fsdp": 8})
    np.testing.assert_array_equal(read_params(checkpoint, structs({}, mesh))["lm.norm.scale"], VALUES["lm.norm.scale"])


def test_locate(tmp_path):
    with pytest.raises(InputError, match="holds neither params/ nor checkpoints/STEP"):
        locate(tmp_path)
    for name in ("9", "10", "11.being-written", "latest"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert locate(tmp_path) == tmp_path / "checkpoints" / "10"  # by number, and only whole ones
    (tmp_path / "params").mkdir()
    assert locate(str(tmp_path)) == tmp_path / "params"
