"""Parameters on disk: back in any dtype on any mesh, or a sentence that names what is wrong."""

import os
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.errors import InputError
from internvl_jax.files import whole_folder
from internvl_jax.sharding import make_mesh
from internvl_jax.sharding.checked import WritableArray
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


def test_small_parameters_are_written_by_one_of_the_devices_that_hold_them(tmp_path, caplog):
    """Cutting them up would compile a program a part; shapes that nobody else cuts up show it."""
    array = jax.device_put(np.arange(8 * 1237.0).reshape(8, 1237), NamedSharding(make_mesh({"fsdp": 8}), P()))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        write_params(tmp_path / "params", {"lm.norm.scale": array})
    assert "slice" not in caplog.text and "1237" not in caplog.text
    found = read_params(tmp_path / "params", {"lm.norm.scale": array})
    np.testing.assert_array_equal(found["lm.norm.scale"], array)


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


LARGE = {name: np.random.default_rng(4).normal(size=shape) for name, shape in {"w": (75, 64), "b": (7,)}.items()}
LARGE = {name: value.astype(np.float32) for name, value in LARGE.items()}


def read_large(checkpoint):
    """On eight devices, each of which holds a part of every chunk."""
    mesh = make_mesh({"fsdp": 8})
    where = {"w": P(None, "fsdp"), "b": P()}
    structs = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, where[name]))
        for name, value in LARGE.items()
    }
    return read_params(checkpoint, structs)


def write_slices(path):
    specs = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in LARGE.items()}
    arrays = create_arrays(path, specs, {"w": (25, 64), "b": (7,)})
    for start in (0, 25, 50):
        rows = slice(start, start + 25)
        arrays["w"][rows, :].write(LARGE["w"][rows]).result()
    arrays["b"][...].write(LARGE["b"]).result()


@pytest.fixture(scope="module", params=["orbax", "slices"])
def written(request, tmp_path_factory):
    """Parameters, written by orbax or slice by slice."""
    path = tmp_path_factory.mktemp("written") / "params"
    if request.param == "orbax":
        write_params(path, {name: jnp.asarray(value) for name, value in LARGE.items()})
    else:
        write_slices(path)
    return path


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def data_file(checkpoint):
    return max(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(file, byte):
    content = bytearray(file.read_bytes())
    content[byte] ^= 64
    file.write_bytes(content)


def test_a_flipped_bit_is_found_wherever_it_is(copy):
    """Where none of the files that are read holds the bit, what is read is right."""
    random, found = np.random.default_rng(3), 0
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    for file in [*files, *[data_file(copy)] * 20]:
        byte = int(random.integers(file.stat().st_size))
        flip(file, byte)
        try:
            params = read_large(copy)
            assert all(np.array_equal(params[name], value) for name, value in LARGE.items()), (file, byte)
        except InputError as error:
            assert str(copy) in str(error) and "\n" not in str(error)
            found += 1
        flip(file, byte)
    assert found >= 15
    assert read_large(copy).keys() == LARGE.keys()


def test_a_damaged_parameter_is_named(copy):
    flip(data_file(copy), data_file(copy).stat().st_size // 2)
    with pytest.raises(InputError, match=r'("w/c.* digest|^w in .*copy is damaged).*; copy or convert it again'):
        read_large(copy)


def test_chunks_that_changed_places_are_found(tmp_path):
    write_slices(tmp_path / "p")
    array = open_arrays(tmp_path / "p")["w"]._array
    first, second = array[:25].read().result(), array[25:50].read().result()
    array[:25].write(second).result()
    array[25:50].write(first).result()
    with pytest.raises(InputError, match=r"w in .* is damaged"):
        read_large(tmp_path / "p")


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_text("[]"),
    ],
)
@pytest.mark.parametrize("name", ["params/_METADATA", "params/manifest.ocdbt", "d"])
def test_an_incomplete_copy_is_one_sentence(copy, name, change):
    change(data_file(copy) if name == "d" else copy / name)
    with pytest.raises(InputError, match=f"^{copy}[a-zA-Z_/]* is (damaged or incomplete|no checkpoint) .*$"):
        read_large(copy)


def test_checkpoints_without_checksums_are_read(tmp_path, monkeypatch):
    """As they were written before there were any."""
    monkeypatch.setattr(WritableArray, "write", lambda array, values: array._array.write(values))
    write_slices(tmp_path / "old")
    params = read_large(tmp_path / "old")
    assert all(np.array_equal(params[name], value) for name, value in LARGE.items())
    flip(data_file(tmp_path / "old"), 1000)
    params = read_large(tmp_path / "old")
    assert not all(np.array_equal(params[name], value) for name, value in LARGE.items())


ONE = {"w": jax.ShapeDtypeStruct((3,), np.float32, sharding=SingleDeviceSharding(jax.devices()[0]))}


@pytest.mark.parametrize("name", ["run#3", "what?", "100%", "a%20b", "*", "a b", "größer", "other/.."])
def test_a_folder_has_any_name(tmp_path, name):
    (tmp_path / "other").mkdir()
    write_params(tmp_path / name / "params", {"w": np.arange(3, dtype=np.float32)})
    assert np.array_equal(read_params(tmp_path / name / "params", ONE)["w"], range(3))
    array = create_arrays(tmp_path / name / "new", {"w": ONE["w"]}, {"w": (3,)})["w"]
    array[...].write(np.arange(3, dtype=np.float32)).result()
    assert np.array_equal(read_params(tmp_path / name / "new", ONE)["w"], range(3))


@pytest.mark.parametrize("name", ["a\\b", "[x]", "latin-\udcfc"])
def test_what_would_be_written_elsewhere_is_refused(tmp_path, name):
    for write in (write_params, lambda path, params: create_arrays(path, ONE, {"w": (3,)})):
        with pytest.raises(InputError, match="in its name, which checkpoints can't have; rename it"):
            write(tmp_path / name / "params", {"w": np.zeros(3, np.float32)})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_waits_for_what_orbax_writes(tmp_path, monkeypatch, ctrl_c):
    """orbax writes from a thread of its own, which would go on, and make its folder again, after the removal."""
    save, writers = ocp.save_checkpointables, []

    def write(*what):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        save(*what)

    def in_a_thread(*what):
        writers.append(threading.Thread(target=write, args=what))
        writers[0].start()
        writers[0].join()

    monkeypatch.setattr(ocp, "save_checkpointables", in_a_thread)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out") as partial:
        write_params(partial / "params", {"w": np.zeros(3)})
    writers[0].join()
    assert list(tmp_path.iterdir()) == []
