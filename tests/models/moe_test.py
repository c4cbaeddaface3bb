"""Experts against a plain reference that computes every expert for every token: values, gradients, meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import sizes
from internvl_jax.models.config import MoeConfig
from internvl_jax.models.moe import Moe
from internvl_jax.sharding import PRESETS, abstract, bind, make_mesh, shardings, use

E, K, D, F, B, T = 8, 3, 16, 7, 4, 5
CONFIG = dataclasses.replace(sizes.get("tiny").text, width=D, mlp=F, moe=MoeConfig(experts=E, per_token=K))


@pytest.fixture(scope="module")
def structure():
    return abstract(lambda rngs: Moe(CONFIG, rngs))


@pytest.fixture(scope="module")
def given(structure):
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=spec.shape).astype(np.float32) for path, spec in structure[1].items()}
    return params, rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(B, T, D)).astype(np.float32)


def reference(params, x_BTD):
    """Every expert for every token, weighted by the renormalised probabilities of the chosen ones."""
    logits = jnp.einsum("btd,ed->bte", x_BTD, params["router.weight"])
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = jnp.sort(probabilities, axis=-1)[..., -K, None]
    weights = jnp.where(probabilities >= least, probabilities, 0)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    gate, up = (jnp.einsum("btd,efd->btef", x_BTD, params[f"experts.{name}.weight"]) for name in ("gate", "up"))
    out = jnp.einsum("btef,edf->bted", jax.nn.silu(gate) * up, params["experts.down.weight"])
    return jnp.einsum("bte,bted->btd", weights, out), logits


def brick(graphdef, params, x):
    out, routing = bind(graphdef, params)(x)
    return out, routing.logits_BTE


def run(function, params, x, g):
    """Output, logits, and the gradients of sum(output * g)."""

    def loss(params, x):
        out, logits = function(params, x)
        return jnp.sum(out * g), (out, logits)

    (_, outs), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return outs, grads


def same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_values_and_gradients(structure, given):
    ours = functools.partial(brick, structure[0])
    same(jax.jit(lambda *given: run(ours, *given))(*given), run(reference, *given))


def test_no_token_is_dropped_when_all_want_one_expert(structure, given):
    params, x, g = given
    x = np.abs(x)
    params = params | {"router.weight": np.zeros_like(params["router.weight"])}
    params["router.weight"][5] = 3  # and the other choices are ties
    params["router.weight"][2] = 2
    params["router.weight"][7] = 1
    same(run(functools.partial(brick, structure[0]), params, x, g), run(reference, params, x, g))


def test_a_token_is_computed_as_if_alone(structure, given):
    params, x, _ = given
    moe = bind(structure[0], params)
    whole, alone = moe(x)[0], moe(x[2:3, 3:4])[0]
    np.testing.assert_allclose(alone[0, 0], whole[2, 3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
@pytest.mark.parametrize("mesh", [{"expert": 8}, {"fsdp": 4, "expert": 2}])
def test_any_mesh_equals_one_device(given, mesh, family):
    _, x, g = given
    graphdef, specs = abstract(lambda rngs: Moe(dataclasses.replace(CONFIG, family=family), rngs))
    rng = np.random.default_rng(1)
    params = {path: rng.normal(size=spec.shape).astype(np.float32) for path, spec in specs.items()}
    mesh, rules = make_mesh(mesh), PRESETS["fsdp"]
    placed = jax.device_put(params, shardings(specs, mesh, rules))
    down = placed["experts.down.weight"]
    assert down.sharding.shard_shape(down.shape)[0] == E // mesh.shape["expert"]
    ours = functools.partial(brick, graphdef)

    def sharded(*given):
        with use(mesh, rules):
            return run(ours, *given)

    same(jax.jit(sharded)(placed, x, g), run(ours, params, x, g))
