"""The product brick: one row is a row of many, in every type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.models.bricks.nn import dot, product


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
