"""Facts that travel in names of scopes: what goes in comes out of the compiled program, its gradient's part too."""

import jax
import jax.numpy as jnp
import pytest

from internvl_jax.models import scopes


@pytest.mark.parametrize(
    ("name", "read", "fact"),
    [
        (scopes.chunks_scope(3, 12), scopes.read_chunks, 0.25),
        (scopes.keys_scope(640), scopes.read_keys, 640),
    ],
)
def test_a_fact_comes_out_of_the_program(name, read, fact):
    def squares(x):
        with jax.named_scope(name):
            return jnp.sum(jnp.sin(x) @ x)

    text = jax.jit(jax.grad(squares)).lower(jnp.ones((4, 4))).compile().as_text()
    assert read(text) == fact
    assert read("jit(step)/transpose/dot_general") is None
