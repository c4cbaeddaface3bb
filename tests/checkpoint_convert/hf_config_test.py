"""config.json of every published dense size and of both writers comes out right; anything strange is one sentence."""

import dataclasses
import json
import math

import pytest

from checkpoint_convert.hf_config import read_config
from configs.models.sizes import SIZES
from internvl_jax.errors import InputError
from internvl_jax.models import FlashConfig, InternVL, InternVLConfig, Runtime
from internvl_jax.sharding import structure

VIT_300M = """{"architectures": ["InternVisionModel"], "drop_path_rate": 0.1, "hidden_act": "gelu", "hidden_size": 1024,
 "image_size": 448, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 4096,
 "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b", "norm_type": "layer_norm", "num_attention_heads": 16,
 "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14, "qk_normalization": false, "qkv_bias": true}"""
VIT_6B = """{"architectures": ["InternVisionModel"], "drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_size": 3200,
 "image_size": 448, "initializer_factor": 0.1, "initializer_range": 1e-10, "intermediate_size": 12800,
 "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b", "norm_type": "rms_norm", "num_attention_heads": 25,
 "num_channels": 3, "num_hidden_layers": 45, "patch_size": 14, "qk_normalization": true, "qkv_bias": false}"""
QWEN3 = """{{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
 "hidden_size": {width}, "initializer_range": 0.02, "intermediate_size": {mlp}, "max_position_embeddings": 40960,
 "model_type": "qwen3", "num_attention_heads": {heads}, "num_hidden_layers": {layers}, "num_key_value_heads": 8,
 "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
 "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936}}"""
WHOLE = """{{"architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "force_image_size": 448,
 "llm_config": {llm}, "max_dynamic_patch": 12, "min_dynamic_patch": 1, "model_type": "internvl_chat",
 "pad2square": false, "ps_version": "v2", "select_layer": -1, "template": "internvl2_5", "tie_word_embeddings": false,
 "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": true, "vision_config": {vision}}}"""

# name: vision, width, mlp, heads, layers of the language model, parameters of the whole model (paper, table 1)
PUBLISHED = {
    "1b": (VIT_300M, 1024, 3072, 16, 28, 1_060_897_792),
    "2b": (VIT_300M, 2048, 6144, 16, 28, 2_348_347_392),
    "4b": (VIT_300M, 2560, 9728, 32, 36, 4_732_489_216),
    "8b": (VIT_300M, 4096, 12288, 32, 36, 8_528_318_464),
    "14b": (VIT_300M, 5120, 17408, 40, 40, 15_119_523_840),
    "38b": (VIT_6B, 5120, 25600, 64, 64, 38_390_405_504),
}


def read(tmp_path, values):
    (tmp_path / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return read_config(tmp_path)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(tmp_path, size):
    vision, width, mlp, heads, layers, count = PUBLISHED[size]
    text = QWEN3.format(width=width, mlp=mlp, heads=heads, layers=layers)
    config = read(tmp_path, WHOLE.format(llm=text, vision=vision)).model(151671)
    # The released 300M towers name a drop path; what a training uses is its own setting.
    tower = dataclasses.replace(SIZES[size].vision, drop_path=config.vision.drop_path)
    assert config == dataclasses.replace(SIZES[size], vision=tower)
    assert config.vision.drop_path == (0.0 if size == "38b" else 0.1)
    _, specs = structure(InternVL, config, Runtime())
    assert sum(math.prod(spec.shape) for spec in specs.values()) == count


@pytest.mark.parametrize("family", ["qwen3", "qwen3moe", "gptoss"])
def test_both_writers_of_hf_configs_agree(golden, tmp_path, family):
    new = (golden / f"hf_{family}" / "config_tf5.json").read_text()
    assert read(tmp_path, new).model(None) == read_config(golden / f"hf_{family}").model(None)


@pytest.mark.parametrize("family", ["qwen3", "qwen3moe", "gptoss"])
def test_both_formats_agree_where_both_speak(golden, family):
    hf = read_config(golden / f"hf_{family}").model(None)
    github = read_config(golden / f"chat_{family}_github").model(312)
    assert hf.text == github.text and hf.image_token_id == github.image_token_id
    only = {"layer_scale_init": hf.vision.layer_scale_init}  # the HF class names another default
    assert InternVLConfig.from_dict({**github.to_dict(), "vision": {**github.to_dict()["vision"], **only}}) == hf


@pytest.mark.parametrize(
    ("top", "text", "tied"),
    [(False, None, False), (None, None, False), (None, True, True), (True, True, True), (True, False, True)],
)
def test_tied_embeddings_as_each_writer_says_it(factory, tmp_path, top, text, tied):
    values = factory.json("hf", factory.config())
    for part, flag in ((values, top), (values["text_config"], text)):
        part.pop("tie_word_embeddings", None)
        if flag is not None:
            part["tie_word_embeddings"] = flag
    assert read(tmp_path, values).model(None).text.tie_embeddings is tied


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["architectures"], ["LlavaForConditionalGeneration"], "unknown architecture 'LlavaForConditionalGeneration'"),
        (["architectures"], None, "unknown architecture None"),
        (["text_config", "model_type"], "qwen2_moe", "language model is qwen2_moe"),
        (["text_config", "model_type"], "llama", "supported families are qwen3"),
        (["text_config", "architectures"], ["Qwen3MoeForCausalLM"], "language model is qwen3 .Qwen3Moe"),
        (["text_config", "architectures"], ["LlamaForCausalLM"], "LlamaForCausalLM"),
        (["text_config", "head_dim"], "128", "text_config.head_dim is '128'"),
        (["text_config", "hidden_act"], "relu", "text_config.hidden_act is 'relu'"),
        (["text_config", "rope_scaling"], {"factor": 2.0}, "rope_scaling"),
        (
            ["text_config", "rope_parameters"],
            {"rope_type": "yarn", "rope_theta": 1e6},
            "rope_parameters.rope_type is 'yarn'",
        ),
        (["vision_config", "norm_type"], "batch_norm", "norm_type"),
        (["vision_config", "use_mean_pooling"], False, "use_mean_pooling"),
        (["vision_config", "image_size"], [28, 35], "only squares"),
        (["vision_config"], 3, "vision_config is 3"),
    ],
)
def test_what_is_not_computed_here_is_refused(factory, tmp_path, path, value, message):
    values = factory.json("hf", factory.config())
    part = values
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, values).model(None)
    assert "config.json" in str(error.value)


