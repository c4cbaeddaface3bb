"""The model config of this project -> config.json of a released format; the inverse of `hf_config`.

A config.json holds more than this project computes with (ids of begin and end tokens, the longest position, dropout of
other people's trainers). Where the checkpoint came with a config.json, those values are carried over from it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from checkpoint_convert.hf_config import ARCHITECTURES
from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig, ModelKind, TextConfig, VisionConfig, family_of, kind_of

Values = dict[str, Any]

# Of a released config.json: these would contradict what is written, or say how something was stored.
_NOT_CARRIED = ("dtype", "quantization_config", "rope_parameters", "transformers_version", "_name_or_path")
_AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}
_VISION_AUTO_MAP = {
    "AutoConfig": "configuration_intern_vit.InternVisionConfig",
    "AutoModel": "modeling_intern_vit.InternVisionModel",
}


def released_config(
    form: Literal["github", "hf"],
    config: InternVLConfig | VisionConfig,
    processor: Processor | None,
    dtype: str,
    carried: Mapping[str, Any] | None,
) -> Values:
    """The values of config.json.

    Args:
      form: the format to write.
      config: the config of a model, or of a vision tower alone.
      processor: says the bounds of tiles, the template and the ends of an answer.
      dtype: the dtype that most parameters are stored in.
      carried: the config.json that the checkpoint once came with, of either format.

    Raises:
      InputError: the format has no such model.
    """
    carried = carried or {}
    same_form = carried.get("architectures", [None])[0] in {
        name for name, known in ARCHITECTURES.items() if known == form or known == "vit"
    }
    whole = _carry(carried) if same_form else {}
    if isinstance(config, VisionConfig):
        if form == "hf":
            raise InputError("transformers has no format for a vision tower alone; use --to=github")
        return {**whole, **_github_vision(config, dtype)}
    kind = kind_of(config.text)
    if form not in kind.formats:
        raise InputError(f"transformers has no format for {kind.architecture}; use --to=github")
    text = {
        **kind.defaults(config.text),
        **_carry(carried.get("llm_config", carried.get("text_config", {}))),
        **_text(config.text, dtype),
    }
    vision = _carry(carried.get("vision_config", {})) if same_form else {}
    if processor is not None:
        # The config.json that came with the checkpoint may name another end than its tokenizer does.
        ends = {"eos_token_id": processor.tokenizer.eos, "pad_token_id": processor.tokenizer.pad}
        text |= {key: value for key, value in ends.items() if text.get(key) is None}
    if form == "hf":
        if config.flash is not None:
            raise InputError("transformers has no format for Flash models; use --to=github")
        vision |= _hf_vision(config.vision, dtype)
        return {**whole, **_hf(config, dtype), "text_config": text, "vision_config": vision}
    vision |= _github_vision(config.vision, dtype)
    values = {
        **_GITHUB_DEFAULTS,
        "template": family_of(config.text).template,
        **whole,
        **_github(config, dtype),
        "llm_config": text,
        "vision_config": vision,
    }
    if processor is not None:
        image = processor.image_config
        values |= {
            "dynamic_image_size": image.max_tiles > 1,
            "max_dynamic_patch": image.max_tiles,
            "min_dynamic_patch": image.min_tiles,
            "template": processor.template.name,
            "use_thumbnail": image.thumbnail,
        }
        if processor.system is not None:
            values["system_message"] = processor.system
    return values


# What a GitHub-format config.json says of pictures, where no processor says it.
_GITHUB_DEFAULTS = {
    "dynamic_image_size": True,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "use_thumbnail": True,
}


def _carry(values: Mapping[str, Any]) -> Values:
    return {key: value for key, value in values.items() if key not in _NOT_CARRIED}


def _github(config: InternVLConfig, dtype: str) -> Values:
    flash = {}
    if config.flash is not None:
        flash = {
            "flash_absolute_threshold": config.flash.absolute_threshold,
            "flash_mode": True,
            "flash_relative_threshold": config.flash.relative_threshold,
        }
    return {
        **flash,
        "architectures": ["InternVLChatModel"],
        "auto_map": _AUTO_MAP,
        "downsample_ratio": config.downsample_ratio,
        "force_image_size": config.vision.image_size,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "tie_word_embeddings": config.text.tie_embeddings,
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
    }


def _github_vision(vision: VisionConfig, dtype: str) -> Values:
    return {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "auto_map": _VISION_AUTO_MAP,
        "drop_path_rate": vision.drop_path,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": vision.width,
        "image_size": vision.image_size,
        "initializer_factor": vision.layer_scale_init,
        "initializer_range": vision.init_std,
        "intermediate_size": vision.mlp,
        "layer_norm_eps": vision.norm_eps,
        "model_type": "intern_vit_6b",  # also of the 300M tower
        "norm_type": vision.norm,
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "num_hidden_layers": vision.layers,
        "patch_size": vision.patch_size,
        "qk_normalization": vision.qk_norm,
        "qkv_bias": vision.qkv_bias,
        "torch_dtype": dtype,
        "use_flash_attn": False,
    }


def _hf(config: InternVLConfig, dtype: str) -> Values:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": config.downsample_ratio,
        "image_seq_length": config.tokens_per_tile,
        "image_token_id": config.image_token_id,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": config.text.tie_embeddings,
        "torch_dtype": dtype,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _hf_vision(vision: VisionConfig, dtype: str) -> Values:
    return {
        "architectures": ["InternVLVisionModel"],
        "attention_bias": vision.qkv_bias,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": vision.width,
        "image_size": [vision.image_size] * 2,
        "initializer_range": vision.init_std,
        "intermediate_size": vision.mlp,
        "layer_norm_eps": vision.norm_eps,
        "layer_scale_init_value": vision.layer_scale_init,
        "model_type": "internvl_vision",
        "norm_type": vision.norm,
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "num_hidden_layers": vision.layers,
        "patch_size": [vision.patch_size] * 2,
        "projection_dropout": 0.0,
        "torch_dtype": dtype,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": vision.qk_norm,
    }


def _text(text: TextConfig, dtype: str) -> Values:
    kind = kind_of(text)
    fields = {field: value for field, value in vars(text).items() if field != "moe"}
    fields |= {f"moe.{field}": value for field, value in (vars(text.moe) if text.moe else {}).items()}
    return {
        **{key.name: fields[field] for field, key in kind.keys.items()},
        **kind.constants(text),
        **_rope(text, kind),
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "tie_word_embeddings": text.tie_embeddings,
        "torch_dtype": dtype,
    }


def _rope(text: TextConfig, kind: ModelKind) -> Values:
    name = lambda rope: dict.fromkeys(kind.rope_names, rope)
    scaling = None
    if text.yarn is not None:
        scaling = {
            "beta_fast": text.yarn.beta_fast,
            "beta_slow": text.yarn.beta_slow,
            "factor": text.yarn.factor,
            "original_max_position_embeddings": text.yarn.positions,
            **name("yarn"),
            "truncate": False,
        }
    values = {"rope_scaling": scaling, "rope_theta": text.rope_theta}
    if text.ntk is not None:
        values["rope_scaling"] = {"factor": text.ntk.factor, **name("dynamic")}
        values["max_position_embeddings"] = text.ntk.positions
    return values
