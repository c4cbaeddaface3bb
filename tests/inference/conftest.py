"""A small model with random weights large enough that its answers vary."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import sizes
from internvl_jax import data
from internvl_jax.data.media import tiling
from internvl_jax.models import FlashConfig, InternVL, InternVLConfig, Runtime
from internvl_jax.sharding import abstract, bind

CONFIG = sizes.like(
    sizes.TINY,
    {"image_size": 28, "patch_size": 7, "width": 36, "layers": 2, "heads": 3, "mlp": 37, "init_std": 0.2},
    {
        "vocab": 311,
        "width": 40,
        "layers": 3,
        "heads": 6,
        "kv_heads": 2,
        "head_width": 14,
        "mlp": 53,
        "init_std": 0.3,
    },
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


@pytest.fixture(scope="session")
def flash_model(config, params) -> InternVL:
    """The same model with a random router and compressed branch."""
    flash = FlashConfig(relative_threshold=0.0, absolute_threshold=0.0, heads=4, dropout=0.1)
    config = dataclasses.replace(config, flash=flash)
    graphdef, specs = abstract(lambda rngs: InternVL(config, rngs, Runtime(dtype=jnp.float32)))
    rng = np.random.default_rng(6)
    more = {
        path: jnp.asarray(rng.normal(float(path.endswith("scale")), 0.3, spec.shape), jnp.float32)
        for path, spec in specs.items()
        if path not in params
    }
    return bind(graphdef, params | more)
