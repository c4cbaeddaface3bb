"""Long packed rows on CPU, by loops over the blocks that they have to meet, against products with all keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.models.attention import segment_loops
from internvl_jax.models.attention.attention import Mask, Window, _by_products

N, M, T, H = 4, 2, 150, 8
LENGTHS = [[70, 41, 39], [9, 95, 3]]  # of samples; the second row ends in padding


def marks():
    segments = [np.repeat(np.arange(1, 4), lengths) for lengths in LENGTHS]
    positions = [np.concatenate([*map(np.arange, lengths)]) for lengths in LENGTHS]
    padded = lambda rows: np.stack([np.pad(row, (0, T - len(row))) for row in rows]).astype(np.int32)
    return padded(segments), padded(positions)


@pytest.fixture(scope="module")
def either_way():
    """Values at tokens and gradients of everything, by loops or by products."""

    def both(q, k, v, g, sinks_N, holds, loops):
        segments_BT, positions_BT = marks()
        real = (segments_BT > 0)[:, None, :, None]

        def function(q, k, v, sinks_N):
            if not loops:
                window = Window(37, holds)
                return _by_products(q, k, v, Mask.within(segments_BT, positions_BT), window, None, sinks_N)
            grouped = q.reshape(2, M, N // M, T, H), k, v
            out = segment_loops.attend_in_loops(
                *grouped, segments_BT, positions_BT, 37, holds, sinks_N.reshape(M, N // M)
            )
            return out.reshape(q.shape)

        out, back = jax.vjp(function, q, k, v, sinks_N)
        return jnp.where(real, out, 0), back(jnp.where(real, g, 0)), jnp.isfinite(out).all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_loops, "QUERIES", 16)
        patch.setattr(segment_loops, "KEYS", 32)
        yield jax.jit(both, static_argnames="loops")


@pytest.mark.parametrize("holds", [False, True])
def test_loops_over_blocks_equal_products_with_all_keys(holds, either_way):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, n, T, H)).astype(np.float32) for n in (N, M, M, N)]
    sinks_N = np.linspace(-2, 2, N).astype(np.float32)
    found, expected = (either_way(*arrays, sinks_N, jnp.bool_(holds), loops=loops) for loops in (True, False))
    assert found[2]
    for one, other in zip(jax.tree.leaves(found[:2]), jax.tree.leaves(expected[:2]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_loops_begin_at_the_first_block_of_a_segment():
    segments_BT, _ = marks()
    padded_T = np.pad(segments_BT[0], (0, 10))
    first = segment_loops.blocks.first_met(padded_T, padded_T, 16, 32)
    counted = [min(np.flatnonzero(np.isin(padded_T, padded_T[at : at + 16]))) // 32 for at in range(0, 144, 16)]
    np.testing.assert_array_equal(first[:9], counted)
    assert counted[-1] > 0
