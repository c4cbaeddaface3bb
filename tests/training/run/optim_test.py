"""Groups cover every parameter once, the schedule is the released one, the update is AdamW's."""

import dataclasses
import math

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


def test_the_update_is_adamw_with_a_rate_and_decay_of_each_group():
    groups = (Group("a", learning_rate=0.1, weight_decay=0.0), Group("b"), Group("c", frozen=True))
    params = {name: jnp.array([0.3, -0.7, 1.1]) for name in "abc"}
    config = dataclasses.replace(CONFIG, warmup_ratio=0.0)
    tx = optimizer(config, 10, assign(params, groups))
    trainable = {name: params[name] for name in "ab"}
    grads = {"a": jnp.array([0.1, 0.2, -0.3]), "b": jnp.array([-0.2, 0.1, 0.05])}
    updates, _ = tx.update(grads, tx.init(trainable), trainable, norm=optax.tree.norm(grads))
    for name, rate, decay in (("a", 2e-4, 0.0), ("b", 2e-3, 0.05)):
        reference = optax.adamw(rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=decay)
        expected, _ = reference.update(grads[name], reference.init(params[name]), params[name])
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5)
