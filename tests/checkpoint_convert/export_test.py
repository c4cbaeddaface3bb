"""What leaves this project is what came in, bit by bit, and loads in the PyTorch world as it is."""

import dataclasses
import json

import jinja2
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from checkpoint_convert import conversion, convert, load_model, load_released, sink
from checkpoint_convert.hf_config import read_config
from checkpoint_convert.released import load_bare
from checkpoint_convert.side_files import jinja
from checkpoint_convert.source import INDEX, open_directory
from internvl_jax.data import train_bpe
from internvl_jax.data.text.templates import INTERNVL2_5
from internvl_jax.errors import InputError
from internvl_jax.inference.load import save_model
from internvl_jax.sharding import PRESETS, flatten, make_mesh, params_io

FAMILIES = ("qwen3", "qwen3moe", "gptoss")


def tensors_of(directory):
    """name -> (shape, dtype, bytes)."""
    return {
        name: (tensor.shape, tensor.dtype.name, tensor.array().tobytes())
        for name, tensor in open_directory(directory).items()
    }


def settings(directory):
    """config.json without what says nothing about the model."""
    values = json.loads((directory / "config.json").read_text())
    values.pop("transformers_version", None)
    for part in ("text_config", "llm_config"):
        values.get(part, {}).pop("tie_word_embeddings", None)  # transformers 4.55 leaves out the default
    return values


