"""Groups of answers: rows that begin at different times see their prompt and their own tokens, and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.models import GroupCache
from internvl_jax.models.attention.attention import Mask, Window, attend

L, Q, A, M, R, H, T = 2, 2, 2, 2, 3, 4, 5
BEGINS = (0, 1, 3, 2)  # the step at which a row writes its first token
LENGTHS = (5, 3)
LONGEST = 16


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_rows_at_different_steps(apart, window):
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    cache = GroupCache.empty(L, M, H, (Q, A), (T, 4), jnp.dtype(jnp.float32), apart)
    assert cache.slots == 4
    prompts = normal(L, Q, M, T, H), normal(L, Q, M, T, H)
    numbers, zeros = jnp.arange(Q), jnp.zeros(Q, jnp.int32)
    cache = cache.put(0, numbers, zeros, jnp.array(LENGTHS), tuple(map(jnp.asarray, prompts)))
    near = None if window is None else Window(window, jnp.array(True))
    sinks_N = None if window is None else jnp.asarray(normal(M * R))
    order, steps = np.arange(Q * A), 9
    k, v = normal(L, steps, Q * A, M, 1, H), normal(L, steps, Q * A, M, 1, H)
    for step in range(steps):
        if step == 4:  # the first row has filled its slots; all rows change places too
            order = np.array([3, 2, 1, 0])
            cache = cache.moved(jnp.array([1, 0]), jnp.asarray(order)).grown(8)
            assert cache.slots == 8
        if step == 6:  # the slots stay, which have begun anew
            order = order[[1, 0, 3, 2]]
            cache = cache.moved(numbers, jnp.array([1, 0, 3, 2]))
        if step == 8:
            order = np.array([*order[:2], *order[:2]])  # a prompt in both places
            cache = cache.moved(jnp.array([0, 0]), jnp.array([0, 1, 0, 1])).grown(16)
        lengths_B = np.array([LENGTHS[row // A] for row in order])
        positions_B1 = jnp.asarray(lengths_B + step - np.array(BEGINS)[order])[:, None]
        cache = cache.place(None, None, positions_B1)
        mask = cache.mask(None, positions_B1)
        for layer in range(L):
            q_BN1H = normal(len(order), M * R, 1, H)
            new = k[layer, step, order], v[layer, step, order]
            cache = cache.write(layer, *map(jnp.asarray, new), None)
            found = cache.attend(layer, jnp.asarray(q_BN1H), mask, near, sinks_N)
            for b, row in enumerate(order):
                if step < BEGINS[row]:
                    continue
                S, whole = lengths_B[b] + step + 1 - BEGINS[row], []
                for prompt, own in zip(prompts, (k, v), strict=True):
                    head_MTH = prompt[layer, row // A][:, : lengths_B[b]]
                    tail = own[layer, BEGINS[row] : step + 1, row, :, 0].swapaxes(0, 1)
                    padding = np.zeros((M, LONGEST - S, H), np.float32)  # of one length, so that nothing compiles anew
                    whole.append(jnp.asarray(np.concatenate([head_MTH, tail, padding], axis=1))[None])
                places = np.arange(LONGEST)[None]
                real = jnp.asarray(places < S, jnp.int32)
                alone = Mask(
                    jnp.ones((1, 1), jnp.int32), jnp.array([[S - 1]]), real, jnp.asarray(places), ordered=False
                )
                assert positions_B1[b, 0] == S - 1
                wanted = attend(jnp.asarray(q_BN1H[b][None]), *whole, alone, near, sinks_N=sinks_N)
                np.testing.assert_allclose(found[b], wanted[0], atol=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_a_prompt_in_parts(apart):
    rng = np.random.default_rng(2)
    cache = GroupCache.empty(L, M, H, (Q, A), (T, 4), jnp.dtype(jnp.float32), apart)
    kv = tuple(jnp.asarray(rng.normal(size=(L, 1, M, T, H)), jnp.float32) for _ in range(2))
    ones, zeros = jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32)
    for start, stop in ((0, 3), (3, 5)):
        cache = cache.put(0, ones, zeros + start, zeros + stop - start, tuple(half[:, :, :, start:stop] for half in kv))
    cache = cache.put(0, zeros, zeros, zeros, kv)  # padding
    np.testing.assert_array_equal(cache.lengths_Q, [0, 5])
    row = cache.rows(0, ones, T)
    np.testing.assert_array_equal(row.k[0], kv[0])
    np.testing.assert_array_equal(row.v[0], kv[1])
    assert not cache.rows(0, zeros, T).k[0].any()
