"""The engine draws within a grammar: several answers of a request, others beside them, and answers put back."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import sizes
from internvl_jax import data
from internvl_jax.inference import Engine, Ladders, Request, SamplingParams, Vocabulary
from internvl_jax.models import InternVL, Runtime
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.structured import Grammars
from internvl_jax.sharding import abstract, bind

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "why": {"type": "string", "pattern": "^[a-z ]{200,220}$"},
    },
    "required": ["colour", "count", "why"],
    "additionalProperties": False,
}
CONFIG = sizes.like(
    sizes.TINY,
    {"image_size": 28, "patch_size": 7, "width": 36, "layers": 1, "heads": 3, "mlp": 37},
    {"vocab": 311, "width": 40, "layers": 1, "heads": 4, "kv_heads": 2, "head_width": 10, "mlp": 53},
)


@pytest.fixture(scope="module")
def processor():
    image = data.ImageConfig(28, 4, 1, 3, True, False, 10_000)
    return data.Processor(image, data.train_bpe(["red blue count colour"], 290), data.get_template("internvl2_5"))


@pytest.fixture(scope="module")
def model(processor):
    config = dataclasses.replace(CONFIG, image_token_id=processor.tokenizer.image_context)
    structure = abstract(lambda rngs: InternVL(config, rngs, Runtime(dtype=jnp.float32)))
    rng = np.random.default_rng(5)
    drawn = {path: rng.normal(float(path.endswith("scale")), 0.3, spec.shape) for path, spec in structure[1].items()}
    return bind(structure[0], {path: jnp.asarray(each, jnp.float32) for path, each in drawn.items()})


def test_answers_follow_the_grammar(processor, model):
    """Three answers of one request share what is allowed; they outgrow their short rows on the way."""
    vocabulary = Vocabulary.of(processor)
    grammar = Grammars(processor, vocabulary, Limits()).compile("json_schema", SCHEMA, "off")
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "which?"}]
    prompt = processor(talk, begun=data.PromptSettings("off").begun)
    sampling = SamplingParams(max_new_tokens=600, temperature=1.0)
    allow = grammar.allow(answers=3)
    constrained = Request(prompt.tokens_T, prompt.tiles_GHWC, sampling, seeds=(1, 2, 3), allow=allow)
    free = Request(prompt.tokens_T, prompt.tiles_GHWC, SamplingParams(max_new_tokens=40, temperature=1.0, seed=4))
    ladders = Ladders(prompts=(64, 256), together=(1,), classes=((3, 96), (2, 768)), chunk=64, reserve=8)
    answers, (alone,) = Engine(model, vocabulary, ladders).run([constrained, free])
    for tokens in answers:
        found = json.loads(processor.tokenizer.decode(tokens))
        assert found.keys() == {"colour", "count", "why"}
        assert found["colour"] in ("red", "blue") and 0 <= found["count"] <= 99
    assert len(set(map(tuple, answers))) == 3
    assert allow.failed is None and len(alone) > 0
    assert max(map(len, answers)) > 96  # so it has been moved or put back
