"""A model of pairwise different prime sizes, its random parameters, and released directories written from them."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoint_convert.rows import to_released
from checkpoint_convert.tables import TABLES
from configs.models import sizes
from internvl_jax.models import InternVL, InternVLConfig, Runtime, TextConfig
from internvl_jax.sharding import structure


def make_config(qk_norm: bool = False, tied: bool = False) -> InternVLConfig:
    vision = {"image_size": 28, "patch_size": 7, "width": 3 * 5, "layers": 2, "heads": 3, "mlp": 23}
    vision |= {"layer_scale_init": 0.1, "qk_norm": qk_norm, "qkv_bias": not qk_norm}
    vision |= {"norm": "rms_norm" if qk_norm else "layer_norm", "init_std": 0.02}
    text = {"vocab": 53, "width": 19, "layers": 3, "heads": 8, "kv_heads": 2, "head_width": 14, "mlp": 29}
    text |= {"rope_theta": 1e6, "tie_embeddings": tied, "init_std": 0.02}
    return sizes.like(sizes.TINY, vision, text, image_token_id=41)


def make_specs(config: InternVLConfig):
    return structure(InternVL, config, Runtime())[1]


def random_params(config: InternVLConfig) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {path: random.normal(size=spec.shape).astype(np.float32) for path, spec in make_specs(config).items()}


def hf_json(config: InternVLConfig) -> dict:
    vision, text = config.vision, config.text
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": config.downsample_ratio,
        "image_token_id": config.image_token_id,
        "tie_word_embeddings": text.tie_embeddings,
        "vision_config": {
            "attention_bias": vision.qkv_bias,
            "hidden_size": vision.width,
            "image_size": [vision.image_size] * 2,
            "initializer_range": vision.init_std,
            "intermediate_size": vision.mlp,
            "layer_norm_eps": vision.norm_eps,
            "layer_scale_init_value": vision.layer_scale_init,
            "norm_type": vision.norm,
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "patch_size": [vision.patch_size] * 2,
            "use_qk_norm": vision.qk_norm,
        },
        "text_config": _text_json(text),
    }


def github_json(config: InternVLConfig) -> dict:
    vision, text = config.vision, config.text
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": config.downsample_ratio,
        "force_image_size": vision.image_size,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": text.tie_embeddings,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "drop_path_rate": vision.drop_path,
            "hidden_size": vision.width,
            "image_size": vision.image_size,
            "initializer_factor": vision.layer_scale_init,
            "initializer_range": vision.init_std,
            "intermediate_size": vision.mlp,
            "layer_norm_eps": vision.norm_eps,
            "norm_type": vision.norm,
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "patch_size": vision.patch_size,
            "qk_normalization": vision.qk_norm,
            "qkv_bias": vision.qkv_bias,
        },
        "llm_config": {"architectures": ["Qwen3ForCausalLM"], **_text_json(text)},
    }


def _text_json(text: TextConfig) -> dict:
    return {
        "head_dim": text.head_width,
        "hidden_size": text.width,
        "initializer_range": text.init_std,
        "intermediate_size": text.mlp,
        "model_type": text.family,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "num_key_value_heads": text.kv_heads,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "vocab_size": text.vocab,
    }


class Factory:
    """What the tests of this folder share, as one fixture (test folders are not packages)."""

    config = staticmethod(make_config)
    specs = staticmethod(make_specs)
    params = staticmethod(random_params)

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def json(self, form: str, config: InternVLConfig) -> dict:
        return {"hf": hf_json, "github": github_json}[form](config)

    def tensors(self, form: str, config: InternVLConfig) -> dict[str, np.ndarray]:
        rows = TABLES[form, "qwen3"].rows
        return {name: np.ascontiguousarray(array) for name, array in to_released(rows, random_params(config))}

    def released(self, form: str, config: InternVLConfig, tensors: dict[str, np.ndarray] | None = None) -> pathlib.Path:
        """A released directory; `tensors` replace those of `config`'s random parameters."""
        folder = self._folder / form
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.json(form, config)))
        save_file(self.tensors(form, config) if tensors is None else tensors, folder / "model.safetensors")
        return folder


@pytest.fixture
def factory(tmp_path: pathlib.Path) -> Factory:
    return Factory(tmp_path)
