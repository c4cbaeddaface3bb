"""Facts that travel in names of scopes: what goes in comes out of the compiled program, its gradient's part too."""

import jax
import jax.numpy as jnp
import pytest

from internvl_jax.models import scopes


@pytest.mark.parametrize(
    ("name", "read", "fact", "size"),
    [
        (scopes.chunks_scope(3, 12), scopes.read_chunks, 0.25, 4),
        (scopes.keys_scope(640), scopes.read_keys, 640, 5),
    ],
)
def test_a_fact_comes_out_of_the_program(name, read, fact, size):
    """Programs of two sizes: JAX's cache takes programs for the same that differ in names alone."""

    def squares(x):
        with jax.named_scope(name):
            return jnp.sum(jnp.sin(x) @ x)

    text = jax.jit(jax.grad(squares)).lower(jnp.ones((size, size))).compile().as_text()
    assert read(text) == fact
    assert read("jit(step)/transpose/dot_general") is None
