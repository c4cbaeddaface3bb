"""A description reads headers only, and says what a load would have found."""

import dataclasses
import json
import re

import pytest
from safetensors.numpy import load_file, save_file

from checkpoint_convert import convert, describe
from checkpoint_convert.hf_config import read_config
from checkpoint_convert.source import Tensor
from configs.models.sizes import SIZES
from internvl_jax.data import train_bpe
from internvl_jax.errors import InputError
from tests import forks

CASES = {  # format, family, tokens of a tile, parameters
    "chat_qwen3_github": ("github", "qwen3", 4, 306_960),
    "hf_qwen3": ("hf", "qwen3", 4, 306_960),
    "hf_qwen3moe": ("hf", "qwen3_moe", 4, 316_896),
    "flash_qwen3_github": ("github", "qwen3", 256, None),
    "vit6b_github": ("vit", "intern_vit", None, None),
}


@pytest.fixture(autouse=True)
def _no_reading(monkeypatch):
    """Reading a released tensor is an error in these tests."""
    monkeypatch.setattr(Tensor, "array", lambda self: pytest.fail("a weight was read"))


@pytest.mark.parametrize("case", CASES)
def test_released(golden, case):
    report = describe(golden / case, SIZES)
    form, family, tokens, parameters = CASES[case]
    assert (report["format"], report["family"], report["tokens_per_tile"]) == (form, family, tokens)
    shards = [load_file(shard) for shard in (golden / case).glob("*.safetensors")]
    assert report["parameters"] == sum(array.size for shard in shards for array in shard.values())
    assert parameters in (None, report["parameters"])
    assert report["bytes"] == 4 * report["parameters"] and report["dtypes"] == {"float32": report["parameters"]}
    wanted = {"tokens_per_compressed_tile": 64, "relative_threshold": 0.25, "absolute_threshold": 0.35}
    assert report["flash"] == (wanted if case.startswith("flash") else None)
    assert report["size"] is report["stage"] is report["template"] is report["special_tokens"] is None


def test_a_checkpoint_with_its_adapter_wrapped_in(golden, monkeypatch):
    """Parameters are the model's."""
    monkeypatch.undo()
    folder = golden / "lora_chat_qwen3_github" / "official_wrapped"
    found, base = describe(folder, SIZES), describe(golden / "chat_qwen3_github", SIZES)
    adapter = found.pop("adapter")
    assert {**found, "adapter": None} == base
    assert (adapter["base"], adapter["ranks"], adapter["alphas"], adapter["whole"]) == (None, [4], [8.0], [])
    assert {"lm.layers.mlp.up", "vit.layers.attn.qkv"} <= set(adapter["weights"])


def test_converted_says_the_same(golden, tmp_path, monkeypatch):
    monkeypatch.undo()
    convert(golden / "hf_qwen3moe", tmp_path / "ours")
    ours, released = (describe(directory, SIZES) for directory in (tmp_path / "ours", golden / "hf_qwen3moe"))
    assert ours == released | {"format": "orbax"}


def test_size_stage_and_processor(factory, tmp_path):
    config = factory.config()
    values = factory.json("github", config) | {"min_dynamic_patch": 2, "max_dynamic_patch": 12, "use_thumbnail": True}
    directory = factory.released("github", config)
    tokenizer = train_bpe(["a b"], 280)
    tokenizer.save(directory)
    (directory / "config.json").write_text(json.dumps(values))
    directory = directory.rename(directory.parent / "InternVL3_5-1B-Instruct")
    named = {"mine": dataclasses.replace(config, image_token_id=5), "1b": SIZES["1b"]}
    report = describe(directory, named)
    assert (report["size"], report["stage"], report["tiles"]) == ("mine", "instruct", [2, 12])
    assert report["template"] == "internvl2_5" and report["special_tokens"]["<IMG_CONTEXT>"] == tokenizer.image_context


def test_a_flash_size_is_named_whatever_its_thresholds(golden):
    config = read_config(golden / "flash_qwen3_github").model(312)
    plain = dataclasses.replace(config, flash=None)
    other = dataclasses.replace(config, flash=SIZES["1b-flash"].flash)
    assert describe(golden / "flash_qwen3_github", {"plain": plain, "flash": other})["size"] == "flash"


def test_a_missing_tensor_is_named(golden, tmp_path):
    tensors = load_file(golden / "chat_qwen3_github" / "model.safetensors")
    del tensors["mlp1.1.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden / "chat_qwen3_github" / "config.json").read_text())
    with pytest.raises(InputError, match=r"missing: mlp1\.1\.bias"):
        describe(tmp_path, SIZES)


def test_a_config_without_model_is_named(golden, tmp_path, monkeypatch):
    monkeypatch.undo()
    convert(golden / "hf_qwen3", tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"model of config\.json is None, not an object"):
        describe(tmp_path / "ours", SIZES)


def test_the_launcher(golden, tmp_path):
    done = forks.python("-m", "launch.inspect", f"--checkpoint={golden / 'hf_qwen3'}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == describe(golden / "hf_qwen3", SIZES)
    assert re.findall(r"^(\w+) +(none|unknown)$", done.stdout, re.MULTILINE) == [
        ("size", "unknown"),
        ("flash", "none"),
        ("stage", "unknown"),
        ("template", "unknown"),
        ("tiles", "unknown"),
        ("special_tokens", "unknown"),
        ("adapter", "none"),
    ]
    done = forks.python("-m", "launch.inspect", f"--checkpoint={tmp_path}")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
