"""Weights in 8 bits: the recorded integers, products of what they stand for, on a mesh and with experts, and gradients
through them to adapters.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from checkpoint_convert import load_bare, quantised_tensors, read_safetensors
from configs.models import sizes
from internvl_jax.evaluation import compare_quantised, read_case
from internvl_jax.models import PARTS, Runtime, is_quantised, plain_path, weight_path
from internvl_jax.models.bricks.grouped import Groups
from internvl_jax.models.bricks.weight import Weight
from internvl_jax.models.transforms.int8 import Int8Product, Int8Weight, RoundedWeight, dequantised, rounded
from internvl_jax.sharding import PRESETS, make_mesh, shardings, structure, use
from tests.models.lora_test import adapted, drawn, logits, ranks_of, rows

TINY, MOE = (dataclasses.replace(sizes.get(name), image_token_id=5) for name in ("tiny", "tiny-moe"))


def in_int8(config, params, how="int8"):
    """The config in 8 bits, the structure, its parameters, and those of the model without whose weights are what the
    integers stand for.
    """
    config = dataclasses.replace(config, quantised=how)
    graphdef, specs = structure(PARTS["all"], config, Runtime())
    found, plain = {}, {path: value for path, value in params.items() if not is_quantised(path, how)}
    for path in specs:
        weight = weight_path(path)
        if weight is None:
            found[path] = params[path]
        elif path.endswith(".int8"):
            count = len(specs[path].shape) - len(specs[f"{weight}.int8_scale"].shape)
            found[path], found[f"{weight}.int8_scale"] = rounded(params[weight], count)
            plain[weight] = dequantised(found[path], found[f"{weight}.int8_scale"])
    assert found.keys() == specs.keys() and plain.keys() == params.keys() and len(found) > len(plain)
    return config, graphdef, found, plain


def random_params(config):
    rng, specs = np.random.default_rng(0), structure(PARTS["all"], config, Runtime())[1]
    one = lambda path, spec: rng.normal(size=spec.shape) * 0.05 + path.endswith(("norm.scale", "ls1", "ls2"))
    return {path: jnp.asarray(one(path, spec), jnp.float32) for path, spec in specs.items()}


def test_recorded_integers_and_scales_to_the_bit(golden):
    """As PyTorch rounds."""
    model = load_bare(golden / "hf_qwen3", "float32", None, quantise="int8")
    recorded, names = read_safetensors(golden / "int8_hf_qwen3" / "quantized.safetensors"), set()
    for name, values, scale in quantised_tensors(model, "hf"):
        names |= {f"{name}.int8", f"{name}.scale"}
        np.testing.assert_array_equal(values, recorded[f"{name}.int8"])
        np.testing.assert_array_equal(scale, recorded[f"{name}.scale"])
    assert names == recorded.keys()


@pytest.mark.soak
@pytest.mark.parametrize("axes", [None, {"fsdp": 2, "tensor": 2}])
def test_recorded_answers(golden, axes):
    mesh = None if axes is None else make_mesh(axes, jax.devices()[:4])
    model = load_bare(golden / "hf_qwen3", "float32", None, mesh, "fsdp_tp", quantise="int8")
    inputs, base, _ = read_case(golden / "hf_qwen3")
    report = compare_quantised(model, golden / "int8_hf_qwen3", inputs, base=base)
    # What rounding costs, as recorded.
    assert report.pop("mean_kl") == pytest.approx(8.9e-4, abs=5e-6)
    assert (report.pop("same_argmax"), report.pop("same_greedy_tokens")) == (63 / 65, 25 / 48)
    assert report.pop("logits") < 1e-4 and report.pop("greedy_tokens_equal") is True
    assert report.pop("quantized_names_equal") is True and set(report.values()) == {0.0}


@pytest.mark.parametrize(("config", "mlp"), [(TINY, "mlp"), (MOE, "mlp.experts")], ids=["dense", "experts"])
def test_which_weights_are_integers(config, mlp):
    """No router, and nothing outside of the layers."""
    specs = structure(PARTS["all"], dataclasses.replace(config, quantised="int8"), Runtime())[1]
    expected = {f"attn.{name}" for name in "qkvo"} | {f"{mlp}.{name}" for name in ("gate", "up", "down")}
    assert {weight_path(path) for path in specs} == {None, *(f"lm.layers.{name}.weight" for name in expected)}


def test_rows_of_zeros_and_largest_values():
    w = np.array([[0, 0, 0], [127, -127, 0.5], [1e-45, 0, 0], [3e38, -3e38, 1e38]], np.float32)
    values, scale = jax.jit(rounded, static_argnums=1)(w, 1)
    assert not np.any(values[0]) and scale[0] == 0 and values[1].tolist() == [127, -127, 0] and scale[1] == 1
    assert values[3].tolist() == [127, -127, 42] and np.all(np.isfinite(scale))
    np.testing.assert_array_equal(dequantised(values, scale)[:2], [[0, 0, 0], [127, -127, 0]])


DENSE_AND_EXPERTS = pytest.mark.parametrize("config", [pytest.param(TINY, id="dense"), pytest.param(MOE, id="experts")])


@pytest.mark.soak
@DENSE_AND_EXPERTS
def test_products_on_a_mesh_are_those_of_what_integers_stand_for(config):
    config, graphdef, found, plain = in_int8(config, random_params(config))
    assert any("experts" in path for path in found if path.endswith(".int8")) == (config.text.moe is not None)
    assert all(path.startswith("lm.layers.") and "router" not in path for path in found if weight_path(path))
    given, floats = rows(config), dataclasses.replace(config, quantised=None)
    expected = jax.jit(functools.partial(logits, structure(PARTS["all"], floats, Runtime())[0]))(plain, *given)
    mesh, rules = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4]), PRESETS["fsdp_tp"]
    where = shardings(structure(PARTS["all"], config, Runtime())[1], mesh, rules)
    for path, place in where.items():
        if path.endswith(".int8_scale"):  # scales lie where the outputs of their weights do
            weights = where[path.removesuffix("_scale")]
            assert place.is_equivalent_to(NamedSharding(mesh, P(*weights.spec[: found[path].ndim])), found[path].ndim)

    def spread(params, *given):
        with use(mesh, rules):
            return logits(graphdef, params, *given)

    placed = {path: jax.device_put(value, where[path]) for path, value in found.items()}
    np.testing.assert_allclose(jax.jit(spread)(placed, *given), expected, atol=1e-5)


def test_gradients_go_through_to_inputs_as_through_what_integers_stand_for():
    rng = np.random.default_rng(2)
    groups = Groups(jnp.array([2, 0, 5], jnp.int32), 2)
    x = jnp.asarray(rng.normal(size=(7, 10)), jnp.float32)
    for shape in ((6, 10), (5, 6, 10)):  # of five experts the last three
        metadata = {"axes": (None,) * len(shape), "num_inputs": 1}
        stored = Int8Weight(Weight(jnp.asarray(rng.normal(size=shape), jnp.float32), **metadata))
        ends = []
        for weight in (stored, Weight(stored.dense(), **metadata)):
            multiply = weight.dot if len(shape) == 2 else functools.partial(weight.grouped, groups=groups)
            ends.append(jax.jit(jax.value_and_grad(lambda x, multiply=multiply: jnp.sum(jnp.sin(multiply(x)))))(x))
        jax.tree.map(lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-5), *ends)


@pytest.mark.soak
@DENSE_AND_EXPERTS
def test_gradients_of_adapters_beside_integers(config):
    """Those beside the weights that integers stand for."""
    config = adapted(config, ranks_of(config))
    graphdef, params = drawn(config)
    _, quantised, found, plain = in_int8(config, params)
    trained = {path: value for path, value in params.items() if plain_path(path) is None}
    given = rows(config)

    def loss(trained, graphdef, frozen):
        return jnp.sum(jnp.square(logits(graphdef, {**frozen, **trained}, *given)))

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, grads = gradient(trained, quantised, found)
    expected_value, expected = gradient(trained, graphdef, plain)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, expected[path], atol=1e-5 * np.max(np.abs(expected[path])) + 1e-8)
    assert any(np.any(grad) for path, grad in grads.items() if path.startswith("lm.layers") and path.endswith(".a"))


def test_inputs_in_8_bits_are_near_and_a_row_is_its_own():
    """Sums are exact in int32: a row's product is the same bits beside any others, and within half a step of its inputs
    of the product with inputs as they are.
    """
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(24, 160)).astype(np.float32)
    values, scale = rounded(jnp.asarray(weight), 1)
    x = rng.normal(size=(5, 160)).astype(np.float32) * np.array([[1], [100], [1e-3], [0], [3]], np.float32)
    multiply = lambda kind: jax.jit(lambda x: kind.multiply(None, x, values, scale))
    exact, found = multiply(Int8Weight)(x), multiply(Int8Product)(x)
    steps = np.max(np.abs(x), axis=1, keepdims=True) / 127
    bound = steps / 2 * np.sum(np.abs(dequantised(values, scale)), axis=1)
    assert np.all(np.abs(found - exact) <= bound + 1e-6) and np.any(found != exact)
    for row in range(5):
        np.testing.assert_array_equal(multiply(Int8Product)(x[row : row + 1]), found[row : row + 1])


def test_rounded_products_of_weights_that_are_trained():
    """Forward as with both sides in 8 bits, backward as without."""
    rng = np.random.default_rng(3)
    x, w, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 6, 3, 5), (7, 2, 3, 5), (4, 6, 7, 2)))
    plain, trained = (kind(w, num_inputs=2, axes=(None,) * 4) for kind in (Weight, RoundedWeight))
    np.testing.assert_array_equal(trained.dot(x), Int8Product(plain).dot(x))
    assert 1e-3 < np.abs(trained.dot(x) - plain.dot(x)).max() < 0.1
    grads = [
        jax.vjp(lambda x, w, kind=kind: kind(w, num_inputs=2).dot(x), x, w)[1](g) for kind in (Weight, RoundedWeight)
    ]
    jax.tree.map(np.testing.assert_array_equal, *grads)


def test_which_products_are_rounded_in_training():
    """Those of the language model's layers; parameters are called and shaped as ever."""
    specs, found = (structure(PARTS["all"], TINY, Runtime(products=how))[1] for how in ("plain", "int8"))
    assert specs == found
    model = nnx.eval_shape(lambda: PARTS["all"](TINY, nnx.Rngs(0), Runtime(products="int8")))
    kinds = {".".join(map(str, path)): kind for path, kind in nnx.to_flat_state(nnx.state(model, RoundedWeight))}
    expected = {f"attn.{name}" for name in "qkvo"} | {f"mlp.{name}" for name in ("gate", "up", "down")}
    assert kinds.keys() == {f"lm.layers.{name}.weight" for name in expected}
