"""Keys and values that are kept in 8 bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.models import Runtime, SlotCache
from internvl_jax.models.attention import attention

B, M, S, H = 2, 2, 6, 8


@functools.partial(jax.jit, static_argnames="dtype")
def answered(q_BNTH, k_BMTH, v_BMTH, dtype):
    """The cache with all keys and values but the last written first, and attention of the last token."""
    positions_BT = jnp.broadcast_to(jnp.arange(S)[None], (B, S))
    cache = SlotCache.empty(2, M, H, ((B, S),), dtype)
    cache = cache.put(
        0,
        jnp.arange(B),
        jnp.zeros(B, int),
        jnp.full(B, S - 1),
        tuple(jnp.stack([part[:, :, :-1]] * 2) for part in (k_BMTH, v_BMTH)),
    )
    cache = cache.write(1, k_BMTH[:, :, -1:], v_BMTH[:, :, -1:], positions_BT[:, -1:])
    return cache, cache.attend(1, q_BNTH, positions_BT[:, -1:], None, None)


def test_float8_is_near_and_holds_the_largest_that_it_can(monkeypatch):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, N, T, H)).astype(np.float32) for N, T in ((4, 1), (M, S), (M, S)))
    (_, exact), (cache, found) = (
        answered(q, k, v, dtype) for dtype in (jnp.float32, Runtime(cache="float8").cache_dtype)
    )
    assert cache.k[0].dtype == jnp.float8_e4m3fn and cache.k[0].nbytes == 2 * B * M * S * H
    np.testing.assert_allclose(cache.k[0][1], k, rtol=2**-4, atol=2**-9)
    assert 0 < np.max(np.abs(found - exact)) < 0.1
    # One query a row, where the rows are long.
    for name in ("SMALL_BYTES", "SMALL_HEAD_BYTES"):
        monkeypatch.setattr(attention, name, 0)
    given = *map(jnp.asarray, (q, k, v)), Runtime(cache="float8").cache_dtype
    np.testing.assert_allclose(jax.jit(answered.__wrapped__, static_argnums=3)(*given)[1], found, atol=1e-6)
    v[0, 0, 0, 0] = v[0, 0, -1, 1] = 1e4  # of a prompt, and of a token that is written
    kept, large = answered(q, k, v, Runtime(cache="float8").cache_dtype)
    assert kept.v[0][1, 0, 0, 0, 0] == kept.v[0][1, 0, 0, S - 1, 1] == 448 and np.all(np.isfinite(large))
