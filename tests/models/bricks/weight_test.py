"""The product brick: one row is a row of many, in every type. Weights: how one is stored is its own business."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.models import sizes
from internvl_jax.models import FlashConfig, InternVL, token_logprobs, weight_path
from internvl_jax.models.bricks.weight import Weight, dot, product
from internvl_jax.models.transforms.int8 import Int8Weight, dequantised
from internvl_jax.models.transforms.unstack import unstack, unstack_params
from internvl_jax.sharding import abstract, bind


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_one_row_equals_a_row_of_many(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 1, 1, 37)), dtype)
    w = jnp.asarray(rng.normal(size=(53, 37)), dtype)
    many, one = jax.jit(product)(x[:, 0], w), jax.jit(product)(x[1], w)
    assert one.dtype == jnp.float32 and one.shape == (1, 1, 53)
    np.testing.assert_allclose(one[0], many[1], rtol=1e-5, atol=1e-4)
    exact = np.asarray(x[1], np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(one, exact, rtol=1e-5, atol=1e-4)  # exact inputs, float32 sums
    out, back = jax.vjp(dot, x[1], w)
    dx, dw = back(jnp.ones_like(out))
    assert out.dtype == dx.dtype == dtype and dw.shape == w.shape


class Int8(Int8Weight):
    """Also of weights that a model in 8 bits leaves as they are: a table is looked up in."""

    def take(self, numbers, dtype):
        return dequantised(self.int8[...][numbers], self.int8_scale[...][numbers]).astype(dtype)


def in_int8(model):
    """The model with every weight stored that way."""
    for _, module in list(nnx.iter_modules(model)):
        for name, part in list(vars(module).items()):
            if isinstance(part, Weight):
                setattr(module, name, Int8(part))
    return model


def plain_params(params):
    """The parameters of the model whose weights are what integers and scales stand for."""
    plain = {path: value for path, value in params.items() if weight_path(path) is None}
    weights = {weight_path(path) for path in params} - {None}
    return plain | {path: dequantised(params[f"{path}.int8"], params[f"{path}.int8_scale"]) for path in weights}


TINY, MOE = sizes.get("tiny"), sizes.get("tiny-moe")
MODELS = {
    "tied, flash": dataclasses.replace(
        TINY,
        text=dataclasses.replace(TINY.text, tie_embeddings=True),
        flash=FlashConfig(relative_threshold=0.0, absolute_threshold=0.5, heads=2, dropout=0.1),
    ),
    "experts": MOE,
}


def drawn(specs):
    """Random values for parameters that are stored in 8 bits, or not."""
    rng = np.random.default_rng(0)
    draw = {np.dtype(np.int8): lambda shape: rng.integers(-127, 128, shape).astype(np.int8)}
    floats = lambda shape: (rng.random(shape) * 2e-3).astype(np.float32)
    return {path: jnp.asarray(draw.get(np.dtype(spec.dtype), floats)(spec.shape)) for path, spec in specs.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_weight_may_be_stored_in_another_way(name):
    """With no change in any brick: a transform of the structure is enough, and layers come apart as ever."""
    config = dataclasses.replace(MODELS[name], image_token_id=5)
    make = lambda rngs: InternVL(config, rngs)
    plain_graphdef, plain_specs = abstract(make)
    graphdef, specs = abstract(lambda rngs: in_int8(make(rngs)))
    assert not any(path.endswith(".weight") for path in specs)
    q, plain = specs["lm.layers.attn.q.weight.int8"], plain_specs["lm.layers.attn.q.weight"]
    assert (q.shape, q.axes, q.dtype) == (plain.shape, plain.axes, jnp.int8)
    assert specs["lm.layers.attn.q.weight.int8_scale"].axes == ("layers", "heads", None)

    rng = np.random.default_rng(1)
    T, side = config.tokens_per_tile + 3, config.vision.image_size
    tokens_BT = np.array([[7, *[5] * config.tokens_per_tile, 8, 9]], np.int32)
    tiles_GHWC = rng.integers(0, 256, (1, side, side, 3)).astype(np.uint8)

    def run(graphdef, params):
        model = bind(graphdef, params)
        encoded = model.encode(tiles_GHWC)
        rows = tokens_BT, np.ones(1, bool), np.ones((1, T), np.int32), np.arange(T, dtype=np.int32)[None]
        hidden_BTD = model.read(encoded, *rows).hidden_BTD
        return encoded, model.logits(hidden_BTD), token_logprobs(hidden_BTD, model.lm.head_VD, tokens_BT, chunk=4)

    params = drawn(specs)
    found = jax.jit(functools.partial(run, graphdef))(params)
    expected = jax.jit(functools.partial(run, plain_graphdef))(plain_params(params))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), found, expected)
    apart = functools.partial(run, unstack(bind(graphdef, params)))
    np.testing.assert_allclose(jax.jit(apart)(unstack_params(params))[1], found[1], rtol=1e-4, atol=1e-4)
