"""Groups cover every parameter once, the schedule is the released one, the update is AdamW's."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internvl_jax.errors import InputError
from internvl_jax.training import Group, OptimConfig
from internvl_jax.training.run.optim import assign, optimizer, schedule

CONFIG = OptimConfig(
    learning_rate=2e-3, warmup_ratio=0.1, weight_decay=0.05, beta1=0.9, beta2=0.99, eps=1e-8, clip_norm=1.0
)
PATHS = (
    "vit.layers.norm1.scale",
    "vit.layers.attn.qkv.bias",
    "vit.layers.attn.qkv.weight",
    "lm.layers.attn.q_norm.scale",
)


def test_biases_and_norms_are_not_decayed_and_the_rest_is():
    decay = {path: group.weight_decay for path, group in assign(PATHS, CONFIG.groups).items()}
    assert decay == dict(zip(PATHS, (0.0, 0.0, 1.0, 0.0), strict=True))


def test_an_uncovered_parameter_and_an_idle_pattern_are_errors():
    with pytest.raises(InputError, match="no pattern covers lm"):
        assign(PATHS, (Group("^vit"),))
    with pytest.raises(InputError, match=r"\['projector'\] cover no parameter"):
        assign(PATHS, (Group("projector"), Group(".*")))


def test_warm_up_is_linear_from_zero_and_the_cosine_ends_at_zero():
    rate = schedule(CONFIG, steps=50)
    values = [float(rate(step)) for step in range(51)]
    np.testing.assert_allclose(values[:6], 2e-3 * np.arange(6) / 5, atol=1e-9)
    cosine = [1e-3 * (1 + math.cos(math.pi * (step - 5) / 45)) for step in range(5, 51)]
    np.testing.assert_allclose(values[5:], cosine, atol=1e-9)


GROUPS = (Group("a", learning_rate=0.1, weight_decay=0.0), Group("b"), Group("c", frozen=True))


def test_the_update_is_adamw_with_a_rate_and_decay_of_each_group():
    params = {name: jnp.array([3e-4, -7e-4, 1e-3]) for name in "abc"}
    config = dataclasses.replace(CONFIG, warmup_ratio=0.0, weight_decay=1.0)
    tx = optimizer(config, 10, assign(params, GROUPS))
    trainable = {name: params[name] for name in "ab"}
    grads = {"a": jnp.array([0.1, 0.2, -0.3]), "b": jnp.array([-0.2, 0.1, 0.05])}
    updated, _ = tx.update(grads, optax.tree.norm(grads), tx.init(trainable), trainable)
    for name, rate, decay in (("a", 2e-4, 0.0), ("b", 2e-3, 1.0)):
        reference = optax.adamw(rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=decay)
        expected, _ = reference.update(grads[name], reference.init(params[name]), params[name])
        np.testing.assert_allclose(updated[name] - params[name], expected, rtol=1e-5)


def test_bits_are_those_of_a_chain_of_optax():
    """Gradients that are clipped and others, and one that is not finite; the state has the chain's structure."""
    rng, params = np.random.default_rng(0), {name: jnp.array([0.3, -0.7, 1.1]) for name in "ab"}
    groups = assign("abc", GROUPS)
    by_path = lambda factor: optax.stateless(lambda u, p: {path: factor(path, u[path], p[path]) for path in u})
    chain = optax.chain(
        optax.clip_by_global_norm(CONFIG.clip_norm),
        optax.scale_by_adam(CONFIG.beta1, CONFIG.beta2, CONFIG.eps),
        by_path(lambda path, u, p: u + CONFIG.weight_decay * groups[path].weight_decay * p),
        by_path(lambda path, u, p: u * groups[path].learning_rate),
        optax.scale_by_learning_rate(schedule(CONFIG, 10)),
    )
    tx, ours, theirs = optimizer(CONFIG, 10, groups), params, params
    state, chained = tx.init(ours), chain.init(theirs)
    for size in (0.1, 5.0, np.inf, 0.3):
        grads = {name: jnp.asarray(rng.normal(size=3) * size, jnp.float32) for name in "ab"}
        ours, state = tx.update(grads, optax.tree.norm(grads), state, ours)
        if np.isfinite(size):
            updates, chained = chain.update(grads, chained, theirs)
            theirs = optax.apply_updates(theirs, updates)
        assert jax.tree.structure(state) == jax.tree.structure(chained)
        for one, other in zip(jax.tree.leaves((ours, state)), jax.tree.leaves((theirs, chained)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(ours["a"], params["a"])


def test_a_step_has_room_for_its_gradients_and_nothing_more():
    """By the compiler: parameters and both moments are replaced where they lie."""
    layers, width = 6, 256
    paths = [f"b{layer}" for layer in range(layers)]
    tx = optimizer(CONFIG, 10, assign(paths, GROUPS[1:2]))

    def step(params, state, x):
        def loss(params):
            return jnp.sum(functools.reduce(lambda x, path: jnp.tanh(x @ params[path].T), paths, x) ** 2)

        grads = jax.grad(loss)(params)
        return tx.update(grads, optax.tree.norm(grads), state, params)

    params = {path: jax.ShapeDtypeStruct((width, width), jnp.float32) for path in paths}
    x = jax.ShapeDtypeStruct((2, width), jnp.float32)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params), x).compile()
    memory, size = compiled.memory_analysis(), 4 * layers * width**2
    assert memory.alias_size_in_bytes >= 3 * size
    assert memory.temp_size_in_bytes < 1.1 * size
