"""Sums over packed sequences are those of the sequences alone; a row lies where it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.losses import segment_sums, spread

S = 5


def example(B: int):
    rng = np.random.default_rng(4)
    segments_BT = np.sort(rng.integers(1, 5, (B, 13)), axis=1).astype(np.int32)  # 5 is never there
    segments_BT[:, 11:] = 0
    return rng.normal(size=(B, 13)).astype(np.float32), segments_BT


def test_sums_are_those_of_the_sequences():
    values_BT, segments_BT = example(3)
    expected_BS = [[values_BT[row][segments_BT[row] == s].sum() for s in range(1, S + 1)] for row in range(3)]
    np.testing.assert_allclose(segment_sums(values_BT, segments_BT, S), expected_BS, rtol=1e-5, atol=1e-6)


def test_spread_gives_every_token_what_its_sequence_has():
    _, segments_BT = example(3)
    values_BX = np.random.default_rng(5).normal(size=(3, S)).astype(np.float32)
    expected_BT = np.concatenate([np.zeros((3, 1)), values_BX], axis=1)[np.arange(3)[:, None], segments_BT]
    np.testing.assert_array_equal(spread(values_BX, segments_BT), expected_BT.astype(np.float32))
    found_BT = spread(values_BX > 0, segments_BT)
    assert found_BT.dtype == bool
    np.testing.assert_array_equal(found_BT, expected_BT > 0)


def test_each_is_the_transpose_of_the_other():
    """So the gradient of a sum is a spread, and the other way round."""
    values_BT, segments_BT = example(2)
    weights_BS = np.random.default_rng(6).normal(size=(2, S)).astype(np.float32)
    grad_BT = jax.grad(lambda x: jnp.sum(segment_sums(x, segments_BT, S) * weights_BS))(jnp.asarray(values_BT))
    np.testing.assert_array_equal(grad_BT, spread(weights_BS, segments_BT))
    grad_BS = jax.grad(lambda x: jnp.sum(spread(x, segments_BT) * values_BT))(jnp.asarray(weights_BS))
    np.testing.assert_allclose(grad_BS, segment_sums(values_BT, segments_BT, S), rtol=1e-5, atol=1e-6)


def test_a_long_sequence_keeps_its_digits():
    """One addition after another would be off by 2e-4."""
    values_BT = np.full((1, 32768), -2.3, np.float32)
    total = segment_sums(values_BT, np.ones((1, 32768), np.int32), 1)[0, 0]
    assert float(total) == pytest.approx(32768 * float(np.float32(-2.3)), rel=1e-5)


def test_rows_on_devices_of_their_own_exchange_nothing():
    values_BT, segments_BT = example(8)
    rows = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))

    def back_and_forth(values_BT, segments_BT):
        return jax.vjp(lambda x: spread(segment_sums(x, segments_BT, S), segments_BT), values_BT)[1](values_BT)[0]

    program = jax.jit(back_and_forth, in_shardings=(rows, rows), out_shardings=rows).lower(values_BT, segments_BT)
    text = program.compile().as_text()
    assert "num_partitions=8" in text
    assert not [name for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if name in text]
