"""Adapters beside weights: logits apart and merged, on a mesh, in layers apart, for experts, and dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from configs.models import sizes
from internvl_jax.errors import InputError
from internvl_jax.models import PARTS, AdaptedWeight, LoraConfig, Runtime, merged, plain_path, with_dropout
from internvl_jax.models.bricks.grouped import Groups
from internvl_jax.models.bricks.weight import make_weight
from internvl_jax.models.transforms.lora import AdaptedLinear
from internvl_jax.models.transforms.unstack import unstack, unstack_params
from internvl_jax.sharding import PRESETS, bind, make_mesh, shardings, structure, use

TINY, MOE = (dataclasses.replace(sizes.get(name), image_token_id=5) for name in ("tiny", "tiny-moe"))


def adapted(config, ranks, **more):
    """The config with adapters of these ranks: a number for each layer, or for each part of each layer."""
    weights = []
    for path, layers in sorted(ranks.items()):
        parts = tuple(tuple(layer) if isinstance(layer, tuple) else (layer,) for layer in layers)
        weights.append(AdaptedWeight(path, parts, tuple(tuple(3.0 + k for k in range(len(p))) for p in parts)))
    return dataclasses.replace(config, lora=LoraConfig(tuple(weights), **more))


def ranks_of(config):
    """Adapters on every kind of weight; layers of a stack differ, and one has none."""
    L, vit = config.text.layers, config.vision.layers
    uneven = lambda count: [1 + k % 3 for k in range(count - 1)] + [0]
    feed = [f"lm.layers.mlp.experts.{name}" for name in ("gate", "down")] if config.text.moe else ["lm.layers.mlp.up"]
    ranks = {path: uneven(L) for path in ("lm.layers.attn.q", "lm.layers.attn.o", *feed)}
    ranks |= {"vit.layers.attn.qkv": [(2, 0, 1)] * vit, "vit.layers.mlp.fc2": uneven(vit), "projector.fc1": [3]}
    return ranks | ({} if config.text.tie_embeddings else {"lm.head": [2], "lm.embed": [2]})


def drawn(config, seed=0):
    """Random parameters, of an adapter's second factor too; and what scales it as it is."""
    graphdef, specs = structure(PARTS["all"], config, Runtime())
    rng, scales = np.random.default_rng(seed), {f"{each.path}.weight": each for each in config.lora.weights}
    params = {}
    for path, spec in specs.items():
        size = 0.2 if plain_path(path) is None else 0.05
        params[path] = rng.normal(size=spec.shape).astype(np.float32) * size + path.endswith(
            ("norm.scale", "ls1", "ls2")
        )
        if path.endswith(".weight.scale"):
            scale = config.lora.scales(scales[path.removesuffix(".scale")])
            scale = scale[:, None] if "expert" in spec.axes else scale
            params[path] = np.broadcast_to(scale if "layers" in spec.axes else scale[0], spec.shape).copy()
        if path.endswith("qkv.weight.b"):  # parts have columns of their own
            own = np.array(config.lora.weights[-2].parts)[None] == np.arange(3)[:, None]
            params[path] *= own.reshape(1, 3, 1, 1, -1)
    return graphdef, {path: jnp.asarray(value, jnp.float32) for path, value in params.items()}


def rows(config):
    T, side = config.tokens_per_tile + 3, config.vision.image_size
    tokens_BT = np.array([[7, *[5] * config.tokens_per_tile, 8, 9]] * 4, np.int32)
    tiles_GHWC = np.random.default_rng(1).integers(0, 256, (4, side, side, 3)).astype(np.uint8)
    positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (4, T))
    return tokens_BT, tiles_GHWC, np.ones(4, bool), np.ones((4, T), np.int32), positions_BT


def logits(graphdef, params, *given):
    model = bind(graphdef, params)
    return model.logits(model(*given).hidden_BTD)


@pytest.mark.parametrize(
    "config", [pytest.param(TINY, marks=pytest.mark.soak, id="dense"), pytest.param(MOE, id="experts")]
)
def test_apart_equals_merged_on_any_mesh_and_with_layers_apart(config):
    config = adapted(config, ranks_of(config))
    graphdef, params = drawn(config)
    given = rows(config)
    found = jax.jit(functools.partial(logits, graphdef))(params, *given)
    plain = dataclasses.replace(config, lora=None)
    whole = jax.jit(functools.partial(merged, config=config))(params)
    expected = jax.jit(functools.partial(logits, structure(PARTS["all"], plain, Runtime())[0]))(whole, *given)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    without = {path: jnp.zeros_like(value) if path.endswith(".weight.b") else value for path, value in params.items()}
    assert np.max(np.abs(jax.jit(functools.partial(logits, graphdef))(without, *given) - found)) > 1e-2

    apart = functools.partial(logits, unstack(bind(graphdef, params)))
    np.testing.assert_allclose(jax.jit(apart)(unstack_params(params), *given), found, rtol=1e-4, atol=1e-4)
    mesh, rules = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4]), PRESETS["fsdp_tp"]
    where = shardings(structure(PARTS["all"], config, Runtime())[1], mesh, rules)
    assert where["lm.layers.attn.o.weight.a"].spec == P(None, None, ("tensor",))
    assert where["lm.layers.attn.q.weight.b"].spec == P(None, ("tensor",))

    def spread(params, *given):
        with use(mesh, rules):
            return logits(graphdef, params, *given)

    placed = {path: jax.device_put(value, where[path]) for path, value in params.items()}
    np.testing.assert_allclose(jax.jit(spread)(placed, *given), found, rtol=1e-4, atol=1e-4)