CASES = [*(f"chat_{name}_github" for name in FAMILIES), *(f"hf_{name}" for name in FAMILIES), "flash_qwen3_github"]


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(golden, tmp_path, case):
    form = "hf" if case.startswith("hf") else "github"
    convert(golden / case, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", form)
    assert tensors_of(tmp_path / "back") == tensors_of(golden / case)
    assert settings(tmp_path / "back") == settings(golden / case)


@pytest.mark.parametrize("name", FAMILIES)
def test_github_to_hf_and_back(golden, tmp_path, name):
    github, hf = golden / f"chat_{name}_github", golden / f"hf_{name}"
    convert(github, tmp_path / "hf", "hf")
    assert tensors_of(tmp_path / "hf") == tensors_of(hf)
    convert(tmp_path / "hf", tmp_path / "github", "github")
    assert tensors_of(tmp_path / "github") == tensors_of(github)
    assert read_config(tmp_path / "github").model(312) == read_config(github).model(312)


@pytest.mark.parametrize("case", ["vit300m_github", "vit6b_github"])
def test_a_tower_alone(golden, tmp_path, case):
    convert(golden / case, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "github")
    assert tensors_of(tmp_path / "back") == tensors_of(golden / case)
    assert settings(tmp_path / "back") == settings(golden / case)
    with pytest.raises(InputError, match="no format for a vision tower alone"):
        convert(tmp_path / "ours", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()


def test_flash_has_no_hf_format(golden, tmp_path):
    with pytest.raises(InputError, match="no format for Flash models; use --to=github"):
        convert(golden / "flash_qwen3_github", tmp_path / "hf", "hf")
    assert not list(tmp_path.iterdir())


def test_several_files_have_an_index(golden, tmp_path, monkeypatch):
    monkeypatch.setattr(sink, "MAX_SHARD", 300_000)
    convert(golden / "chat_qwen3moe_github", tmp_path / "ours", "github")
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))] and len(files) > 3
    assert all((tmp_path / "ours" / file).stat().st_size < 330_000 for file in files)
    assert tensors_of(tmp_path / "ours") == tensors_of(golden / "chat_qwen3moe_github")
    index = json.loads((tmp_path / "ours" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(len(part[2]) for part in tensors_of(tmp_path / "ours").values())


@pytest.mark.parametrize("way", ["load", "convert"])
def test_a_flipped_bit_of_what_was_written_is_found(factory, tmp_path, monkeypatch, way):
    monkeypatch.setattr(conversion, "_SLICE", 300)  # large parameters are written in pieces
    monkeypatch.setattr(sink, "_CHECKED", 100)  # and checked in smaller ones
    convert(factory.released("hf", factory.config()), tmp_path / "ours", "hf")
    for pieces in json.loads((tmp_path / "ours" / "checksums.json").read_text()).values():
        ends = [start + size for start, size, _ in pieces]
        assert [start for start, _, _ in pieces] == [0, *ends[:-1]] and max(size for _, size, _ in pieces) <= 100
    file = tmp_path / "ours" / "model.safetensors"
    use = {"load": lambda: load_bare(tmp_path / "ours", "float32", None), "convert": None}[way]
    use = use or (lambda: convert(tmp_path / "ours", tmp_path / "again", "hf"))
    random, whole = np.random.default_rng(1), file.read_bytes()
    for byte in random.integers(8 + int.from_bytes(whole[:8], "little"), len(whole), size=5):
        content = bytearray(whole)
        content[byte] ^= 1 << int(random.integers(8))
        file.write_bytes(content)
        with pytest.raises(
            InputError, match=r"model.safetensors is damaged from byte \d+ on .*; copy it again, or remove"
        ):
            use()
    file.write_bytes(whole)
    (tmp_path / "ours" / "checksums.json").write_text('{"language_model.lm_head.weight": 3}')
    with pytest.raises(InputError, match=r"checksums.json is damaged .*; copy it again or remove it"):
        use()
    (tmp_path / "ours" / "checksums.json").unlink()
    use()  # as checkpoints that others wrote


def test_types_may_differ_from_tensor_to_tensor(factory, tmp_path):
    """Wide types come first in a file, which keeps them aligned."""
    tensors = factory.tensors("github", factory.config())
    tensors = {name: a if "norm" in name else a.astype(ml_dtypes.bfloat16) for name, a in tensors.items()}
    released = factory.released("github", factory.config(), tensors)
    convert(released, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "github")
    assert tensors_of(tmp_path / "back") == tensors_of(released)
    assert all(tensor.offset % tensor.dtype.itemsize == 0 for tensor in open_directory(tmp_path / "back").values())


@pytest.mark.parametrize("tied", [False, True])
def test_large_parameters_are_written_in_slices(factory, tmp_path, monkeypatch, tied):
    monkeypatch.setattr(conversion, "_SLICE", 300)
    released = factory.released("hf", factory.config(tied=tied))
    convert(released, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert tensors_of(tmp_path / "back") == tensors_of(released)
    assert read_config(tmp_path / "back").model(None) == read_config(released).model(None)


def test_parameters_that_are_zero(factory, tmp_path):
    tensors = {name: np.zeros_like(array) for name, array in factory.tensors("hf", factory.config()).items()}
    released = factory.released("hf", factory.config(), tensors)
    convert(released, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert tensors_of(tmp_path / "back") == tensors_of(released)
    assert not any(np.any(array) for array in flatten(load_bare(tmp_path / "ours", "float32", None)).values())


def test_another_dtype(factory, tmp_path):
    released = factory.released("github", factory.config())
    convert(released, tmp_path / "half", "github", "bfloat16")
    tensors = factory.tensors("github", factory.config())
    wanted = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    assert tensors_of(tmp_path / "half") == {
        name: (array.shape, "bfloat16", array.tobytes()) for name, array in wanted.items()
    }
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_numbers_that_another_dtype_can_not_hold(factory, tmp_path):
    tensors = factory.tensors("hf", factory.config())
    tensors["language_model.model.norm.weight"][3] = 1e6
    released = factory.released("hf", factory.config(), tensors)
    for to in ("orbax", "github"):
        with pytest.raises(InputError, match=r"not finite: lm\.norm\.scale as float16"):
            convert(released, tmp_path / "half", to, "float16")
    assert not (tmp_path / "half").exists()


@pytest.fixture
def spoken(factory):
    """A released GitHub-format directory with a tokenizer, and code beside it."""
    tokenizer = train_bpe(["What is in the picture? A red circle. user assistant"] * 3, 300)
    config = factory.config()
    text = dataclasses.replace(config.text, vocab=331)
    config = dataclasses.replace(config, text=text, image_token_id=tokenizer.image_context)
    directory = factory.released("github", config)
    values = factory.json("github", config) | {"min_dynamic_patch": 2, "max_dynamic_patch": 5, "use_thumbnail": True}
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "modeling_internvl_chat.py").write_text("raise SystemExit('code of a checkpoint must not run')")
    tokenizer.save(directory)
    return directory


MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (90, 40), "red")},
            {"type": "text", "text": "What is in the picture?"},
        ],
    },
    {"role": "assistant", "content": "A red circle."},
    {"role": "user", "content": "Is it?"},
]


@pytest.mark.parametrize("path", ["hf", "orbax hf", "hf github", "orbax github", "hf orbax github"])
def test_the_result_is_used_at_once(spoken, tmp_path, path):
    model, processor = load_released(spoken, "float32")
    source = spoken
    for i, form in enumerate(path.split()):
        convert(source, tmp_path / str(i), form)
        source = tmp_path / str(i)
    again, inputs = load_released(source, "float32")
    assert inputs.to_dict() == processor.to_dict() and again.config == model.config
    assert inputs.stop_ids == processor.stop_ids
    np.testing.assert_array_equal(inputs(MESSAGES).tokens_T, processor(MESSAGES).tokens_T)
    # Code travels between directories of its own format, as text.
    assert (source / "modeling_internvl_chat.py").exists() == (path == "orbax github")
    assert json.loads((source / "generation_config.json").read_text())["eos_token_id"] == list(processor.stop_ids)


