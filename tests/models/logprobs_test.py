"""What is computed from logits in chunks is that of the whole, and the logits are never whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from internvl_jax.models import over_logits, token_logprobs, token_statistics

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


@pytest.mark.parametrize("chunk", [5, T])
def test_statistics_in_one_pass(expected, chunk):
    """The log-probabilities with their gradient, and the entropy, which has none."""
    hidden_BTD, head_VD, targets_BT, weights_BT = example()

    def loss(hidden_BTD):
        logprobs_BT, entropy_BT = token_statistics(hidden_BTD, head_VD, targets_BT, chunk)
        return jnp.sum(logprobs_BT * weights_BT) + jnp.sum(entropy_BT), (logprobs_BT, entropy_BT)

    grad_BTD, (logprobs_BT, entropy_BT) = jax.jit(jax.grad(loss, has_aux=True))(hidden_BTD)
    np.testing.assert_allclose(logprobs_BT, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad_BTD, expected[1], rtol=1e-5, atol=1e-5)
    probabilities_BTV = np.exp(jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden_BTD, head_VD)))
    np.testing.assert_allclose(entropy_BT, -np.sum(probabilities_BTV * np.log(probabilities_BTV), axis=2), rtol=1e-4)


def compare(one_BTV, other_BTV, weights_BT, features_BTF):
    """A function of two models' logits that returns arrays of two shapes."""
    distance_BT = jnp.sum(jax.nn.softmax(one_BTV) * jax.nn.log_softmax(other_BTV), axis=2) * weights_BT
    return {"distance": distance_BT, "features": features_BTF * distance_BT[:, :, None]}


@pytest.mark.parametrize("chunk", [1, 5, T, 64])
def test_two_models_of_different_widths_in_chunks(chunk):
    one_BTD, one_VD, _, weights_BT = example()
    rng = np.random.default_rng(2)
    shapes = [(B, T, 5), (V, 5), (B, T, 3)]
    other_BTD, other_VD, features_BTF = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def chunked(one_BTD, one_VD, other_BTD, other_VD):
        states = [(one_BTD, one_VD), (other_BTD, other_VD)]
        return over_logits(compare, states, [weights_BT, features_BTF], chunk)

    def whole(one_BTD, one_VD, other_BTD, other_VD):
        logits = [jnp.einsum("btd,vd->btv", *pair) for pair in ((one_BTD, one_VD), (other_BTD, other_VD))]
        return compare(*logits, weights_BT, features_BTF)

    def value_and_grads(function):
        total = lambda *inputs: jnp.sum(function(*inputs)["features"] ** 2)
        inputs = one_BTD, one_VD, other_BTD, other_VD
        return function(*inputs), jax.jit(jax.grad(total, argnums=range(4)))(*inputs)

    found, expected = value_and_grads(chunked), value_and_grads(whole)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
