"""Models to flat parameters and back, and where these come to lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from internvl_jax.models import Runtime
from internvl_jax.models.stack import make_layers, run_layers
from internvl_jax.sharding import (
    PRESETS,
    abstract,
    bind,
    flatten,
    init,
    like_params,
    make_mesh,
    param,
    shardings,
)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.weight = param(rngs, (8, 16), ("mlp", "embed"), jax.nn.initializers.normal(0.1))
        self.scale = param(rngs, (16,), (None,), jax.nn.initializers.ones)


class Toy(nnx.Module):
    def __init__(self, rngs, stacked=True):
        self.layers = make_layers(Layer, 3, rngs) if stacked else nnx.List(Layer(rngs) for _ in range(3))
        self.head = param(rngs, (5, 16), ("vocab", "embed"), jax.nn.initializers.normal(0.1))

    def __call__(self, x_D):
        body = lambda layer, x, index, extra: (x + (layer.weight[...] @ x) @ layer.weight[...] * layer.scale[...], None)
        return self.head[...] @ run_layers(self.layers, x_D, None, body, Runtime())[0]


NAMES = {True: {"head", "layers.weight", "layers.scale"}}
NAMES[False] = {"head", *(f"layers.{index}.{name}" for index in range(3) for name in ("weight", "scale"))}


def test_abstract_says_what_init_makes_and_stores_nothing():
    graphdef, specs = abstract(Toy)
    assert specs.keys() == NAMES[True]
    assert specs["layers.weight"].axes == ("layers", "mlp", "embed")
    assert not [leaf for leaf in jax.tree.leaves((graphdef, specs)) if isinstance(leaf, jax.Array)]
    params = init(Toy, seed=3)
    assert {path: (value.shape, value.dtype) for path, value in params.items()} == {
        path: (spec.shape, spec.dtype) for path, spec in specs.items()
    }


def test_a_parameter_needs_a_name_for_each_dimension():
    with pytest.raises(ValueError, match="give one name per dimension"):
        param(nnx.Rngs(0), (3, 5), ("embed",), jax.nn.initializers.zeros)


@pytest.mark.parametrize("stacked", [True, False])
def test_bind_and_flatten_are_inverse(stacked):
    graphdef, specs = abstract(lambda rngs: Toy(rngs, stacked))
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=spec.shape).astype(np.float32) for path, spec in specs.items()}
    assert params.keys() == NAMES[stacked]
    back = flatten(bind(graphdef, params))
    assert back.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(back[path], value)
    # In another order too: what a checkpoint gives back need not be in the module's order.
    x = rng.normal(size=16).astype(np.float32)
    shuffled = dict(reversed(params.items()))
    np.testing.assert_array_equal(bind(graphdef, shuffled)(x), bind(graphdef, params)(x))


def test_init_lands_where_asked_and_the_mesh_does_not_change_it():
    _, specs = abstract(Toy)
    whole = init(Toy, seed=3)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    where = shardings(specs, mesh, dataclasses.replace(PRESETS["fsdp_tp"], vocab=()))
    params = init(Toy, seed=3, where=where)
    assert params["layers.weight"].sharding.spec == P(None, "tensor", "fsdp")
    for path, value in params.items():
        assert value.sharding.is_equivalent_to(where[path], value.ndim), path
        assert value.addressable_shards[0].data.shape == where[path].shard_shape(value.shape)
        np.testing.assert_allclose(value, whole[path], rtol=1e-6, err_msg=path)
    other = init(Toy, seed=4)
    assert not np.array_equal(whole["head"], other["head"])
    assert not np.array_equal(whole["layers.weight"][0], whole["layers.weight"][1])


def test_optimizer_state_lies_as_its_parameters():
    _, specs = abstract(Toy)
    mesh = make_mesh({"fsdp": 8})
    where = shardings(specs, mesh, PRESETS["fsdp"])
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    structs = {path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for path, spec in specs.items()}
    state = jax.eval_shape(tx.init, structs)
    placed = like_params(state, specs, where, mesh)
    adam = placed[1][0]
    assert adam.mu == where and adam.nu == where
    assert adam.count.spec == P()
    zeros = jax.jit(tx.init, out_shardings=placed)({path: jnp.zeros(s.shape) for path, s in structs.items()})
    assert zeros[1][0].mu["layers.weight"].addressable_shards[0].data.shape == (3, 8, 2)
