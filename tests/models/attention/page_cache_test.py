"""Pages: what a row sees is what it would see in slots of its own, wherever its pages lie, and on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.models import PageCache, SlotCache, check_kernel
from internvl_jax.models.attention.attention import Window
from internvl_jax.sharding import PRESETS, make_mesh

L, B, M, R, H = 2, 4, 2, 3, 8
SIZE, COLUMNS, PAGES = 4, 5, 22
NOWHERE = 1 << 30
# The pages of every row; the first two begin with the same one, and page 0 is nobody's.
TABLE = np.array([[3, 7, 1, 20, 0], [3, 2, 9, 0, 0], [5, 4, 6, 8, 10], [11, 12, 0, 0, 0]], np.int32)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def steps():
    """(segments, positions, slots) of calls: prompts in two parts, padded, then token by token; the last row ends."""
    starts, counts = np.zeros(B, int), np.array([5, 7, 6, 3])
    for call in range(4):
        T = 7 if call == 0 else 6 if call == 1 else 1
        counts = counts if call == 0 else np.array([6, 1, 6, 0]) if call == 1 else np.array([1, 1, 1, int(call < 3)])
        positions = starts[:, None] + np.arange(T)[None]
        real = np.arange(T)[None] < counts[:, None]
        yield tuple(map(jnp.asarray, (real.astype(np.int32), positions, np.where(real, positions, NOWHERE))))
        starts = starts + counts


def make(cache):
    """A function that goes through the calls with a cache, and returns all that real tokens saw."""

    def run(window, sinks_N):
        here, outs = cache, []
        near = None if window is None else Window(window, jnp.array(True))
        for number, (segments_BT, positions_BT, slots_BT) in enumerate(steps()):
            T = positions_BT.shape[1]
            here = here.place(slots_BT, segments_BT, positions_BT)
            mask = here.mask(segments_BT, positions_BT)
            for layer in range(L):
                seed = 10 * number + layer
                k, v = normal(seed, B, M, T, H), normal(seed + 100, B, M, T, H)
                if number == 0:  # what is common is written twice, and is the same
                    k[1, :, :SIZE], v[1, :, :SIZE] = k[0, :, :SIZE], v[0, :, :SIZE]
                here = here.write(jnp.int32(layer), jnp.asarray(k), jnp.asarray(v), slots_BT)
                q = jnp.asarray(normal(seed + 200, B, M * R, T, H))
                out = here.attend(jnp.int32(layer), q, mask, near, sinks_N)
                outs.append(jnp.where(segments_BT[:, None, :, None] > 0, out, 0))
        return outs, here

    return run


def paged(pool=PAGES):
    return PageCache.empty(L, M, H, (pool, SIZE), jnp.dtype(jnp.float32)).of(jnp.asarray(TABLE))


@functools.cache
def found_in_pages(window, sinks):
    return jax.jit(lambda: make(paged())(window, jnp.asarray(normal(9, M * R)) if sinks else None))()


@pytest.mark.parametrize(("window", "sinks"), [(None, False), (3, True)])
def test_pages_are_slots(window, sinks):
    sinks_N = jnp.asarray(normal(9, M * R)) if sinks else None
    slots = SlotCache.empty(L, M, H, ((B, SIZE * COLUMNS),), jnp.dtype(jnp.float32))
    wanted, _ = jax.jit(lambda: make(slots)(window, sinks_N))()
    found, cache = found_in_pages(window, sinks)
    assert cache.reach == SIZE * PAGES
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Nothing but the pages of rows was written, and of those no slot that has no token.
    pool = np.asarray(cache.pool).reshape(L, PAGES, SIZE, 2 * M, H)
    used = np.zeros((PAGES, SIZE), bool)
    for pages, length in zip(TABLE, (13, 10, 14, 4), strict=True):
        for slot in range(length):
            used[pages[slot // SIZE], slot % SIZE] = True
    np.testing.assert_array_equal((pool != 0).all(axis=(0, 3, 4)), used)
    np.testing.assert_array_equal((pool != 0).any(axis=(0, 3, 4)), used)


def test_attention_is_that_of_the_kernels_reference():
    """The pool is laid out as the kernel of TPUs reads it, and the reference is told what the kernel is."""
    _, cache = found_in_pages(None, False)
    T, rows, layer = 3, 2, 1
    cache = cache.of(jnp.asarray(TABLE[:rows]))
    lengths_B = jnp.array([13, 10], jnp.int32)
    q_BNTH = jnp.asarray(normal(1, rows, M * R, T, H))
    positions_BT = lengths_B[:, None] - T + jnp.arange(T)[None]
    mask = cache.mask(jnp.ones_like(positions_BT), positions_BT)
    found = cache.attend(layer, q_BNTH, mask, None, None)
    q = q_BNTH.transpose(0, 2, 1, 3).reshape(rows * T, M * R, H)
    starts, number = jnp.arange(rows + 1, dtype=jnp.int32) * T, jnp.array([rows], jnp.int32)
    with jax.numpy_rank_promotion("allow"):
        wanted = ref_ragged_paged_attention(
            q, cache.pool, lengths_B, cache.table + layer * PAGES, starts, number, sm_scale=H**-0.5
        )
    wanted = wanted.reshape(rows, T, M * R, H).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"data": 4}])
def test_on_any_mesh(sizes):
    """Each device has pages and numbers of its own."""
    data = sizes.get("data", 1)
    mesh, rules = make_mesh(sizes, jax.devices()[: data * sizes.get("tensor", 1)]), PRESETS["serve_tp"]
    wanted, _ = found_in_pages(None, False)

    @jax.jit
    def run():
        with sharding.use(mesh, rules):
            found, cache = make(paged(PAGES * data).laid())(None, None)
            return found, cache.laid()

    found, cache = run()
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    whole = L * PAGES * data, SIZE, 2 * M, H
    assert cache.pool.sharding.shard_shape(whole) == (L * PAGES, SIZE, 2 * M // sizes.get("tensor", 1), H)


@pytest.mark.parametrize(
    ("width", "plain", "what"), [(64, True, "heads of width 64"), (128, False, "windows or sinks")]
)
def test_what_the_kernel_can_not_do_is_refused(width, plain, what):
    with pytest.raises(InputError, match=f"^the model has {what}, and pages on TPU need .* instead of pages$"):
        check_kernel(width, plain)
    check_kernel(256, True)