def test_files_of_the_hf_format(spoken, tmp_path):
    convert(spoken, tmp_path / "hf", "hf")
    read = lambda name: json.loads((tmp_path / "hf" / name).read_text())
    assert read("processor_config.json")["image_seq_length"] == 4
    assert read("tokenizer_config.json")["extra_special_tokens"]["context_image_token"] == "<IMG_CONTEXT>"
    preprocessor = read("preprocessor_config.json")
    assert (preprocessor["min_patches"], preprocessor["max_patches"]) == (2, 5)
    assert preprocessor["size"] == {"height": 28, "width": 28}
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == jinja(INTERNVL2_5)


def test_files_of_the_github_format(spoken, tmp_path):
    """What was trained here, and so came without them, gets those of the release."""
    model, processor = load_released(spoken, "float32")
    save_model(tmp_path / "run", flatten(model), model.config, processor)
    convert(tmp_path / "run", tmp_path / "out", "github")
    preprocessor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (preprocessor["size"], preprocessor["crop_size"], preprocessor["image_mean"][0]) == (28, 28, 0.485)
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert template == jinja(INTERNVL2_5, "<image>") and "<image>\\n" in template and "IMG_CONTEXT" not in template
    # One that came along stays, wherever it stands.
    (tmp_path / "run" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "mine"}))
    convert(tmp_path / "run", tmp_path / "again", "github")
    assert not (tmp_path / "again" / "chat_template.jinja").exists()


@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[2:], [{"role": "system", "content": "Be brief."}, *MESSAGES]])
def test_the_template_of_the_hf_format_writes_the_same_prompt(spoken, messages):
    _, processor = load_released(spoken, "float32")
    rendered = jinja2.Template(jinja(INTERNVL2_5)).render(messages=messages, add_generation_prompt=True)
    inputs = processor(messages)
    for count in inputs.image_token_counts:
        rendered = rendered.replace("<IMG_CONTEXT>", "<img>" + "*" * count + "</img>", 1)
    tokens = processor.tokenizer.encode_special(rendered.replace("*", "<IMG_CONTEXT>"))
    np.testing.assert_array_equal(tokens, inputs.tokens_T)


def test_a_trained_sharded_state_leaves_as_an_imported_one(golden, tmp_path):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = load_model(golden / "hf_qwen3", "float32", mesh, PRESETS["fsdp_tp"])
    params = {path: array + 1 for path, array in flatten(model).items()}
    params_io.write_params(tmp_path / "run" / "params", params)
    values = {"format": 1, "model": model.config.to_dict(), "processor": None}
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    convert(tmp_path / "run", tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "github", "github")
    again = load_model(tmp_path / "github", "float32", image_token_id=312)
    assert all(np.array_equal(array, params[path]) for path, array in flatten(again).items())


def test_what_is_not_finite_does_not_leave(spoken, tmp_path):
    model, processor = load_released(spoken, "float32")
    params = flatten(model)
    params["lm.layers.mlp.up.weight"] = params["lm.layers.mlp.up.weight"].at[1, 2, 3].set(np.nan)
    save_model(tmp_path / "run", params, model.config, processor)
    with pytest.raises(InputError, match=r"not finite: lm\.layers\.mlp\.up\.weight"):
        convert(tmp_path / "run", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()


def test_the_source_is_left_alone(spoken, tmp_path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in spoken.iterdir()}
    convert(spoken, tmp_path / "ours")
    with pytest.raises(InputError, match="already exists"):
        convert(spoken, tmp_path / "ours", "hf")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in spoken.iterdir()}


# transformers itself, where it is installed.


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_every_key_and_computes_the_same(golden, tmp_path, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    convert(golden / f"chat_{name}_github", tmp_path / "hf", "hf")
    model, info = transformers.InternVLForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values())
    model.config.image_token_id = model.model.config.image_token_id = 312
    inputs, outputs = np.load(golden / f"hf_{name}" / "inputs.npz"), np.load(golden / f"hf_{name}" / "outputs.npz")
    with torch.no_grad():
        given = {key: torch.tensor(inputs[key]) for key in ("input_ids", "attention_mask", "pixel_values")}
        logits = model(**given).logits.numpy()
    real = inputs["attention_mask"] > 0
    np.testing.assert_allclose(logits[real], outputs["logits"][real], atol=3e-4 if name == "gptoss" else 1e-4)
