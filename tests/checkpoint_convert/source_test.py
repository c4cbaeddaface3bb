"""Damaged or incomplete directories are refused, with the file's name."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoint_convert.source import INDEX, open_directory
from internvl_jax.errors import InputError

ARRAYS = {
    "a": np.arange(15, dtype=np.float32).reshape(3, 5),
    "b": np.arange(7).astype(ml_dtypes.bfloat16),
    "c": np.arange(6, dtype=np.float16).reshape(2, 3),
}


@pytest.fixture
def single(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    names = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    for file in set(names.values()):
        save_file({name: ARRAYS[name] for name in names if names[name] == file}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return tmp_path


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_tensors_come_out_as_they_went_in(kind, request):
    tensors = open_directory(request.getfixturevalue(kind))
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert tensors[name].dtype == array.dtype and tensors[name].nbytes == array.nbytes
        assert np.array_equal(tensors[name].array(), array)


def test_a_truncated_file(single):
    file = single / "model.safetensors"
    whole = file.read_bytes()
    for length in range(0, len(whole), 11):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.safetensors is damaged or truncated"):
            open_directory(single)


def test_a_flipped_byte_of_the_header_is_noticed_or_changes_a_name_only(single):
    file = single / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(header):
        for bit in (1, 32):
            flipped = bytearray(whole)
            flipped[at] ^= bit
            file.write_bytes(flipped)
            try:
                tensors = open_directory(single)
            except InputError as error:
                assert "model.safetensors" in str(error)
                continue
            # What the format can't notice: a letter of a name, the free text, or space that pads the header.
            assert [(t.shape, t.dtype) for t in tensors.values()] == [(a.shape, a.dtype) for a in ARRAYS.values()] or (
                set(tensors) != set(ARRAYS)
            )


def test_an_index_that_names_a_missing_file(sharded):
    (sharded / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"not there: \['two.safetensors'\]"):
        open_directory(sharded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["weight_map"].pop("b"), r"disagrees .* \['b'\]"),
        (lambda index: index["weight_map"].update(d="one.safetensors"), r"disagrees .* \['d'\]"),
        (lambda index: index["weight_map"].update(a="two.safetensors"), r"disagrees .* \['a'\]|\['a'"),
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (lambda index: index["weight_map"].update(a=3), "no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_its_files(sharded, change, message):
    index = json.loads((sharded / INDEX).read_text())
    change(index)
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        open_directory(sharded)


def test_two_files_with_one_tensor(tmp_path):
    for name in ("a", "b"):
        save_file({"b": ARRAYS["b"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"repeats tensors .*\['b'\]"):
        open_directory(tmp_path)


def test_beside_a_whole_model_nothing_else_is_read(single, caplog):
    wanted = open_directory(single).keys()
    save_file({"c": ARRAYS["b"]}, single / "old.safetensors")
    assert open_directory(single).keys() == wanted
    assert "only model.safetensors is read" in caplog.text and "old.safetensors" in caplog.text


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_an_adapter_beside_the_weights_is_named(kind, request, caplog):
    directory = request.getfixturevalue(kind)
    wanted = open_directory(directory).keys()
    save_file({"base_model.model.a.lora_A.weight": ARRAYS["b"]}, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text("{}")
    assert open_directory(directory).keys() == wanted
    assert "PEFT adapter" in caplog.text and "adapter_config.json, adapter_model.safetensors" in caplog.text


def test_an_adapter_alone_is_no_checkpoint(tmp_path):
    save_file({"base_model.model.a.lora_A.weight": ARRAYS["b"]}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"but a PEFT adapter \(adapter_model.safetensors\); merge it into the model"):
        open_directory(tmp_path)


def test_integers_are_not_weights(tmp_path):
    save_file({"a": np.zeros(3, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"\['I8'\], e.g. a"):
        open_directory(tmp_path)


def test_no_directory_and_no_weights(tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        open_directory(tmp_path / "none")
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        open_directory(tmp_path)
