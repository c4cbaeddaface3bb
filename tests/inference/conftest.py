"""A small model with random weights large enough that its answers vary."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax import data
from internvl_jax.data.media import tiling
from internvl_jax.models import InternVL, InternVLConfig, Runtime, TextConfig, VisionConfig
from internvl_jax.sharding import abstract, bind

CONFIG = InternVLConfig(
    vision=VisionConfig(
        image_size=28,
        patch_size=7,
        width=36,
        layers=2,
        heads=3,
        mlp=37,
        norm="layer_norm",
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        drop_path=0.0,
        layer_scale_init=1.0,
        init_std=0.2,
    ),
    text=TextConfig(
        family="qwen3",
        vocab=311,
        width=40,
        layers=3,
        heads=6,
        kv_heads=2,
        head_width=14,
        mlp=53,
        moe=None,
        window=None,
        rope_theta=1e4,
        yarn=None,
        ntk=None,
        norm_eps=1e-6,
        tie_embeddings=False,
        init_std=0.3,
    ),
    downsample_ratio=0.5,
    image_token_id=0,
    flash=None,
)


@pytest.fixture(scope="session")
def processor() -> data.Processor:
    texts = ["what is in the picture? a red circle, a blue square", data.get_template("internvl2_5").default_system] * 3
    tokenizer = data.train_bpe(texts, 307)
    image = tiling.ImageConfig(28, 4, 1, 3, True, False, tiling.DEFAULT_MAX_PIXELS)
    return data.Processor(image, tokenizer, data.get_template("internvl2_5"))


@pytest.fixture(scope="session")
def config(processor) -> InternVLConfig:
    return dataclasses.replace(CONFIG, image_token_id=processor.tokenizer.image_context)


@pytest.fixture(scope="session")
def structure(config):
    return abstract(lambda rngs: InternVL(config, rngs, Runtime(dtype=jnp.float32)))


@pytest.fixture(scope="session")
def params(structure):
    rng = np.random.default_rng(5)  # quicker than compiling an initialiser
    return {
        path: jnp.asarray(rng.normal(float(path.endswith("scale")), 0.3, spec.shape), jnp.float32)
        for path, spec in structure[1].items()
    }


@pytest.fixture
def model(structure, params) -> InternVL:
    return bind(structure[0], params)