def test_flash(factory, tmp_path):
    values = factory.json("github", factory.config())
    keys = {"flash_mode": True, "flash_relative_threshold": 0.5, "flash_absolute_threshold": 0}
    vision = values["vision_config"] | {"hidden_size": 32, "num_attention_heads": 4}
    config = read(tmp_path, values | keys | {"vision_config": vision}).model(41)
    assert config.flash == FlashConfig(relative_threshold=0.5, absolute_threshold=0.0, heads=16, dropout=0.1)
    assert read(tmp_path, values | keys | {"flash_mode": False}).model(41).flash is None
    for key in ("flash_relative_threshold", "flash_absolute_threshold"):
        with pytest.raises(InputError, match=f"lacks {key}"):
            read(tmp_path, {name: value for name, value in (values | keys).items() if name != key}).model(41)
    with pytest.raises(InputError, match="flash_mode is True, but only False"):
        read(tmp_path, factory.json("hf", factory.config()) | keys).model(41)


@pytest.mark.parametrize("form", ["hf", "github"])
def test_every_key_that_is_read_may_not_be_missing(factory, tmp_path, form):
    optional = {"architectures", "tie_word_embeddings", "force_image_size", "ps_version", "select_layer", "template"}
    values = factory.json(form, factory.config())
    for part, where in ((values, ""), *((values[key], f"{key}.") for key in values if key.endswith("_config"))):
        for key in list(part):
            if key in optional or (key == "model_type" and part is values):
                continue
            value = part.pop(key)
            with pytest.raises(InputError, match=f"lacks {where}{key}"):
                read(tmp_path, values).model(41)
            part[key] = value
    assert read(tmp_path, values).model(41) == factory.config()


def test_the_image_token_has_to_be_known_and_agreed_on(factory, tmp_path):
    with pytest.raises(InputError, match="tokenizer files"):
        read(tmp_path, factory.json("github", factory.config())).model(None)
    with pytest.raises(InputError, match="41 but the tokenizer or reference says 43"):
        read(tmp_path, factory.json("hf", factory.config())).model(43)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "JSON object")])
def test_a_file_that_is_no_config(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_no_config(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is not there"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_types", ["full_attention"] * 4, "layer_types"),
        ("swiglu_limit", 5.0, "swiglu_limit is 5.0"),
        ("attention_bias", False, "attention_bias"),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}, "rope_type is 'linear'"),
        ("sliding_window", None, "sliding_window is None"),
    ],
)
def test_another_gpt_oss_is_refused(golden, tmp_path, key, value, message):
    values = json.loads((golden / "hf_gptoss" / "config.json").read_text())
    values["text_config"][key] = value
    with pytest.raises(InputError, match=message):
        read(tmp_path, json.dumps(values)).model(None)


@pytest.mark.parametrize("family", ["qwen3", "gptoss"])
def test_rope_parameters_of_no_kind_are_of_the_family_s_own(golden, tmp_path, family):
    values = json.loads((golden / f"hf_{family}" / "config_tf5.json").read_text())
    del values["text_config"]["rope_parameters"]["rope_type"]
    assert read(tmp_path, json.dumps(values)).model(None) == read_config(golden / f"hf_{family}").model(None)
