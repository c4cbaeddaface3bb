"""The TPU's attention kernel, interpreted on CPU, against attention as CPUs compute it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax import sharding
from internvl_jax.models.attention import attention, kernels
from internvl_jax.models.attention.attention import Mask, Window, attend

B, N, M, T, H = 2, 4, 2, 150, 8
SEGMENTS = np.array([[1] * 70 + [2] * 80, [1] * 131 + [0] * 19], np.int32)
POSITIONS = np.array([[*range(70), *range(80)], [*range(131), *[0] * 19]], np.int32)


def arrays():
    rng = np.random.default_rng(0)
    shapes = [(B, N, T, H), (B, M, T, H), (B, M, T, H), (B, N, T, H)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture
def as_on_tpu(monkeypatch):
    """What `attend` does on TPU, with the kernel interpreted."""
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    monkeypatch.setattr(kernels, "LONG", 128)
    monkeypatch.setattr(kernels, "splash", functools.partial(kernels.splash, interpret=True))


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
