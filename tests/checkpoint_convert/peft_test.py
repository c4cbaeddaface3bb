"""Adapters in and out: recorded PEFT directories, checkpoints with adapters wrapped in, and what is refused."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoint_convert import convert, load_bare, read_adapter, read_model_config
from checkpoint_convert.adapters import MergedReader
from checkpoint_convert.peft_reader import wrapped_adapter
from checkpoint_convert.peft_writer import write_adapter
from checkpoint_convert.structures import specs_of
from internvl_jax.errors import InputError

HF, CHAT = "lora_hf_qwen3", "lora_chat_qwen3_github"
ADAPTERS = [f"{HF}/lm", f"{HF}/all_rslora", f"{HF}/projector_whole", f"{CHAT}/adapter"]


def base_of(golden, name):
    return golden / name.partition("/")[0].removeprefix("lora_")


def written(golden, name, folder, form):
    config = read_model_config(base_of(golden, name))
    folder.mkdir()
    write_adapter(folder, read_adapter(golden / name, config), config, form, "base")
    return config, load_file(folder / "adapter_model.safetensors")


def product(adapter, path):
    """What an adapter adds to a fused weight."""
    b, scale, a = (adapter.params[f"{path}.{name}"] for name in ("b", "scale", "a"))
    return np.einsum("lcnhr,lr,lrd->lcnhd", b, scale, a)


@pytest.mark.parametrize("name", ADAPTERS)
def test_there_and_back_has_the_same_bits(golden, tmp_path, name):
    form = "hf" if HF in name else "github"
    config, found = written(golden, name, tmp_path / "out", form)
    recorded = load_file(golden / name / "adapter_model.safetensors")
    assert found.keys() == recorded.keys()
    for tensor, value in recorded.items():
        assert found[tensor].tobytes() == value.tobytes() and found[tensor].dtype == value.dtype, tensor
    theirs, ours = (
        json.loads((folder / "adapter_config.json").read_text()) for folder in (golden / name, tmp_path / "out")
    )
    same = ("peft_type", "use_rslora", "lora_dropout", "bias", "use_dora")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    # Read again it is the same adapter, its ranks and scales with it.
    again, before = read_adapter(tmp_path / "out", config), read_adapter(golden / name, config)
    assert again.lora == before.lora and again.params.keys() == before.params.keys()


def test_a_fused_weight_becomes_three_modules_and_one_again(golden, tmp_path):
    """From GitHub's names to HF's and back."""
    _, hf = written(golden, ADAPTERS[3], tmp_path / "hf", "hf")
    layer = "base_model.model.model.vision_tower.encoder.layer.0.attention"
    parts = [hf[f"{layer}.{part}_proj.lora_A.weight"] for part in "qkv"]
    assert (parts[0] == parts[1]).all() and (parts[0] == parts[2]).all()
    config = read_model_config(base_of(golden, ADAPTERS[3]))
    (tmp_path / "github").mkdir()
    write_adapter(tmp_path / "github", read_adapter(tmp_path / "hf", config), config, "github", "base")
    found = load_file(tmp_path / "github" / "adapter_model.safetensors")
    recorded = load_file(golden / ADAPTERS[3] / "adapter_model.safetensors")
    assert found.keys() == recorded.keys() and all((found[name] == recorded[name]).all() for name in recorded)


def test_three_different_modules_become_one_of_their_ranks_together(golden, tmp_path):
    config = read_model_config(base_of(golden, ADAPTERS[1]))
    adapter = read_adapter(golden / ADAPTERS[1], config)
    fused = next(weight for weight in adapter.lora.weights if weight.path == "vit.layers.attn.qkv")
    assert len(fused.widths) == 3 and fused.rank == 12
    _, found = written(golden, ADAPTERS[1], tmp_path / "out", "github")
    name = "base_model.model.vision_model.encoder.layers.{}.attn.qkv.lora_{}.weight"
    layers = [layer for layer in range(config.vision.layers) if name.format(layer, "A") in found]
    assert layers and found[name.format(layers[0], "A")].shape[0] == sum(fused.ranks[layers[0]])
    again = read_adapter(tmp_path / "out", config)
    path = "vit.layers.attn.qkv.weight"
    np.testing.assert_allclose(product(again, path), product(adapter, path), rtol=1e-5, atol=1e-6)


def test_parts_of_other_scales_become_one_of_one_scale(golden, tmp_path):
    """What a part is scaled by more than the first one goes into its second factor."""
    config = read_model_config(base_of(golden, ADAPTERS[1]))
    adapter = read_adapter(golden / ADAPTERS[1], config)
    weights = tuple(
        dataclasses.replace(each, alphas=tuple((layer[0], 3 * layer[1], layer[2] / 2) for layer in each.alphas))
        if each.path == "vit.layers.attn.qkv"
        else each
        for each in adapter.lora.weights
    )
    lora = dataclasses.replace(adapter.lora, weights=weights)
    path = "vit.layers.attn.qkv.weight"
    (fused,) = (each for each in weights if f"{each.path}.weight" == path)
    changed = dataclasses.replace(adapter, lora=lora, params={**adapter.params, f"{path}.scale": lora.scales(fused)})
    write_adapter(tmp_path, changed, config, "github", "base")
    again = read_adapter(tmp_path, config)
    np.testing.assert_allclose(product(again, path), product(changed, path), rtol=1e-5, atol=1e-6)
    assert np.abs(product(again, path) - product(adapter, path)).max() > 1e-3


def test_a_slice_of_a_merged_weight_is_that_of_the_whole(golden):
    """Cut along layers, outputs and inputs."""
    config = read_model_config(base_of(golden, ADAPTERS[1]))
    path, specs = "lm.layers.attn.q.weight", specs_of(config)
    base = np.random.default_rng(0).normal(size=specs[path].shape).astype(np.float32)
    reader = types.SimpleNamespace(specs=specs, num_tensors=1, nbytes=0, read=lambda path, index: base[index])
    merged = MergedReader(reader, read_adapter(golden / ADAPTERS[1], config))
    whole, cut = merged.read(path, (slice(None),) * 4), (slice(1, 2), slice(1, 3), slice(None), slice(3, 9))
    np.testing.assert_allclose(merged.read(path, cut), whole[cut], rtol=1e-6, atol=3e-7)
    assert np.abs(whole[cut] - base[cut]).max() > 1e-3


def test_a_wrapped_checkpoint_has_its_adapter_and_merges(golden, tmp_path):
    folder = golden / CHAT / "official_wrapped"
    adapter = wrapped_adapter(folder, read_model_config(folder))
    assert {len(weight.ranks[0]) for weight in adapter.lora.weights} == {1}
    assert adapter.lora.weights[0].alphas[0] == (8.0,)
    assert load_bare(folder, "float32", 3).config.lora == adapter.lora
    convert(folder, tmp_path / "merged", "github")
    found, recorded = load_file(tmp_path / "merged" / "model.safetensors"), load_file(folder / "merged.safetensors")
    base = load_file(golden / "chat_qwen3_github" / "model.safetensors")
    assert found.keys() == base.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, recorded.get(name, base[name]), atol=1e-6, rtol=0, err_msg=name)
    values = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert values["use_llm_lora"] == values["use_backbone_lora"] == 0
    convert(folder, tmp_path / "adapter", "peft")
    again = read_adapter(tmp_path / "adapter", read_model_config(folder))
    assert again.lora == adapter.lora and all((again.params[p] == adapter.params[p]).all() for p in adapter.params)


def test_an_adapter_is_merged_into_an_export(golden, tmp_path):
    """The tensors that it changes; all others keep their bits."""
    name = ADAPTERS[2]
    convert(base_of(golden, name), tmp_path / "merged", "hf", adapter=golden / name)
    found, recorded = (
        load_file(tmp_path / "merged" / "model.safetensors"),
        load_file(golden / name / "merged.safetensors"),
    )
    files = sorted(base_of(golden, name).glob("model-*.safetensors"))
    base = {tensor: value for file in files for tensor, value in load_file(file).items()}
    for tensor, value in found.items():
        if tensor in recorded:
            np.testing.assert_allclose(value, recorded[tensor], atol=1e-6, rtol=0, err_msg=tensor)
        else:
            assert (value == base[tensor]).all(), tensor


def changed(golden, tmp_path, change_config=None, change_tensors=None):
    """A recorded adapter with something changed in it, read."""
    folder = shutil.copytree(golden / ADAPTERS[0], tmp_path / "changed")
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config, tensors):
        file.chmod(0o644)
    if change_config:
        config.write_text(json.dumps(json.loads(config.read_text()) | change_config))
    if change_tensors:
        found = load_file(tensors)
        change_tensors(found)
        save_file(found, tensors)
    return read_adapter(folder, read_model_config(base_of(golden, ADAPTERS[0])))


@pytest.mark.parametrize(
    "field",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [5]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "OLoRA"},
        {"peft_type": "IA3"},
        {"something_new": 3},
    ],
    ids=lambda field: " ".join(map(str, next(iter(field.items())))),
)
def test_what_is_not_read_is_refused_by_name(golden, tmp_path, field):
    with pytest.raises(InputError, match=next(iter(field))):
        changed(golden, tmp_path, field)


def test_a_model_that_has_an_adapter_takes_no_second_one(golden):
    """Named before anything of it is looked for."""
    config = read_model_config(base_of(golden, ADAPTERS[0]))
    config = dataclasses.replace(config, lora=read_adapter(golden / ADAPTERS[0], config).lora)
    with pytest.raises(InputError, match=r"^the model has an adapter already; merge that first"):
        read_adapter(golden / ADAPTERS[0], config)


LAYER = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop(f"{LAYER}.lora_B.weight"), "missing.*q_proj.lora_B"),
        (lambda found: found.update({f"{LAYER}x.lora_A.weight": np.zeros((4, 64), np.float32)}), "q_projx"),
        (lambda found: found.update({f"{LAYER}.lora_A.weight": np.zeros((4, 65), np.float32)}), "65"),
        (lambda found: found.update({f"{LAYER}.lora_A.weight": np.zeros((3, 64), np.float32)}), "rank 3"),
        (lambda found: found.update({f"{LAYER}.lora_B.weight": np.full((96, 4), np.nan, np.float32)}), "not finite"),
        (lambda found: found.update({f"{LAYER}.lora_magnitude_vector": np.zeros(96, np.float32)}), "DoRA"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(golden, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        changed(golden, tmp_path, change_tensors=change)


def test_a_config_with_an_adapter_goes_there_and_back(golden):
    config = read_model_config(base_of(golden, ADAPTERS[1]))
    adapted = dataclasses.replace(config, lora=read_adapter(golden / ADAPTERS[1], config).lora)
    assert type(adapted).from_dict(json.loads(json.dumps(adapted.to_dict()))) == adapted
    assert "lora" not in config.to_dict()
