"""A model directory that launchers are started with."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from configs.models.sizes import get
from internvl_jax import data
from internvl_jax.data.media import tiling
from internvl_jax.inference import save_model
from internvl_jax.models import InternVL, Runtime
from internvl_jax.sharding import structure


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat") / "model"
    config = get("tiny")
    tokenizer = data.train_bpe(["what is it"], 300)
    config = dataclasses.replace(config, image_token_id=tokenizer.image_context)
    image = tiling.ImageConfig(64, config.tokens_per_tile, 1, 1, True, False, tiling.DEFAULT_MAX_PIXELS)
    rng = np.random.default_rng(0)
    specs = structure(InternVL, config, Runtime())[1]
    params = {path: rng.normal(0, 0.1, spec.shape).astype(np.float32) for path, spec in specs.items()}
    params["lm.head.weight"][[tokenizer.im_end, tokenizer.eos]] = 0  # it knows nothing, but says something
    save_model(directory, params, config, data.Processor(image, tokenizer, data.get_template("internvl2_5")))
    PIL.Image.new("RGB", (64, 64), "red").save(directory / "a.png")
    lines = [{"image": "a.png", "question": "what is it", "answer": "x"}] * 3
    (directory / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory
