"""Log-probabilities in chunks are those of the whole, and the logits are never whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from internvl_jax.models import token_logprobs

B, T, D, V = 2, 13, 7, 19


def example():
    rng = np.random.default_rng(1)
    hidden_BTD, head_VD, weights_BT = (
        rng.normal(size=shape).astype(np.float32) for shape in [(B, T, D), (V, D), (B, T)]
    )
    return hidden_BTD, head_VD, rng.integers(0, V, (B, T)).astype(np.int32), weights_BT


def plain(hidden_BTD, head_VD, targets_BT):
    logprobs_BTV = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden_BTD, head_VD))
    return jnp.take_along_axis(logprobs_BTV, targets_BT[:, :, None], axis=2)[:, :, 0]


def results(function, hidden_BTD, head_VD, targets_BT, weights_BT):
    """Values, and the gradient of a weighted sum with respect to hidden states and head."""

    def loss(hidden_BTD, head_VD):
        logprobs_BT = function(hidden_BTD, head_VD, targets_BT)
        return jnp.sum(logprobs_BT * weights_BT), logprobs_BT

    (_, values), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden_BTD, head_VD)
    return values, *grads


@pytest.fixture(scope="module")
def expected():
    return results(plain, *example())


@pytest.mark.parametrize("chunk", [1, 5, T, 64])
def test_chunked_equals_whole(expected, chunk):
    found = results(lambda *inputs: token_logprobs(*inputs, chunk=chunk), *example())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_float32_from_bfloat16_and_large_logits():
    hidden_BTD, head_VD, targets_BT, _ = example()
    hidden_BTD = jnp.asarray(hidden_BTD * 100, jnp.bfloat16)
    found = token_logprobs(hidden_BTD, head_VD, targets_BT, chunk=5)
    rounded = jnp.asarray(head_VD, jnp.bfloat16).astype(jnp.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, plain(hidden_BTD.astype(jnp.float32), rounded, targets_BT), rtol=1e-4, atol=1e-3)


def sizes(jaxpr):
    """Elements of every value that a program makes, inside loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize(("chunk", "whole"), [(3, False), (T, True)])
def test_the_logits_are_never_stored_whole(chunk, whole):
    hidden_BTD, head_VD, targets_BT, _ = example()

    def loss(hidden_BTD, head_VD):
        return jnp.sum(token_logprobs(hidden_BTD, head_VD, targets_BT, chunk))

    largest = max(sizes(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden_BTD, head_VD).jaxpr))
    assert (largest >= B * T * V) == whole
