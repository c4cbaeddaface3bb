"""The TPU's attention kernel, interpreted on CPU, against attention as CPUs compute it; and what it leaves out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as sk
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm

from internvl_jax import sharding
from internvl_jax.data.rows.batch import RowConfig, Sample, assemble_row
from internvl_jax.models.attention import attention, blocks, kernels
from internvl_jax.models.attention.attention import Mask, Window, attend

B, N, M, T, H = 2, 4, 2, 150, 8
SEGMENTS = np.array([[1] * 70 + [2] * 80, [1] * 131 + [0] * 19], np.int32)
POSITIONS = np.array([[*range(70), *range(80)], [*range(131), *[0] * 19]], np.int32)


def arrays():
    rng = np.random.default_rng(0)
    shapes = [(B, N, T, H), (B, M, T, H), (B, M, T, H), (B, N, T, H)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


splash = kernels.splash


def interpreted(*inputs):
    return splash(*inputs[:-1], inputs[-1]._replace(interpret=True))


@pytest.fixture
def as_on_tpu(monkeypatch):
    """What `attend` does on TPU, with the kernel interpreted."""
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    monkeypatch.setattr(kernels, "LONG", 128)
    monkeypatch.setattr(kernels, "splash", interpreted)


def run(mask, holds, sinks_N):
    """Values at tokens, and gradients of q, k, v and the sinks."""
    q, k, v, g = arrays()
    real = np.ones_like(g) if mask is None else np.broadcast_to((SEGMENTS > 0)[:, None, :, None], g.shape)

    def both(q, k, v, sinks_N, holds):
        window = None if holds is None else Window(37, holds)
        function = lambda q, k, v, sinks_N: attend(q, k, v, mask, window, sinks_N=sinks_N)
        out, back = jax.vjp(function, q, k, v, sinks_N)
        return jnp.where(real, out, 0), jnp.isfinite(out).all(), back(g * real)

    return jax.jit(both)(q, k, v, sinks_N, holds)


CASES = {
    "full": (None, None, None),
    "packed": (Mask.within(SEGMENTS, POSITIONS), None, None),
    "window and sinks": (Mask.within(SEGMENTS, POSITIONS), True, np.linspace(-2, 2, N).astype(np.float32)),
    "window of other layers": (Mask.within(SEGMENTS, POSITIONS), False, None),
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_plain_attention(case, request):
    mask, holds, sinks_N = CASES[case]
    holds = None if holds is None else jnp.bool_(holds)
    expected = run(mask, holds, sinks_N)
    request.getfixturevalue("as_on_tpu")
    found = run(mask, holds, sinks_N)
    assert found[1]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_on_a_mesh_each_device_has_its_rows_and_heads(as_on_tpu):
    mask, q, k, v = CASES["packed"][0], *arrays()[:3]
    mesh, rules = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4]), sharding.PRESETS["fsdp_tp"]

    def on_mesh(q, k, v):
        with sharding.use(mesh, rules):
            return attend(q, k, v, mask)

    expected = jax.jit(lambda q, k, v: attend(q, k, v, mask))(q, k, v)
    found = jax.jit(on_mesh)(q, k, v)
    assert found.sharding.shard_shape(found.shape) == (B // 2, N // 2, T, H)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_short_rows_and_several_devices_without_a_mesh_take_plain_products(monkeypatch):
    assert sharding.platform() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert sharding.platform() is None  # the eight devices of this session
    assert attention.kernels.LONG > 512


@pytest.mark.parametrize("case", ["full", "packed"])
def test_what_cudnn_is_asked_for_is_the_same_attention(case, monkeypatch):
    """cuDNN's arguments, computed by XLA."""
    mask = CASES[case][0]
    expected = run(mask, None, None)
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "LONG", 128)
    monkeypatch.setattr(kernels, "suits_cudnn", lambda q: True)
    monkeypatch.setattr(kernels, "cudnn", functools.partial(kernels.cudnn, implementation="xla"))
    found = run(mask, None, None)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_takes_what_it_is_asked_for(packed, monkeypatch):
    """Forward and backward lower to cuDNN's calls; whether they run is seen on a GPU only."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    shapes = [(1, 4, 1025, 64), (1, 2, 1025, 64), (1, 2, 1025, 64)]
    q, k, v = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    assert kernels.suits_cudnn(q) and not kernels.suits_cudnn(jax.ShapeDtypeStruct(shapes[0], jnp.float32))
    segments_BT = jnp.ones((1, 1025), jnp.int32) if packed else None
    total = lambda q, k, v: kernels.cudnn(q, k, v, segments_BT).astype(jnp.float32).sum()
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, v)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmha" in text and "Backward" in text


# Rows of 512 tokens, in blocks of 128.
LONG_T = 512


def numbered(*lengths):
    """Segments of samples of these lengths, and padding."""
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(segments, (0, LONG_T - len(segments))).astype(np.int32)


def several_texts():
    """Segments of a row of preference pairs, whose texts share their tiles."""
    config = RowConfig(LONG_T, 8, 2, 4, 9, "token", several=True)
    tiles = np.zeros((2, 2, 2, 3), np.uint8)

    def pair(number, chosen, rejected):
        tokens = np.concatenate([np.r_[[9] * 8, np.arange(10, 10 + more)] for more in (chosen, rejected)])
        supervised = np.ones(len(tokens), bool)
        return Sample("pair", tokens.astype(np.int32), supervised, tiles, (0, 8 + chosen), number)

    return assemble_row([pair(0, 60, 91), pair(1, 130, 40), pair(2, 33, 21)], config).segments_BT[0]


PACKINGS = {
    "one sample": numbered(LONG_T),
    "many short": numbered(*[29] * 17),
    "padding only": numbered(),
    "several texts": several_texts(),
    "long and short": numbered(11, 301, 17, 40),
}


@pytest.fixture(scope="module")
def either_way():
    """Splash attention of two rows that leaves blocks out, and that doesn't: values and gradients of all inputs."""

    def both(q, k, v, g, segments_BT, windowed, sinks_N, skips):
        plan = kernels.Plan(skips=skips, interpret=True)
        function = lambda q, k, v, sinks_N: splash(q, k, v, segments_BT, 37, windowed, sinks_N, plan)
        out, back = jax.vjp(function, q, k, v, sinks_N)
        real = (segments_BT > 0)[:, None, :, None]
        return jnp.where(real, out, 0), back(jnp.where(real, g, 0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LONG", 128)
        rng = np.random.default_rng(0)
        heads = [rng.normal(size=(2, n, LONG_T, H)).astype(np.float32) for n in (2, 1, 1, 2)]
        run = jax.jit(both, static_argnames="skips")
        yield lambda segments_BT, windowed, skips: run(
            *heads, segments_BT, jnp.bool_(windowed), np.float32([0.3, -1.2]), skips=skips
        )


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("names", [("one sample", "many short"), ("padding only", "several texts")])
def test_blocks_of_other_segments_make_no_bit_of_difference(names, windowed, either_way):
    segments_BT = np.stack([PACKINGS[name] for name in names])
    found, expected = (jax.tree.leaves(either_way(segments_BT, windowed, skips)) for skips in (True, False))
    assert np.abs(expected[0]).max() > 0.1 and np.abs(expected[1]).max() > 0.1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def met(segments_T, q_block, k_block, window=None):
    """bool [query blocks, key blocks], by counting: whether a query may see a key, or itself."""
    place = np.arange(len(segments_T))
    distance = place[:, None] - place[None]
    seen = (segments_T[:, None] == segments_T[None]) & (segments_T > 0) & (distance >= 0) | (distance == 0)
    if window is not None:
        seen &= distance < window
    return seen.reshape(len(segments_T) // q_block, q_block, -1, k_block).any(axis=(1, 3))


@pytest.mark.parametrize("window", [None, 37])
def test_tables_have_the_blocks_that_are_met(window):
    shape, fused = (LONG_T, LONG_T), window is None
    mask, wide = (sm.CausalMask(shape), 256) if fused else (sm.LocalMask(shape, (window - 1, 0), 0), 128)
    others = {} if fused else {"block_q_dq": 128, "block_kv_dq": 128}
    sizes = sk.BlockSizes(128, 128, 128, 128, wide, 128, use_fused_bwd_kernel=fused, **others)
    whole = sk.make_splash_mha(sm.MultiHeadMask([mask]), block_sizes=sizes, head_shards=1, q_seq_shards=1)

    @jax.jit
    def tables(segments_T):
        kernel = kernels._leaving_out(whole, segments_T, segments_T, 0)
        infos = [kernel.fwd_mask_info, kernel.dkv_mask_info]
        return [(info.block_mask[0] > 0, info.data_next[0]) for info in infos]

    for segments_T in PACKINGS.values():
        for (runs, indices), k_block, by_query in zip(
            jax.device_get(tables(segments_T)), (128, wide), (True, False), strict=True
        ):
            found = np.zeros((LONG_T // 128, LONG_T // k_block), bool)
            for place in np.argwhere(runs):
                found[(place[0], indices[*place]) if by_query else (indices[*place], place[1])] = True
            np.testing.assert_array_equal(found, met(segments_T, 128, k_block, window))
            # What is fetched where nothing runs is what the next step that runs wants, so it is there in time.
            walk = [table.reshape(-1) for table in ((runs, indices) if by_query else (runs.T, indices.T))]
            following = [walk[1][at:][walk[0][at:]][:1] for at in range(runs.size)]
            assert all(wanted.size == 0 or wanted[0] == there for wanted, there in zip(following, walk[1], strict=True))


def test_the_share_that_runs_is_what_counting_says():
    segments_BT = np.stack([*PACKINGS.values()])
    for q_block, k_block, window in ((128, 128, None), (64, 128, None), (128, 256, None), (64, 64, 37)):
        whole = met(PACKINGS["one sample"], q_block, k_block, window).sum() * len(segments_BT)
        counted = sum(met(segments_T, q_block, k_block, window).sum() for segments_T in segments_BT)
        found = float(blocks.share(jnp.asarray(segments_BT), q_block, k_block, window))
        assert found == pytest.approx(counted / whole, rel=1e-6)
        assert 0.2 < found < 0.9


def test_a_device_may_have_a_part_of_the_queries():
    """Where heads don't divide among the devices of a row: keys are gathered, queries are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LONG", 128)
        rng = np.random.default_rng(1)
        q, k, v = (rng.normal(size=(1, 1, LONG_T, H)).astype(np.float32) for _ in range(3))
        segments_BT, sinks_N = PACKINGS["long and short"][None], np.float32([0.4])
        half = lambda number, windowed: splash(
            jax.lax.dynamic_slice_in_dim(q * H**-0.5, number * 256, 256, 2),
            *(k, v, segments_BT, 37, windowed, sinks_N),
            kernels.Plan(part=kernels.QueryPart(number, 2), interpret=True),
        )
        run = jax.jit(half)
        for windowed in (False, True):
            window = Window(37, jnp.bool_(windowed))
            positions = np.concatenate([*map(np.arange, (11, 301, 17, 40, LONG_T - 369))])[None]
            expected = attend(q, k, v, Mask.within(segments_BT, positions), window, sinks_N=sinks_N)[:, :, :369]
            found = jnp.concatenate([run(number, jnp.bool_(windowed)) for number in (0, 1)], axis=2)[:, :, :369]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (3, 3)])
@pytest.mark.parametrize("parts", [2, 4])
def test_on_parts_of_rows_the_kernel_gives_what_one_device_gives(as_on_tpu, heads, kv_heads, parts):
    """Whether devices trade tokens for heads, or gather keys where heads don't divide: values, and gradients of q, k, v
    and the sinks, with windows and without.
    """
    mesh = sharding.make_mesh({"fsdp": 2, "context": parts}, jax.devices()[: 2 * parts])
    segments_BT = np.stack([PACKINGS["long and short"], PACKINGS["many short"]])
    rng = np.random.default_rng(3)
    q, k, v, g = (rng.normal(size=(2, n, LONG_T, H)).astype(np.float32) for n in (heads, kv_heads, kv_heads, heads))
    starts_BT = np.concatenate([[[True]] * 2, np.diff(segments_BT, axis=1) != 0], axis=1)
    place_T = np.arange(LONG_T)
    positions_BT = place_T - np.maximum.accumulate(np.where(starts_BT, place_T, 0), axis=1)
    real = (segments_BT > 0)[:, None, :, None]

    def both(mesh, q, k, v, sinks_N, holds):
        def function(q, k, v, sinks_N):
            with sharding.use(mesh, sharding.PRESETS["long_context"]):
                return attend(q, k, v, Mask.within(segments_BT, positions_BT), Window(37, holds), sinks_N=sinks_N)

        out, back = jax.vjp(function, q, k, v, sinks_N)
        return jnp.where(real, out, 0), back(g * real)

    run = jax.jit(both, static_argnums=0)
    for windowed in (False, True):
        given = (q, k, v, np.linspace(-1, 1, heads).astype(np.float32), jnp.bool_(windowed))
        for one, other in zip(jax.tree.leaves(run(mesh, *given)), jax.tree.leaves(run(None, *given)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
