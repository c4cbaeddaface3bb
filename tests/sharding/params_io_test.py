"""Parameters on disk: back in any dtype on any mesh, or a sentence that names what is wrong."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.errors import InputError
from internvl_jax.sharding import make_mesh
from internvl_jax.sharding.params_io import create_arrays, locate, open_arrays, read_params, write_params

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
    (tmp_path / "checkpoints" / "9" / "params").mkdir()
    for name in ("12", "013", "²", "٣٣"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "14").write_text("a file")
    (tmp_path / "checkpoints" / "15").symlink_to("nowhere")
    assert locate(tmp_path) == tmp_path / "checkpoints" / "9"  # what holds parameters before what does not
    (tmp_path / "params").mkdir()
    assert locate(str(tmp_path)) == tmp_path / "params"


@pytest.fixture(scope="module", params=["orbax", "slices"])
def written(request, checkpoint, tmp_path_factory):
    """The same parameters, written by orbax or slice by slice."""
    if request.param == "orbax":
        return checkpoint
    path = tmp_path_factory.mktemp("slices") / "params"
    specs = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in VALUES.items()}
    for name, array in create_arrays(path, specs, SHAPES).items():
        array.write(VALUES[name]).result()
    return path


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


@pytest.fixture
def leftovers():
    """Orbax leaves readers of other parameters behind when one fails; they end with the test."""
    yield
    gc.collect()


ends_its_readers = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def data_file(checkpoint):
    """Where the largest parameter's numbers are."""
    return max((path for path in checkpoint.rglob("d/*")), key=lambda path: path.stat().st_size)


def flip(file, byte):
    content = bytearray(file.read_bytes())
    content[byte] ^= 64
    file.write_bytes(content)


@ends_its_readers
def test_a_flipped_bit_is_found_wherever_it_is(copy, leftovers):
    """Where none of the files that are read holds the bit, what is read is right."""
    wanted, found = structs({}, make_mesh({"fsdp": 8})), 0
    random = np.random.default_rng(3)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    for file in [*files, *[data_file(copy)] * 20]:
        byte = int(random.integers(file.stat().st_size))
        flip(file, byte)
        try:
            params = read_params(copy, wanted)
            assert all(np.array_equal(params[name], value) for name, value in VALUES.items()), (file, byte)
        except InputError as error:
            assert str(copy) in str(error) and "\n" not in str(error)
            found += 1
        flip(file, byte)
    assert found >= 20
    assert read_params(copy, wanted).keys() == VALUES.keys()


@ends_its_readers
def test_a_damaged_parameter_is_named(copy, leftovers):
    flip(data_file(copy), 2000)
    sentence = r'copy is damaged .*"lm.layers.mlp.up.weight/.* digest is .*; copy or convert it again'
    with pytest.raises(InputError, match=sentence):
        read_params(copy, structs({}, make_mesh({"fsdp": 8})))
    with pytest.raises(ValueError, match="digest"):
        open_arrays(copy)["lm.layers.mlp.up.weight"].read().result()


@ends_its_readers
@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_text("[]"),
    ],
)
@pytest.mark.parametrize("name", ["params/_METADATA", "params/manifest.ocdbt", "_CHECKPOINT_METADATA", "d"])
def test_an_incomplete_copy_is_one_sentence(copy, leftovers, name, change):
    change(data_file(copy) if name == "d" else copy / name)
    if name == "_CHECKPOINT_METADATA" and (copy / name).exists():
        return  # orbax does without its content
    with pytest.raises(InputError, match=f"^{copy}[a-zA-Z_/]* is (damaged or incomplete|no checkpoint) .*$"):
        read_params(copy, structs({}, make_mesh({"fsdp": 8})))


def test_checkpoints_without_checksums_are_read(tmp_path):
    """As they were written before there were any."""
    specs = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in VALUES.items()}
    for name, array in create_arrays(tmp_path / "old", specs, SHAPES).items():
        spec = array.spec().to_json()
        assert spec["metadata"]["codecs"].pop() == {"name": "crc32c"}
        ts.open(spec, create=True, delete_existing=True).result().write(VALUES[name]).result()
    params = read_params(tmp_path / "old", structs({}, make_mesh({"fsdp": 8})))
    assert all(np.array_equal(params[name], value) for name, value in VALUES.items())
    flip(data_file(tmp_path / "old"), 1000)
    params = read_params(tmp_path / "old", structs({}, make_mesh({"fsdp": 8})))
    assert not all(np.array_equal(params[name], value) for name, value in VALUES.items())
