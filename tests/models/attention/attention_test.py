"""Attention against a plain reference in numpy, values and gradients, along every path through the code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.models.attention import attention
from internvl_jax.models.attention.attention import Mask, Window, attend

B, N, M, T, S, H = 2, 6, 3, 11, 13, 5


@pytest.fixture(params=["together", "head_by_head"])
def path(request, monkeypatch):
    """One of the two ways to compute, with blocks so small that T takes several."""
    monkeypatch.setattr(attention, "CACHED_BYTES", 0 if request.param == "head_by_head" else 1 << 40)
    for name, size in {"QUERY_BLOCK": 7, "ORDERED_BLOCK": 6, "UNORDERED_BLOCK": 7}.items():
        monkeypatch.setattr(attention, name, size)
    return request.param


def arrays(queries: int, keys: int):
    rng = np.random.default_rng(queries + keys)
    shapes = [(B, N, queries, H), (B, M, keys, H), (B, M, keys, H), (B, N, queries, H)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def reference(q, k, v, g, allowed_BTS, sinks_N=None):
    """Output, and the gradients of sum(output * g), in float64, a head at a time."""
    repeats, scale = q.shape[1] // k.shape[1], q.shape[3] ** -0.5
    q, k, v, g = (part.astype(np.float64) for part in (q, k, v, g))
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, n in np.ndindex(q.shape[:2]):
        m = n // repeats
        scores = np.where(allowed_BTS[b], q[b, n] @ k[b, m].T * scale, -np.inf)
        largest = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - largest)
        weights /= weights.sum(axis=1, keepdims=True) + (0 if sinks_N is None else np.exp(sinks_N[n] - largest))
        out[b, n] = weights @ v[b, m]
        dweights = g[b, n] @ v[b, m].T
        dscores = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True)) * scale
        dq[b, n] = dscores @ k[b, m]
        dk[b, m] += dscores.T @ q[b, n]
        dv[b, m] += weights.T @ g[b, n]
    return out, dq, dk, dv


# Two packed samples and, in the second row, padding.
SEGMENTS = np.array([[1] * 4 + [2] * 7, [1] * 6 + [2] * 2 + [0] * 3], np.int32)
POSITIONS = np.array([[*range(4), *range(7)], [*range(6), *range(2), *[0] * 3]], np.int32)
CAUSAL = (np.ones((B, T), np.int32), np.tile(np.arange(T, dtype=np.int32), (B, 1)))


def cached(queries: int) -> Mask:
    """Queries that continue rows of different lengths in a cache of S slots; row 1 holds padding at its start."""
    starts = np.array([[3], [S - queries - 1]])
    slots_BS = np.tile(np.arange(S), (B, 1))
    segments_BS = (slots_BS < starts + queries).astype(np.int32)
    segments_BS[1, :2] = 0
    positions_BS = (slots_BS - [[0], [2]]).astype(np.int32) * segments_BS
    positions_BT = (np.arange(queries) + starts - [[0], [2]]).astype(np.int32)
    return Mask(np.ones((B, queries), np.int32), positions_BT, segments_BS, positions_BS, ordered=False)


CASES = {  # mask, window, queries, keys
    "full": (None, None, T, T),
    "packed": (Mask.within(SEGMENTS, POSITIONS), None, T, T),
    "window": (Mask.within(SEGMENTS, POSITIONS), 3, T, T),
    "cached": (cached(8), None, 8, S),
    "one query": (cached(1), 4, 1, S),
}


def allowed(mask: Mask | None, window: int | None, queries: int, keys: int) -> np.ndarray:
    """The mask by its words: same segment, not padding, not later, inside the window."""
    if mask is None:
        return np.ones((B, queries, keys), bool)
    found = np.zeros((B, queries, keys), bool)
    for b, t, s in np.ndindex(found.shape):
        segment, other = mask.q_segments_BT[b, t], mask.k_segments_BS[b, s]
        distance = mask.q_positions_BT[b, t] - mask.k_positions_BS[b, s]
        found[b, t, s] = segment == other != 0 and 0 <= distance < (window or 10**6)
    return found


def in_force(window: int | None) -> Window | None:
    return None if window is None else Window(window, jnp.bool_(True))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(path, case):
    mask, window, queries, keys = CASES[case]
    q, k, v, g = arrays(queries, keys)
    allowed_BTS = allowed(*CASES[case])
    seen_BT = allowed_BTS.any(axis=2)
    g *= seen_BT[:, None, :, None]  # nothing is promised for a query without keys, save that it is finite
    allowed_BTS |= ~seen_BT[:, :, None]
    function = functools.partial(attend, mask=mask, window=in_force(window))

    def run(q, k, v):
        out, back = jax.vjp(function, q, k, v)
        return out, *back(g)

    found, expected = jax.jit(run)(q, k, v), reference(q, k, v, g, allowed_BTS)
    rows = np.broadcast_to(seen_BT[:, None, :, None], q.shape)
    assert np.all(np.isfinite(found[0]))
    np.testing.assert_allclose(found[0][rows], expected[0][rows], rtol=1e-4, atol=1e-5)
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_sinks(path, case):
    """A logit without a value in every softmax: values, and gradients, the sinks' own among them."""
    mask, window, queries, keys = CASES[case]
    q, k, v, g = arrays(queries, keys)
    sinks_N = np.linspace(-3, 4, N).astype(np.float32)
    allowed_BTS = allowed(*CASES[case])
    g *= allowed_BTS.any(axis=2)[:, None, :, None]
    allowed_BTS |= ~allowed_BTS.any(axis=2, keepdims=True)

    def run(q, k, v, sinks_N):
        function = functools.partial(attend, mask=mask, window=in_force(window))
        out, back = jax.vjp(lambda q, k, v, sinks_N: function(q, k, v, sinks_N=sinks_N), q, k, v, sinks_N)
        return out, *back(g)

    found = jax.jit(run)(q, k, v, sinks_N)
    expected = reference(q, k, v, g, allowed_BTS, sinks_N)
    rows = np.broadcast_to(np.any(g, axis=3, keepdims=True), q.shape)
    np.testing.assert_allclose(found[0][rows], expected[0][rows], rtol=1e-4, atol=1e-5)
    for one, other in zip(found[1:4], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    step = 1e-6
    for n in (0, N - 1):
        ends = [reference(q, k, v, g, allowed_BTS, sinks_N + d * np.eye(N)[n])[0] for d in (-step, step)]
        slope = np.sum((ends[1] - ends[0]) * g) / (2 * step)
        assert float(found[4][n]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("case", "one_by_one"), [("cached", False), ("one query", False), ("one query", True)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("sinks_N", [None, np.linspace(-3, 4, N, dtype=np.float32)], ids=["plain", "sinks"])
def test_a_layer_of_a_stack(case, one_by_one, dtype, sinks_N, monkeypatch):
    """The same as with that layer's keys and values alone, whatever the other layers hold; also where a cache is so
    large that one query a row meets its heads one by one.
    """
    if one_by_one:
        monkeypatch.setattr(attention, "SMALL_BYTES", 0)
        monkeypatch.setattr(attention, "SMALL_HEAD_BYTES", 0)
    mask, window, queries, keys = CASES[case]
    q, k, v, _ = (jnp.asarray(part, dtype) for part in arrays(queries, keys))
    stack = lambda part: jnp.full((3, *part.shape), jnp.nan, dtype).at[1].set(part)
    run = jax.jit(lambda q, k, v, layer: attend(q, k, v, mask, in_force(window), layer, sinks_N))
    expected = jax.jit(lambda q, k, v: attend(q, k, v, mask, in_force(window), sinks_N=sinks_N))(q, k, v)
    found = run(q, stack(k), stack(v), 1)
    tolerance = 1e-5 if dtype == np.float32 else 1e-2
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=tolerance)


def test_beyond_the_real_block_size():
    """The sizes of the code as it is: several blocks of queries, all heads together and head by head."""
    queries = attention.QUERY_BLOCK + 9
    for heads, by_head in ((2, False), (8, True)):
        assert (heads * queries**2 * 4 > attention.CACHED_BYTES) == by_head
        rng = np.random.default_rng(0)
        q, k, v = (rng.normal(size=(1, heads, queries, 2)).astype(np.float32) for _ in range(3))
        mask = Mask.within(np.ones((1, queries), np.int32), np.arange(queries, dtype=np.int32)[None])
        found = jax.jit(functools.partial(attend, mask=mask))(q, k, v)
        expected = reference(q, k, v, q, np.tril(np.ones((1, queries, queries), bool)))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_gradient_from_what_may_not_be_seen(path):
    """Row 0's token 6 is the third of its segment: nothing reaches it from others, from later ones or from padding."""
    q, k, v, _ = arrays(T, T)
    mask, token = Mask.within(SEGMENTS, POSITIONS), 6

    def one(k, v):
        return jnp.sum(attend(q, k, v, mask)[0, :, token] ** 2)

    for grad in jax.jit(jax.grad(one, argnums=(0, 1)))(k, v):
        reached = np.abs(grad[0]).sum(axis=(0, 2)) > 0
        np.testing.assert_array_equal(np.flatnonzero(reached), [4, 5, 6])
        assert not np.any(grad[1])


def test_padding_is_never_attended_to(path):
    """Not by padding either: garbage in padded keys changes nothing that a real query gives."""
    q, k, v, _ = arrays(T, T)
    mask = Mask.within(SEGMENTS, POSITIONS)
    run = jax.jit(functools.partial(attend, mask=mask))
    padding = np.broadcast_to((SEGMENTS == 0)[:, None, :, None], k.shape)
    before, after = (
        np.asarray(run(q, *keys)) for keys in ((k, v), (np.where(padding, 1e4, k), np.where(padding, 1e4, v)))
    )
    real = np.broadcast_to((SEGMENTS > 0)[:, None, :, None], q.shape)
    np.testing.assert_array_equal(before[real], after[real])
    assert np.all(np.isfinite(after))
    assert not np.asarray(mask.allowed(None))[1, 8:].any()


def test_bfloat16(path):
    q, k, v, g = (jnp.asarray(part, jnp.bfloat16) for part in arrays(T, T))
    found = jax.jit(functools.partial(attend, mask=Mask.within(*CAUSAL)))(q, k, v)
    exact = [np.asarray(part, np.float32) for part in (q, k, v, g)]
    expected = reference(*exact, np.tile(np.tril(np.ones((T, T), bool)), (B, 1, 1)))[0]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=0.03, atol=0.03)


def test_scores_are_float32(path):
    """300 and 301 are one number in bfloat16."""
    q, k, v = np.zeros((3, 1, 1, 2, 16), np.float32)
    q[..., :2] = 4  # scaled by a quarter
    k[..., 0], k[:, :, 1, 1], v[:, :, 1] = 300, 1, 1
    q, k, v = (jnp.asarray(part, jnp.bfloat16) for part in (q, k, v))
    found = jax.jit(functools.partial(attend, mask=None))(q, k, v)
    np.testing.assert_allclose(np.asarray(found, np.float32), 1 / (1 + np.exp(-1)), rtol=0.01)


@pytest.mark.parametrize(("platform", "q_block", "k_block"), [("cpu", 256, 512), ("tpu", 768, 768)])
def test_the_share_of_blocks_that_are_left_out(monkeypatch, platform, q_block, k_block):
    """Counted token by token: a block is met where a query may see a key of it, and where it stands against itself."""
    monkeypatch.setattr(attention.sharding, "platform", lambda: platform)
    segments_BT = np.zeros((2, 1500), np.int32)
    segments_BT[0, :1400] = np.repeat(np.arange(1, 5), 350)
    segments_BT[1, :600] = 1
    T, met, causal = 1536, 0, 0  # as many as blocks have
    for row in np.pad(segments_BT, ((0, 0), (0, T - 1500))):
        for q in range(0, T, q_block):
            for k in range(0, q + q_block, k_block):
                same = np.intersect1d(row[q : q + q_block], row[k : k + k_block])
                causal += 1
                met += bool((same > 0).any()) or k + k_block > q
    assert attention.left_out(segments_BT) == pytest.approx(1 - met / causal, abs=1e-6)
    assert met < causal
    assert attention.left_out(segments_BT[:, :1000]) is None


def test_no_blocks_are_left_out_on_gpus(monkeypatch):
    monkeypatch.setattr(attention.sharding, "platform", lambda: "gpu")
    assert attention.left_out(np.ones((1, 2048), np.int32)) is None
