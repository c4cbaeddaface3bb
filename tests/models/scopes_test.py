"""Facts that travel in names of scopes: what goes in comes out of the compiled program, its gradient's part too."""

import jax
import jax.numpy as jnp
import pytest

from internvl_jax.models import scopes

WALK = scopes.Walk(tokens=256, q_block=64, k_block=32, back_q_block=64, back_k_block=128, window=37)


@pytest.mark.parametrize(
    ("name", "read", "fact", "size"),
    [
        (scopes.chunks_scope(3, 12, 0.8), scopes.read_chunks, 0.25, 4),
        (scopes.keys_scope(640), scopes.read_keys, 640, 5),
        (scopes.keys_scope(96, WALK), scopes.read_keys, 96, 6),
        (scopes.keys_scope(97, WALK), scopes.read_walk, WALK, 7),
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


def test_the_most_turns_of_a_loop_come_out_of_the_program():
    """And not of a loop inside."""

    def halved(x):
        with jax.named_scope(scopes.turns_scope(7)):
            inner = lambda x: jax.lax.while_loop(lambda x: x.sum() > 2, lambda x: x - 1, x / 2)
            return jax.lax.while_loop(lambda x: x.sum() > 1, inner, x)

    lines = jax.jit(halved).lower(jnp.ones(3)).compile().as_text().splitlines()
    loops = [scopes.read_turns(line) for line in lines if " while(" in line]
    assert sorted(loops, key=str) == [7, None]
