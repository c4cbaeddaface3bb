"""Rotary positions: plain ones against their definition, and the base that grows with the text (dynamic NTK)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.models.bricks.rope import DynamicNtk, Plain, apply_rope
from internvl_jax.models.config import NtkConfig

H, THETA, NTK = 16, 1e6, NtkConfig(factor=2.0, positions=20)
ROPE = DynamicNtk(H, THETA, NTK)


def expected(positions_T, length):
    """Cosines and sines in float64, from the formula of the release."""
    base = THETA
    if length > NTK.positions:
        base *= (NTK.factor * length / NTK.positions - (NTK.factor - 1)) ** (H / (H - 2))
    angles = positions_T[:, None] * base ** (-np.arange(0, H, 2) / H)
    return np.stack([np.cos(angles), np.sin(angles)])


def table(rope, positions_BT, segments_BT):
    arguments = jnp.asarray(positions_BT, jnp.int32), jnp.asarray(segments_BT, jnp.int32)
    return np.stack(jax.jit(rope)(*arguments))[:, :, 0]  # [2, B, T, H/2]


def test_plain():
    positions_T = np.arange(50)
    found = table(Plain(H, THETA), positions_T[None], np.ones((1, 50)))[:, 0]
    np.testing.assert_allclose(found, expected(positions_T, 0), atol=1e-5)


def test_up_to_the_context_of_the_training_positions_are_plain():
    positions, segments = np.arange(20)[None], np.ones((1, 20))
    np.testing.assert_array_equal(table(ROPE, positions, segments), table(Plain(H, THETA), positions, segments))


@pytest.mark.parametrize("length", [21, 40, 100])
def test_beyond_it_the_base_of_all_positions_grows(length):
    positions_T = np.arange(length)
    found = table(ROPE, positions_T[None], np.ones((1, length)))[:, 0]
    np.testing.assert_allclose(found, expected(positions_T, length), atol=2e-5)


def test_every_segment_has_the_length_of_its_own_and_padding_has_none():
    lengths, T = (30, 7, 45), 100
    positions_T = np.concatenate([*map(np.arange, lengths), np.arange(T - sum(lengths))])
    segments_T = np.repeat([1, 2, 3, 0], [*lengths, T - sum(lengths)])
    right = table(ROPE, positions_T[None], segments_T[None])[:, 0]
    left = table(ROPE, np.roll(positions_T, 18)[None], np.roll(segments_T, 18)[None])[:, 0]
    for found, start in ((right, 0), (left, 18)):
        for length in lengths:
            wanted = expected(np.arange(length), length)
            np.testing.assert_allclose(found[:, start : start + length], wanted, atol=2e-5)
            start += length


def test_a_token_of_a_longer_text_is_rotated_by_the_length_that_it_makes():
    """What a call with a cache asks for: one token, at its place."""
    found = table(ROPE, [[29], [5]], np.ones((2, 1)))
    np.testing.assert_allclose(found[:, 0, 0], expected(np.array([29]), 30)[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 1, 0], expected(np.array([5]), 6)[:, 0], atol=1e-5)


def test_products_depend_on_distances_alone():
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, H)).astype(np.float32)
    positions = [np.full((1, 1), place) for place in (3, 7, 13, 17)]
    tables = [ROPE(jnp.asarray(place), jnp.ones((1, 1), jnp.int32)) for place in positions]
    rotated = lambda x, table: np.asarray(apply_rope(jnp.asarray(x), table)).reshape(-1)
    near = rotated(query, tables[1]) @ rotated(key, tables[0])
    assert near == pytest.approx(rotated(query, tables[3]) @ rotated(key, tables[2]), rel=1e-4)