def test_parts_of_a_fused_weight_learn_in_their_own_columns():
    config = adapted(
        TINY, {"vit.layers.attn.qkv": [(2, 0, 1)] * TINY.vision.layers, "vit.layers.mlp.fc1": [1] * TINY.vision.layers}
    )
    graphdef, params = drawn(config)
    loss = lambda params: jnp.sum(jnp.square(logits(graphdef, params, *rows(config))))
    gradient = jax.jit(jax.grad(loss))(params)["vit.layers.attn.qkv.weight.b"]
    assert np.any(gradient[:, 0, ..., :2] != 0) and np.any(gradient[:, 2, ..., 2:] != 0)
    assert not np.any(gradient[:, 1]) and not np.any(gradient[:, 0, ..., 2:]) and not np.any(gradient[:, 2, ..., :2])


def test_groups_may_begin_at_any_expert():
    """As in generation, where the experts of all layers lie in one array."""
    normal, rng = jax.nn.initializers.normal(1.0), np.random.default_rng(0)
    base = make_weight(nnx.Rngs(0), (4, 6), (5,), (("expert", None), (None,)), normal)
    lora = LoraConfig((AdaptedWeight("experts", ((2,),), ((4.0,),)),))
    layer = AdaptedLinear(base, lora.weights[0], lora, nnx.Rngs(1))
    for part in (layer.b, layer.scale):
        part[...] = jnp.asarray(rng.normal(size=part.shape), jnp.float32)
    x, weights = jnp.asarray(rng.normal(size=(5, 5)), jnp.float32), layer.dense()
    found = layer.grouped(x, Groups(jnp.array([2, 3]), 1))
    np.testing.assert_allclose(
        found, np.concatenate([x[:2] @ weights[1].T, x[2:] @ weights[2].T]), rtol=1e-4, atol=1e-5
    )


def test_dropout_acts_with_a_key_alone_and_is_right_on_average():
    ranks = {"lm.layers.attn.q": [2] * TINY.text.layers, "projector.fc1": [3]}
    config, still = (adapted(TINY, ranks, dropout=rate) for rate in (0.5, 0.0))
    graphdef, params = drawn(config)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, params["projector.fc1.weight.a"].shape[1])), jnp.float32)

    def product(graphdef, key):
        model = bind(graphdef, params)
        return (model if key is None else with_dropout(model, key)).projector.fc1(x)

    exact = product(structure(PARTS["all"], still, Runtime())[0], jax.random.key(0))
    np.testing.assert_array_equal(product(graphdef, None), exact)
    many = jax.jit(jax.vmap(functools.partial(product, graphdef)))(jax.random.split(jax.random.key(1), 400))
    spread = np.std(many, axis=0)
    assert np.all(spread > 0)
    assert np.max(np.abs(np.mean(many, axis=0) - exact) / spread) < 5 / np.sqrt(400)
    # In a stack every layer has random numbers of its own.
    keys = with_dropout(bind(graphdef, params), jax.random.key(0)).lm.layers.attn.q
    assert len(np.unique(jax.random.key_data(vars(keys)["weight"].key[...]), axis=0)) == TINY.text.layers


def test_dropout_acts_in_the_layers_of_a_model():
    config = adapted(TINY, {"lm.layers.attn.q": [2] * TINY.text.layers}, dropout=0.5)
    graphdef, params = drawn(config)

    @jax.jit
    def run(key):
        model = with_dropout(bind(graphdef, params), key)
        return model.logits(model(*rows(config)).hidden_BTD)

    one, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.max(np.abs(one - other)) > 1e-3


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"lm.layers.attn.z": [2]}, "does not have: lm.layers.attn.z"),
        ({"lm.layers.attn.q": [2]}, "1 layers"),
        ({"vit.layers.attn.qkv": [(1, 2)] * TINY.vision.layers}, "2 parts"),
    ],
)
def test_an_adapter_of_another_model_is_refused(ranks, message):
    with pytest.raises(InputError, match=message):
        structure(PARTS["all"], adapted(TINY, ranks), Runtime())
